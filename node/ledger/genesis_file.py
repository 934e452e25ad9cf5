"""The genesis as a file for people: JSON, keys in hexadecimal, certificates in base64.

It says exactly what the canonical encoding says, so load and save keep the chain id. Nothing has a
default: a default that changes with the program would change the chain.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from node.ledger.errors import InvalidGenesis
from node.ledger.genesis import (
    GENESIS_VERSION,
    Genesis,
    Institution,
    Member,
    NodeIdentity,
    Problem,
    raise_problems,
)
from node.ledger.limits import LIMIT_NAMES, Limits

FILE_BYTES_MAX = 16 * 1024 * 1024
FILE_FORMAT = "radledger genesis"

# An object of the file, or None where something else stands (and was complained about).
_Table: TypeAlias = dict[str, object] | None
_Row = TypeVar("_Row")


def load(path: Path) -> Genesis:
    """Return the genesis in the file at `path`.

    Raises `InvalidGenesis` with every problem of the file, or with why it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidGenesis([f"{path}: {error.strerror}"]) from error
    return from_json(content)


def save(genesis: Genesis, path: Path) -> None:
    """Write the file that `load` reads; an existing one is replaced whole or not at all.

    Raises OSError.
    """
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(to_json(genesis))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def from_json(content: bytes) -> Genesis:
    """Return the genesis that the JSON text describes. Raises `InvalidGenesis`."""
    if len(content) > FILE_BYTES_MAX:
        raise InvalidGenesis([f"the file has more than {FILE_BYTES_MAX} bytes"])
    reader = _Reader()
    genesis = reader.genesis(_parse(content))
    # What could not be read has a stand-in, of which the rules would only repeat the complaint.
    unread = tuple(place for place, _ in reader.problems)
    raise_problems(
        [*reader.problems, *(p for p in genesis.problems() if not p[0].startswith(unread))]
    )
    return genesis


def to_json(genesis: Genesis) -> str:
    """Return the text of the file for `genesis`."""
    document = {
        "format": FILE_FORMAT,
        "version": GENESIS_VERSION,
        "name": genesis.name,
        "time_ms": genesis.time_ms,
        "protocol_version": genesis.protocol_version,
        "parameters": {name: getattr(genesis.limits, name) for name in LIMIT_NAMES},
        "institutions": [
            {
                "name": institution.name,
                "display_name": institution.display_name,
                "country": institution.country,
                "members": [
                    {"public_key": member.public_key.hex(), "roles": list(member.roles)}
                    for member in institution.members
                ],
            }
            for institution in genesis.institutions
        ],
        "validators": _node_documents(genesis.validators),
        "observers": _node_documents(genesis.observers),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _node_documents(nodes: Sequence[NodeIdentity]) -> list[dict[str, str]]:
    return [
        {
            "institution": node.institution,
            "public_key": node.public_key.hex(),
            "certificate": base64.b64encode(node.certificate).decode("ascii"),
        }
        for node in nodes
    ]


class _RepeatedKey(ValueError):
    """Two readers of such an object could see two different files."""


def _parse(content: bytes) -> object:
    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _RepeatedKey
        return found

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=table)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidGenesis([f"{place}: {error.msg}"]) from error
    except _RepeatedKey as error:
        raise InvalidGenesis(["a key occurs twice in one object of the file"]) from error
    except (ValueError, RecursionError) as error:
        raise InvalidGenesis(["the file is not JSON in UTF-8"]) from error


class _Reader:
    """Reads the parsed file and notes what has the wrong form, instead of stopping there."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def genesis(self, document: object) -> Genesis:
        """Return what `document` says, with stand-ins where `problems` has something to say."""
        keys = ("format", "version", "name", "time_ms", "protocol_version", "parameters")
        top = self._table("", document, (*keys, "institutions", "validators", "observers"))
        if self._text(top, "", "format") != FILE_FORMAT:
            self._note("format", f"must be {FILE_FORMAT!r}")
        if self._integer(top, "", "version") != GENESIS_VERSION:
            self._note("version", f"this program knows version {GENESIS_VERSION}")
        raise_problems(self.problems if top is None else [])
        limits = self._table("parameters", self._value(top, "", "parameters"), LIMIT_NAMES)
        return Genesis(
            self._text(top, "", "name"),
            self._integer(top, "", "time_ms"),
            self._rows(top, "", "institutions", self._institution),
            self._rows(top, "", "validators", self._node),
            self._rows(top, "", "observers", self._node),
            Limits(*(self._integer(limits, "parameters", name) for name in LIMIT_NAMES)),
            self._integer(top, "", "protocol_version"),
        )

    def _institution(self, place: str, value: object) -> Institution:
        row = self._table(place, value, ("name", "display_name", "country", "members"))
        return Institution(
            self._text(row, place, "name"),
            self._text(row, place, "display_name"),
            self._rows(row, place, "members", self._member),
            self._text(row, place, "country"),
        )

    def _member(self, place: str, value: object) -> Member:
        row = self._table(place, value, ("public_key", "roles"))
        roles = self._rows(row, place, "roles", self._role)
        return Member(self._hex(row, place, "public_key"), tuple(sorted(roles)))

    def _node(self, place: str, value: object) -> NodeIdentity:
        row = self._table(place, value, ("institution", "public_key", "certificate"))
        return NodeIdentity(
            self._text(row, place, "institution"),
            self._hex(row, place, "public_key"),
            self._base64(row, place, "certificate"),
        )

    def _role(self, place: str, value: object) -> str:
        if isinstance(value, str):
            return value
        self._note(place, "must be text")
        return ""

    def _table(self, place: str, value: object, keys: Sequence[str]) -> _Table:
        if not isinstance(value, dict):
            self._note(place or "the file", "must be an object")
            return None
        for key in sorted(value.keys() - set(keys)):
            self._note(_join(place, key), "is not known here")
        return value

    def _rows(
        self, table: _Table, place: str, key: str, read: Callable[[str, object], _Row]
    ) -> tuple[_Row, ...]:
        value, place = self._value(table, place, key), _join(place, key)
        if isinstance(value, list):
            return tuple([read(f"{place}[{index}]", row) for index, row in enumerate(value)])
        self._note(place, "must be an array")
        return ()

    def _text(self, table: _Table, place: str, key: str) -> str:
        value = self._value(table, place, key)
        if isinstance(value, str):
            return value
        self._note(_join(place, key), "must be text")
        return ""

    def _integer(self, table: _Table, place: str, key: str) -> int:
        value = self._value(table, place, key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._note(_join(place, key), "must be an integer")
        return 0

    def _hex(self, table: _Table, place: str, key: str) -> bytes:
        text = self._text(table, place, key)
        try:
            return binascii.unhexlify(text)
        except ValueError:
            self._note(_join(place, key), "must be hexadecimal digits, without 0x")
            return b""

    def _base64(self, table: _Table, place: str, key: str) -> bytes:
        text = self._text(table, place, key)
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            self._note(_join(place, key), "must be base64")
            return b""

    def _value(self, table: _Table, place: str, key: str) -> object:
        if table is not None and key not in table:
            self._note(_join(place, key), "is missing")
        return None if table is None else table.get(key)

    def _note(self, place: str, sentence: str) -> None:
        """Note a problem, unless this place or what holds it has one already."""
        if not place.startswith(tuple(noted for noted, _ in self.problems)):
            self.problems.append((place, sentence))


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
