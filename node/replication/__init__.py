"""Performs what the replica asks for: the meeting place of consensus, ledger, storage and network."""
