"""Errors of the store, split by who must act."""


class StoreError(Exception):
    """The store cannot do what was asked; nothing that it held before was lost by the call."""


class StudyUnknown(StoreError):
    """The store holds no study of that id."""


class VersionUnknown(StoreError):
    """The store holds the study, but not that version or that instance of it."""


class StudyErased(StoreError):
    """The study was erased: its key is destroyed and it is never taken again."""


class VersionConflict(StoreError):
    """That version is stored with other content; versions never change."""


class ChunkUnknown(StoreError):
    """No study held here has a chunk of that digest."""


class ChunkMissing(StoreError):
    """The chunk belongs to a study held here, but is still to be fetched."""


class Damaged(StoreError):
    """Stored or received bytes fail their check: rotten, foreign, out of order or cut short."""


class FileChanged(StoreError):
    """A source does not have the size and digest that were registered."""


class QuotaExceeded(StoreError):
    """The store's quota does not allow it; raise the quota or erase what is not needed."""


class StoreFull(StoreError):
    """The disk under the store is full."""


class BlobsUnavailable(StoreError):
    """The place of the blobs cannot be reached or refuses; try again later."""


class WrongMasterKey(StoreError):
    """The master key or its passphrase does not open this key file."""


class KeysTooNew(StoreError):
    """A newer program wrote the key file."""


class InvalidIndex(ValueError):
    """The bytes are no index, or an index that contradicts itself."""
