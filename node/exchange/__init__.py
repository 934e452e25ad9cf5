"""The exchange of encrypted studies between hospitals: the store, the keys, the transfer.

Nothing in here knows the ledger's RPC or DICOM: whoever puts the parts together hands in what says
who may have what, as small Protocols.
"""
