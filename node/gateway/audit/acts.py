"""What is recorded: the kinds of acts, and how each is told in DICOM's words (PS3.15 A.5.3).

`KINDS` is the whole list. An event's id is of CID 400, its type of CID 401 (PS3.16); besides, every
message carries our own word as a type of the coding scheme 99RADLEDGER.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple

TEXT_MAX = 128  # characters of who, where, to and code
NAMED_MAX = 32  # studies named by one record; `unnamed` says how many more there were


class Outcome(IntEnum):
    """EventOutcomeIndicator."""

    SUCCESS = 0
    MINOR = 4
    SERIOUS = 8
    MAJOR = 12  # records or images are lost


class Code(NamedTuple):
    """A code of DICOM's own coding scheme, DCM."""

    value: str
    meaning: str


class Way(Enum):
    """In which direction an act goes: who is source and who destination of it."""

    HERE = "here"  # it concerns this application alone
    IN = "in"  # from `who` to us
    OUT = "out"  # from us to `to`, or else to `who`


ACTIVITY = Code("110100", "Application Activity")
BEGIN = Code("110102", "Begin Transferring DICOM Instances")
ACCESSED = Code("110103", "DICOM Instances Accessed")
TRANSFERRED = Code("110104", "DICOM Instances Transferred")
DELETED = Code("110105", "DICOM Study Deleted")
EXPORT = Code("110106", "Export")
IMPORT = Code("110107", "Import")
QUERY = Code("110112", "Query")
ALERT = Code("110113", "Security Alert")

START = Code("110120", "Application Start")
STOP = Code("110121", "Application Stop")
NODE = Code("110126", "Node Authentication")
RESTRICTED = Code("110132", "Use of Restricted Function")
RECORDING_STOPPED = Code("110133", "Audit Recording Stopped")
RECORDING_STARTED = Code("110134", "Audit Recording Started")


class Kind(NamedTuple):
    """How a kind of act is told."""

    event: Code
    action: str  # EventActionCode: C, R, U, D or E
    way: Way
    words: str
    type: Code | None = None
    life_cycle: str = ""  # ParticipantObjectDataLifeCycle


KINDS: dict[str, Kind] = {
    "trail_began": Kind(ALERT, "E", Way.HERE, "the audit trail began", RECORDING_STARTED),
    "trail_full": Kind(
        ALERT, "E", Way.HERE, "the audit trail is full: acts are not recorded", RECORDING_STOPPED
    ),
    "trail_resumed": Kind(
        ALERT, "E", Way.HERE, "acts are recorded again, some were not", RECORDING_STARTED
    ),
    "trail_trimmed": Kind(
        ALERT, "E", Way.HERE, "old records that the repository has were removed here", RESTRICTED
    ),
    "started": Kind(ACTIVITY, "E", Way.HERE, "the gateway started", START),
    "stopped": Kind(ACTIVITY, "E", Way.HERE, "the gateway stopped", STOP),
    "receiver_ended": Kind(ACTIVITY, "E", Way.HERE, "the receiving process ended", STOP),
    "association_refused": Kind(ALERT, "E", Way.IN, "a connection was refused", NODE),
    "peer_not_reached": Kind(
        ALERT, "E", Way.OUT, "a peer of this hospital could not be reached, or was another", NODE
    ),
    "connection_ended": Kind(ALERT, "E", Way.IN, "a connection was cut off", NODE),
    "receiving": Kind(BEGIN, "E", Way.IN, "a sender began to send a study", life_cycle="1"),
    "stored": Kind(TRANSFERRED, "C", Way.IN, "instances were stored by STOW-RS", life_cycle="1"),
    "registered": Kind(
        ACCESSED, "C", Way.HERE, "a version was registered and stored", life_cycle="13"
    ),
    "refused": Kind(TRANSFERRED, "C", Way.IN, "an instance, or a message of them, was refused"),
    "conflict": Kind(TRANSFERRED, "C", Way.IN, "an instance contradicts another copy of it"),
    "lost": Kind(ACCESSED, "D", Way.HERE, "files of acknowledged instances are gone"),
    "discarded": Kind(ACCESSED, "D", Way.HERE, "an operator removed a file from quarantine"),
    "searched": Kind(QUERY, "E", Way.IN, "a search of this hospital's studies"),
    "retrieving": Kind(BEGIN, "E", Way.OUT, "a retrieval began", life_cycle="6"),
    "retrieved": Kind(TRANSFERRED, "R", Way.OUT, "instances were given out", life_cycle="6"),
    "web_refused": Kind(ALERT, "E", Way.IN, "a DICOMweb request was turned away", NODE),
    "delivering": Kind(BEGIN, "E", Way.OUT, "a delivery to a PACS began", life_cycle="6"),
    "delivered": Kind(TRANSFERRED, "R", Way.OUT, "a study was delivered", life_cycle="6"),
    "key_given": Kind(EXPORT, "R", Way.OUT, "a wrapped study key goes out", life_cycle="11"),
    "chunks_begun": Kind(EXPORT, "R", Way.OUT, "ciphertext begins to go out", life_cycle="11"),
    "chunks_given": Kind(EXPORT, "R", Way.OUT, "ciphertext went out", life_cycle="11"),
    "transfer_refused": Kind(EXPORT, "R", Way.OUT, "a hospital was refused a transfer"),
    "transfer_stopped": Kind(EXPORT, "R", Way.OUT, "a running transfer was cut"),
    "peer_refused": Kind(ALERT, "E", Way.IN, "the exchange refused a connection", NODE),
    "fetched": Kind(IMPORT, "C", Way.IN, "a granted study was fetched", life_cycle="12"),
    "mended": Kind(
        IMPORT, "C", Way.IN, "lost ciphertext came back from another hospital", life_cycle="12"
    ),
    "medium": Kind(IMPORT, "C", Way.IN, "a medium in the watched folder was taken up"),
    "exported": Kind(
        EXPORT, "R", Way.OUT, "an operator has a study written to a folder", life_cycle="10"
    ),
    "fetch_refused": Kind(IMPORT, "C", Way.IN, "a granted study was not taken"),
    "search_asked": Kind(QUERY, "E", Way.OUT, "another hospital was asked for studies"),
    "search_answered": Kind(QUERY, "E", Way.IN, "another hospital's question was answered"),
    "erased": Kind(DELETED, "D", Way.HERE, "a study was erased", life_cycle="15"),
}


@dataclass(frozen=True, slots=True)
class Act:
    """One act. Texts beyond their bound are cut, characters that are not ASCII replaced.

    Nothing here names a patient. `studies` are ids on the ledger; `arriving` is the spool's word
    for a study that has none yet; `study_uids` stay empty unless the config wants them.
    """

    kind: str
    outcome: Outcome = Outcome.SUCCESS
    who: str = ""  # AE title, institution, source
    where: str = ""  # IP address
    to: str = ""  # AE title or institution
    code: str = ""
    request: bytes | None = None  # 16 bytes
    studies: tuple[bytes, ...] = ()  # 16 bytes each
    arriving: str = ""
    version: int = 0
    instances: int = 0
    size: int = 0  # bytes
    study_uids: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind} is no kind of act")
