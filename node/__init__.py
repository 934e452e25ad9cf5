"""The RadLedger daemon: the only place where things happen."""
