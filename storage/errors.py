"""Errors of the storage room. Each message says what is wrong, where, and what to do."""


class StorageError(Exception):
    """The database cannot be used; nothing in it was changed."""


class DatabaseLocked(StorageError):
    """Another process has the database open."""


class DatabaseTooNew(StorageError):
    """The database was written by a newer schema than this program knows."""


class ForeignDatabase(StorageError):
    """The file is a database, but not one of this kind."""


class CorruptRecord(StorageError):
    """Stored data is damaged. The node stops and the operator restores or syncs anew."""


class InvalidProof(Exception):
    """A state proof does not show what is claimed: its giver is wrong, not the disk."""
