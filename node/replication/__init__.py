"""Performs what the replica asks for: where consensus, ledger, storage and network meet."""
