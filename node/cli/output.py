"""How answers look: tables for people, one JSON document for programs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console(highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def show_json(value: object) -> None:
    """Print `value` as JSON: dataclasses as objects, byte strings as hexadecimal text."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: object) -> Any:
    """Return `value` as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (f.name for f in fields(value) if not f.name.startswith("_"))
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, dict):
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
        table.add_column(heading)
    for row in rows:
        table.add_row(*(cell(entry) for entry in row))
    console.print(table)


def show_pairs(pairs: Iterable[tuple[str, object]], title: str = "") -> None:
    """Print names and values below one another."""
    table = Table(title=title or None, title_justify="left", box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in pairs:
        table.add_row(name, cell(value))
    console.print(table)


def cell(value: object) -> str:
    """Return one value as short text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return ", ".join(cell(entry) for entry in value) or "-"
    return str(value)
