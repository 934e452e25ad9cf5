"""The command `radledger`."""
