"""Parts of a DICOM study in the vault: which series belongs where, and how a part is split.

A DICOM study is one part until series are set apart; each part is a study of the ledger, with its
own id and salt. A series belongs to one part for good, so that what comes late follows the rest of
it. A split goes through these steps, and each is one transaction of the database:

    planned     two new parts; the study that is split, and all others of that Study Instance UID,
                take no new version
    submitted   both parts' first versions are on their way in one transaction of the ledger
    done        both are final; the study that was split is superseded, its series have moved

A split that the ledger refused is dropped, and all is as it was.
"""

import secrets
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from node.imaging.errors import BeingSplit, VaultError
from node.imaging.manifest import ID_BYTES, SALT_BYTES, Manifest
from node.imaging.vault_rows import Rows, State, StudyRow, VaultStudy, VaultVersion
from node.imaging.vault_schema import Role

_REST, _CUT = 1, 2  # which piece of its source a part is
_GONE = b""  # in place of the id of a part that was deleted: its series stays apart
_TAKING = (Role.MAIN, Role.APART)


@dataclass(frozen=True, slots=True)
class Split:
    """A study that is split in two, or was."""

    source: VaultStudy
    rest: VaultStudy  # what stays together
    apart: VaultStudy  # what was set apart
    is_done: bool


class Parts(Rows):
    """What the vault knows of parts."""

    def find_study(self, study_uid: str) -> VaultStudy | None:
        """Return the main part of the study with that Study Instance UID, or None."""
        return next((each for each in self.parts(study_uid) if each.role is Role.MAIN), None)

    def parts(self, study_uid: str) -> list[VaultStudy]:
        """Return the parts that make up the study with that Study Instance UID, the main first."""
        with self._read() as connection:
            rows = self._rows(connection, self._uid_lookup(study_uid))
        return [row.study for row in rows if row.study.role in _TAKING]

    def study(self, study_uid: str, subject_id: bytes) -> VaultStudy:
        """Return the main part of the study with that UID; a new one gets a random id and salt."""
        with self._change() as connection:
            lookup = self._uid_lookup(study_uid)
            rows = self._rows(connection, lookup)
            known = next((row.study for row in rows if row.study.role is Role.MAIN), None)
            return known or self._new(connection, lookup, subject_id, Role.MAIN)

    def assign(
        self, study_uid: str, subject_id: bytes, series: Mapping[str, bool]
    ) -> dict[str, VaultStudy]:
        """Return the part of each series (by Series Instance UID); `series` says of which ones it
        is wished that they be set apart, each by itself.

        The wish counts for a series that is new. Raises `BeingSplit` while no part takes anything.
        """
        lookup = self._uid_lookup(study_uid)
        with self._change() as connection:
            rows = self._rows(connection, lookup)
            _require_not_split(rows)
            known = self._series(connection, lookup)
            parts = {row.study.study_id: row.study for row in rows if row.study.role in _TAKING}
            main = next((part for part in parts.values() if part.role is Role.MAIN), None)
            # Of a study that an earlier schema knew, all may be in the main part.
            is_known = main is None or bool(known)
            found: dict[str, VaultStudy] = {}
            for uid, wished in series.items():
                place = self._series_lookup(study_uid, uid)
                part = parts.get(known[place]) if place in known else None
                if part is None and (place in known or (wished and is_known)):
                    part = self._new(connection, lookup, subject_id, Role.APART)
                elif part is None:
                    main = main or self._new(connection, lookup, subject_id, Role.MAIN)
                    part = main
                found[uid] = part
                if is_known and known.get(place) != part.study_id:
                    self._put_series(connection, lookup, place, part.study_id)
        return found

    def part_of(self, study_uid: str, series_uid: str) -> VaultStudy | None:
        """Return the part that has the series, or would take it; None if there is none."""
        lookup = self._uid_lookup(study_uid)
        with self._read() as connection:
            known = self._series(connection, lookup).get(self._series_lookup(study_uid, series_uid))
            rows = self._rows(connection, lookup)
        parts = [row.study for row in rows if row.study.role in _TAKING]
        if known is None:
            return next((part for part in parts if part.role is Role.MAIN), None)
        return next((part for part in parts if part.study_id == known), None)

    # Splitting

    def split_of(self, study_id: bytes) -> Split | None:
        """Return the split of the study with this id on the ledger, None if there was none."""
        with self._read() as connection:
            row = self._row_of(connection, study_id)
            return None if row is None else self._split(connection, row)

    def plan_split(
        self, study_id: bytes, study_uid: str, rest: Collection[str], apart: Collection[str]
    ) -> Split:
        """Return the split of a study into the series `rest` and `apart` (UIDs), planned now or
        before; the parts have random ids and salts.

        Raises `VaultError` if another one of a study with that UID is under way, it is planned
        with other series, or the study is not one whose newest version is final.
        """
        lookup = self._uid_lookup(study_uid)
        places = [self._places(study_uid, each) for each in (rest, apart)]
        with self._change() as connection:
            row = self._row_of(connection, study_id)
            if row is None or row.lookup != lookup:
                raise VaultError("the vault does not have this study")
            if (planned := self._planned(connection, row)) is not None:
                if [part.series for part in planned] != places:
                    raise VaultError("a split with other series is under way; end that one first")
                return _split_of(row, planned)
            _require_not_split(self._rows(connection, lookup))
            if row.study.role not in _TAKING:
                raise VaultError("other parts took the place of this study")
            self._require_settled(connection, study_id)
            drawn = partial(_drawn, lookup, row.study.subject_id, Role.PLANNED, study_id)
            made = [
                drawn(_REST, row.study.role, places[0]),
                drawn(_CUT, Role.APART, places[1]),
            ]
            for part in made:
                self._put_study(connection, part)
            return _split_of(row, made)

    def is_apart(self, study_id: bytes, study_uid: str, series_uid: str) -> bool:
        """Whether a planned split of the study sets the series apart."""
        place = self._series_lookup(study_uid, series_uid)
        with self._read() as connection:
            row = self._row_of(connection, study_id)
            planned = None if row is None else self._planned(connection, row)
        return planned is not None and place in planned[1].series

    def submit_split(
        self, manifests: Sequence[Manifest], transaction_id: bytes, transaction: bytes
    ) -> None:
        """Keep the signed transaction that registers both parts, before it is sent.

        Raises `VaultError` if a part is not there, or another transaction was submitted for it.
        """
        with self._change() as connection:
            for manifest in manifests:
                known = self._need(connection, manifest.study_id, manifest.version)
                if known.state is State.FINAL or known.manifest.root != manifest.root:
                    raise VaultError("the study changed in the vault meanwhile; run it again")
                if known.transaction_id not in (None, transaction_id):
                    raise VaultError("another transaction was submitted for this split")
                place = transaction_id, transaction, None
                self._put(connection, VaultVersion(manifest, State.SUBMITTED, *place))

    def finish_split(self, study_id: bytes, height: int) -> None:
        """Put the parts in the place of the study that was split: both are final at `height`.

        The same call again changes nothing.
        """
        with self._change() as connection:
            row = self._row_of(connection, study_id)
            planned = None if row is None else self._planned(connection, row)
            if row is None or planned is None:
                return
            self._supersede(connection, row, planned[0].study.study_id)
            for part in planned:
                known = self._need(connection, part.study.study_id, 1)
                place = known.transaction_id, None, height
                self._put(connection, VaultVersion(known.manifest, State.FINAL, *place))
                study = replace(part.study, role=part.becomes)
                source = part.source if row.study.salt else None
                self._put_study(connection, replace(part, study=study, source=source, series=()))
                for series in part.series:
                    self._put_series(connection, row.lookup, series, study.study_id)

    def drop_split(self, study_id: bytes) -> None:
        """Forget a split that the ledger does not have; the study takes versions again.

        One that was erased meanwhile is gone now, with all of it.
        """
        with self._change() as connection:
            row = self._row_of(connection, study_id)
            planned = None if row is None else self._planned(connection, row)
            if row is None or planned is None:
                return
            gone = [part.study.study_id for part in planned]
            if not row.study.salt:
                gone.append(study_id)
            for each in gone:
                self._delete(connection, each)

    def _supersede(self, connection: sqlite3.Connection, row: StudyRow, rest: bytes) -> None:
        """Let a study take nothing any more; its series go to the part with the id `rest`, also
        those of which nothing was registered yet."""
        for series, study_id in self._series(connection, row.lookup).items():
            if study_id == row.study.study_id:
                self._put_series(connection, row.lookup, series, rest)
        if not row.study.salt:  # erased meanwhile
            self._delete(connection, row.study.study_id)
            return
        study = replace(row.study, role=Role.SUPERSEDED)
        self._put_study(connection, replace(row, study=study))

    def _new(
        self, connection: sqlite3.Connection, lookup: bytes, subject_id: bytes, role: Role
    ) -> VaultStudy:
        row = _drawn(lookup, subject_id, role)
        self._put_study(connection, row)
        return row.study

    def _places(self, study_uid: str, series: Collection[str]) -> tuple[bytes, ...]:
        return tuple(sorted(self._series_lookup(study_uid, uid) for uid in series))

    def _split(self, connection: sqlite3.Connection, row: StudyRow) -> Split | None:
        made = self._made(connection, row)
        return _split_of(row, made) if len(made) == 2 else None

    def _planned(self, connection: sqlite3.Connection, row: StudyRow) -> list[StudyRow] | None:
        """Return both parts, the rest first, of a split of the study that is under way."""
        made = self._made(connection, row)
        return [part for part in made if part.study.role is Role.PLANNED] or None

    def _made(self, connection: sqlite3.Connection, row: StudyRow) -> list[StudyRow]:
        rows = self._rows(connection, row.lookup)
        made = [each for each in rows if each.source == row.study.study_id]
        return sorted(made, key=lambda each: each.piece)

    def _require_settled(self, connection: sqlite3.Connection, study_id: bytes) -> None:
        """Raise `VaultError` unless the newest version is final; one that was only prepared was
        never sent, and goes."""
        lookup = self._id_lookup(study_id)
        prepared = lookup, State.PREPARED.value
        connection.execute("DELETE FROM versions WHERE id_lookup = ? AND state = ?", prepared)
        sql = "SELECT state FROM versions WHERE id_lookup = ? ORDER BY version DESC LIMIT 1"
        newest = connection.execute(sql, (lookup,)).fetchone()
        if newest is None or State(newest[0]) is not State.FINAL:
            raise VaultError("a version of this study is on its way; wait until it is registered")

    def _require_taking(self, connection: sqlite3.Connection, study_id: bytes) -> None:
        """Raise `VaultError` if the study takes no new version."""
        row = self._row_of(connection, study_id)
        if row is None:
            raise VaultError("the study was deleted from the vault meanwhile")
        if row.study.role is Role.SUPERSEDED:
            raise VaultError("other parts took the place of this study; run the command again")
        if row.study.role is not Role.PLANNED:
            _require_not_split(self._rows(connection, row.lookup))

    def _delete_or_empty(self, connection: sqlite3.Connection, study_id: bytes) -> bool:
        row = self._row_of(connection, study_id)
        if row is None or self._planned(connection, row) is None:
            return self._delete(connection, study_id)
        lookup = self._id_lookup(study_id)
        connection.execute("DELETE FROM versions WHERE id_lookup = ?", (lookup,))
        self._put_study(connection, replace(row, study=replace(row.study, salt=b"")))
        return True

    def _delete(self, connection: sqlite3.Connection, study_id: bytes) -> bool:
        """Remove a study with its versions, and what leads to it."""
        row = self._row_of(connection, study_id)
        lookup = self._id_lookup(study_id)
        connection.execute("DELETE FROM versions WHERE id_lookup = ?", (lookup,))
        connection.execute("DELETE FROM studies WHERE id_lookup = ?", (lookup,))
        if row is None:
            return False
        left = self._rows(connection, row.lookup)
        for each in left:
            if each.source == study_id:
                self._put_study(connection, replace(each, source=None))
        self._forget_series(connection, row, bool(left))
        return True

    def _forget_series(
        self, connection: sqlite3.Connection, row: StudyRow, are_parts_left: bool
    ) -> None:
        """Let no series lead to a study that was deleted. One that was set apart stays so while
        there are other parts: it must never come into one that others may see."""
        if not are_parts_left:
            connection.execute("DELETE FROM series WHERE study = ?", (row.lookup,))
            return
        for series, study_id in self._series(connection, row.lookup).items():
            if study_id != row.study.study_id:
                continue
            if row.study.role is Role.APART:
                self._put_series(connection, row.lookup, series, _GONE)
            else:
                connection.execute("DELETE FROM series WHERE lookup = ?", (series,))


def _require_not_split(rows: Collection[StudyRow]) -> None:
    if any(row.study.role is Role.PLANNED for row in rows):
        raise BeingSplit("the study is being split; end that by the command that began it")


def _drawn(
    lookup: bytes,
    subject_id: bytes,
    role: Role,
    source: bytes | None = None,
    piece: int = 0,
    becomes: Role | None = None,
    series: tuple[bytes, ...] = (),
) -> StudyRow:
    """Return a new part under a random id and salt."""
    drawn = secrets.token_bytes(ID_BYTES), subject_id, secrets.token_bytes(SALT_BYTES)
    return StudyRow(lookup, VaultStudy(*drawn, role), source, piece, becomes or role, series)


def _split_of(row: StudyRow, made: Sequence[StudyRow]) -> Split:
    rest, apart = made
    is_done = rest.study.role is not Role.PLANNED
    return Split(row.study, rest.study, apart.study, is_done)
