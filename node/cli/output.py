"""How answers look: tables for people, one JSON document for programs."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 500  # columns; a program that reads a table wants whole lines
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def console() -> Console:
    """Return where answers go; lines are cut for a terminal only."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show_json(value: object) -> None:
    """Print `value` as JSON: dataclasses as objects, byte strings as hexadecimal text."""
    print(json.dumps(plain(value), indent=2))


def show_json_line(value: object) -> None:
    """Print `value` as JSON in one line, at once: for programs that follow."""
    print(json.dumps(plain(value)), flush=True)


def plain(value: object) -> Any:
    """Return `value` as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (f.name for f in fields(value) if not f.name.startswith("_"))
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return value


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print rows as a table."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_text(entry) for entry in row))
    console().print(table)


def show_pairs(pairs: Iterable[tuple[str, object]], title: str = "") -> None:
    """Print names and values below one another."""
    table = Table(title=title or None, title_justify="left", box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, _text(value))
    console().print(table)


def say(line: str, style: str = "") -> None:
    """Print one line of text; nothing in it is read as markup."""
    console().print(Text(printable(line), style), soft_wrap=True)


def cell(value: object) -> str:
    """Return one value as short text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return ", ".join(cell(entry) for entry in value) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """Return `text` with nothing in it that a terminal would obey: file names may hold anything."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def time_text(time_ms: int) -> str:
    """Return a block's time in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{time_ms % 1000:03d} UTC"


def _text(value: object) -> Text:
    return value if isinstance(value, Text) else Text(cell(value))
