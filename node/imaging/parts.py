"""Which files of a DICOM study belong to which part of it: see `vault_parts`.

A rule sets series apart ahead, before anything of them is registered: each such series becomes a
part by itself. What a rule looks at stays in this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from node.config.model import GatewayConfig
from node.imaging import commitment
from node.imaging.commitment import CommittedFile
from node.imaging.reader import StudyFiles
from node.imaging.vault import Vault
from node.imaging.vault_rows import VaultStudy


@dataclass(frozen=True, slots=True)
class ApartRule:
    """Which series are registered apart: all that is given must hold."""

    modality: str | None = None  # (0008,0060)
    description: str | None = field(default=None, repr=False)  # contained in (0008,103E), any case

    def matches(self, read: CommittedFile) -> bool:
        """Whether the series of an instance is to be set apart."""
        if self.modality is None and self.description is None:
            return False
        modality = read.text(commitment.MODALITY).upper()
        if self.modality is not None and modality != self.modality.upper():
            return False
        text = read.text(commitment.SERIES_DESCRIPTION).casefold()
        return self.description is None or self.description.casefold() in text


def rules_of_config(config: GatewayConfig | None) -> tuple[ApartRule, ...]:
    """Return the rules that the config of a gateway has; none without a gateway."""
    rules = () if config is None else config.apart
    return tuple(ApartRule(rule.modality, rule.description) for rule in rules)


def divided(
    files: StudyFiles, vault: Vault, rules: Sequence[ApartRule]
) -> list[tuple[VaultStudy, StudyFiles]]:
    """Return the parts to which the files of one patient's study belong, with the files of each.

    New series and parts are noted in the vault. Copies and conflicts are told with the first part.
    Raises `BeingSplit` while the study takes nothing, and what the vault does.
    """
    wishes: dict[str, bool] = {}
    for read in files.files.values():
        series = _series(read)
        wishes[series] = wishes.get(series, False) or any(rule.matches(read) for rule in rules)
    places = vault.assign(files.study_uid, _subject(files, vault), wishes)
    grouped: dict[bytes, tuple[VaultStudy, StudyFiles]] = {}
    for sop_uid, read in files.files.items():
        part = places[_series(read)]
        _, group = grouped.setdefault(part.study_id, (part, StudyFiles(files.study_uid)))
        group.files[sop_uid] = read
    (first, group), *others = sorted(grouped.values(), key=lambda each: each[0].role)
    told = replace(group, repeated=files.repeated, conflicts=files.conflicts)
    return [(first, told), *others]


def _subject(files: StudyFiles, vault: Vault) -> bytes:
    """Return the pseudonym that the study's parts have, or the patient's."""
    if known := vault.parts(files.study_uid):
        return known[0].subject_id
    read = next(iter(files.files.values()))
    patient = read.text(commitment.PATIENT_ID), read.text(commitment.PATIENT_ISSUER)
    # Without a patient id two studies cannot be known to be of one person.
    return vault.subject_id(*(patient if patient[0] else ("", files.study_uid)))


def _series(read: CommittedFile) -> str:
    return read.text(commitment.SERIES_INSTANCE)
