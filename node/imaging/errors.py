"""Errors of the imaging room. No message carries a value out of a data set: a name or a number in
it may identify a patient. A file's own name may appear, since the operator chose it."""

from dataclasses import dataclass

from consensus.errors import InvariantViolation, require

__all__ = [
    "NOT_NOW",
    "InvalidManifest",
    "InvariantViolation",
    "UnreadableInstance",
    "VaultDamaged",
    "VaultError",
    "VaultTooNew",
    "WrongPassphrase",
    "require",
]


NOT_NOW = "not_now"


@dataclass  # not frozen: a traceback is written to an exception
class UnreadableInstance(Exception):
    """A file cannot be committed to.

    `code` is one of: foreign (not DICOM), directory (a DICOMDIR), unreadable (the system would not
    let us), not_now (this machine lacks memory, disk or descriptors: nothing is said of the file,
    and it is to be read again), empty, truncated, malformed, unknown_syntax, too_large, bomb
    (inflates beyond reason), limit (a structure beyond our bounds), bad_uid, no_uid, pixels (image
    and its description disagree), changed (while being read), decoder (a codec failed); at a
    gateway also parser_died and parser_hung (the process that read it); and of what a DICOMDIR
    names: missing, outside (of its folder). `name` is the file's path as it was given.
    """

    name: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.name, self.code, self.reason)  # it crosses process boundaries


class InvalidManifest(ValueError):
    """The bytes are no manifest, or a manifest that contradicts itself."""


class VaultError(Exception):
    """The vault cannot be used; nothing in it was changed."""


class WrongPassphrase(VaultError):
    """The passphrase does not open this vault."""


class VaultDamaged(VaultError):
    """The file is no vault, or its contents fail their checks. Restore it from a backup."""


class VaultTooNew(VaultError):
    """A newer program wrote this vault."""


class BeingSplit(VaultError):
    """The study is being split into parts, and takes nothing before that has come to its end."""
