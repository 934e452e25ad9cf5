"""Opening the store that the config names."""

from node import keys
from node.config.model import StoreConfig
from node.exchange.store.blobs import BlobStore, open_folder, open_service
from node.exchange.store.catalog import open_catalog
from node.exchange.store.errors import StoreError
from node.exchange.store.master import (
    MasterEnvironment,
    MasterFile,
    MasterPassphrase,
    MasterSource,
)
from node.exchange.store.store import StudyStore


def open_store(config: StoreConfig) -> StudyStore:
    """Open, or make, the store. Raises `StoreError`, `KeyFileError`."""
    catalog = open_catalog(config.key_file, master_source(config))
    try:
        return StudyStore(
            open_blobs(config),
            catalog,
            quota_bytes=config.quota_bytes,
            compression=config.compression,
        )
    except BaseException:
        catalog.close()
        raise


def open_blobs(config: StoreConfig) -> BlobStore:
    """Return the place of the blobs. Raises `StoreError`."""
    if config.url is not None and config.folder is None:
        return open_service(config.url, config.endpoint, config.region)
    if config.folder is not None and config.url is None:
        return open_folder(config.folder)
    raise StoreError("the config must name store.folder or store.url, and only one of them")


def master_source(config: StoreConfig) -> MasterSource:
    """Return where the config says the master key is. Raises `StoreError`."""
    named: list[MasterSource] = []
    if config.master_key_file is not None:
        named.append(MasterFile(config.master_key_file))
    if config.master_key_environment is not None:
        named.append(MasterEnvironment(config.master_key_environment))
    if config.master_passphrase_file is not None:
        named.append(MasterPassphrase(keys.PassphraseFile(config.master_passphrase_file)))
    if config.master_passphrase_environment is not None:
        source = keys.PassphraseEnvironment(config.master_passphrase_environment)
        named.append(MasterPassphrase(source))
    if len(named) != 1:
        raise StoreError("the config must name one source of the store's master key, [store]")
    return named[0]
