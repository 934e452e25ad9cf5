"""The folder that holds a database: whose it is, which schema, and who has it open.

    RADLEDGER    two lines: a title, and the schema version. Read before anything else is touched.
    leveldb/     the database. LevelDB owns every file in it.
    creating/    the database while it is being made; nothing was ever acknowledged out of it.
    rehearsal/   scratch of an opening, see leveldb.py; what a crash leaves of it means nothing.

RADLEDGER appears only when `creating/` is complete, and only then is `creating/` renamed, so a
crash at any moment of the making leaves a folder that is either begun anew or finished.
The lock is flock(2) on the folder itself: it costs no file and ends with the process.
"""

import errno
import fcntl
import os
import shutil
from pathlib import Path

from storage.errors import CorruptRecord, DatabaseLocked, DatabaseTooNew, StorageError
from storage.schema import SCHEMA_VERSION

FORMAT_FILE = "RADLEDGER"
DATABASE = "leveldb"
CREATING = "creating"
REHEARSAL = "rehearsal"
TITLE = "RadLedger database"
FORMAT_BYTES_MAX = 1024

RESTORE = (
    "Move the folder away and let the node sync anew; never put an older copy back, which has "
    "forgotten its latest votes"
)


class DatabaseFolder:
    """A folder that this process has locked. `release` gives it back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.database = path / DATABASE
        self.creating = path / CREATING
        self.rehearsal = path / REHEARSAL
        self._descriptor = descriptor

    def is_complete(self) -> bool:
        """Tell whether a database of this schema is here; False where one is still to be made.

        Raises `DatabaseTooNew`, `CorruptRecord`, or `StorageError` for a folder that is not ours.
        """
        names = {entry.name for entry in os.scandir(self.path)}
        if FORMAT_FILE in names:
            self._check_format()
            if not names & {DATABASE, CREATING}:
                raise CorruptRecord(
                    f"The database in '{self.path}' has lost its '{DATABASE}' folder. {RESTORE}."
                )
            return True
        foreign = sorted(name for name in names if not _is_harmless(name))
        if foreign:
            raise StorageError(
                f"The folder '{self.path}' is not a RadLedger database: it has no {FORMAT_FILE} "
                f"file but holds '{foreign[0]}'. Nothing was changed. Name another folder."
            )
        return False

    def finish_creation(self) -> None:
        """Make the database in `creating` the database of this folder, durably."""
        if self.database.exists():
            return
        if not (self.path / FORMAT_FILE).exists():
            draft = self.creating / FORMAT_FILE
            draft.write_text(f"{TITLE}\nschema {SCHEMA_VERSION}\n")
            _sync(draft)
            _sync(self.creating)
            draft.rename(self.path / FORMAT_FILE)
            os.fsync(self._descriptor)
        self.creating.rename(self.database)
        os.fsync(self._descriptor)

    def check_database(self) -> None:
        """Raise `DatabaseLocked` or OSError if LevelDB could not open the database for these.

        It would find out by itself, but not before it has begun a new LOG.
        """
        effective = os.access in os.supports_effective_ids
        if not os.access(self.database, os.W_OK, effective_ids=effective):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock = self.database / "LOCK"
        if lock.exists():
            with lock.open("r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise locked(self.path) from error

    def remove(self, scratch: Path) -> None:
        """Remove `creating` or `rehearsal`, if it is there."""
        if scratch.exists():
            shutil.rmtree(scratch)

    def release(self) -> None:
        """Unlock the folder; a second call does nothing."""
        if self._descriptor >= 0:
            # Explicitly, since a forked child may still hold a copy of the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_format(self) -> None:
        with (self.path / FORMAT_FILE).open("rb") as file:
            version = _schema_version(file.read(FORMAT_BYTES_MAX))
        if version is None:
            raise CorruptRecord(
                f"The {FORMAT_FILE} file in '{self.path}' is damaged. {RESTORE}. "
                "Nothing was changed."
            )
        if version > SCHEMA_VERSION:
            raise DatabaseTooNew(
                f"The database in '{self.path}' has schema {version}, but this program knows "
                f"schema {SCHEMA_VERSION} only. Nothing was changed. Start a newer RadLedger."
            )
        if version < SCHEMA_VERSION:
            raise StorageError(
                f"The database in '{self.path}' has schema {version}, but this program reads "
                f"schema {SCHEMA_VERSION} only. Nothing was changed. Move it away and let the "
                "node sync anew, or start the release that wrote it."
            )


def lock_folder(path: Path, *, create: bool) -> DatabaseFolder:
    """Return the locked folder, made if `create` and missing (with mode 0700).

    Raises `DatabaseLocked`, `StorageError`.
    """
    try:
        if create:
            _make(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise StorageError(_not_there(path)) from error
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise locked(path) from error
    except OSError as error:
        os.close(descriptor)
        raise unusable(path, error) from error
    return DatabaseFolder(path, descriptor)


def locked(path: Path) -> DatabaseLocked:
    """Return the error for a database that somebody else has open."""
    return DatabaseLocked(
        f"The database in '{path}' is open in another process (or twice in this one). "
        "Nothing was changed. Stop the other node, or name another folder."
    )


def unusable(path: Path, error: OSError) -> StorageError:
    """Return the error for what the operating system refused."""
    return StorageError(
        f"The database in '{path}' cannot be used: {error.strerror or error}. Nothing in it was "
        "changed. Check the folder's permissions, its disk and its free space."
    )


def _make(path: Path) -> None:
    if not path.exists():
        _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent)


def _not_there(path: Path) -> str:
    if path.exists():
        return f"'{path}' is a file, not the folder of a database. Name another folder."
    return f"There is no folder '{path}'. Name the folder of the database, or create one first."


def _is_harmless(name: str) -> bool:
    """Tell whether a new folder may hold this: left by a mount, a desktop, an earlier creation."""
    return name in (CREATING, "lost+found") or name.startswith(".")


def _schema_version(data: bytes) -> int | None:
    lines = data.split(b"\n")
    if len(lines) != 3 or lines[0] != TITLE.encode() or lines[2]:
        return None
    word, _, number = lines[1].partition(b" ")
    if word != b"schema" or not number.isdigit() or len(number) > 9:
        return None
    return int(number)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
