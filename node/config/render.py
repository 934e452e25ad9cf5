"""Settings back to TOML, for `init` and for nodes that a testnet starts as processes."""

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from node.config.model import NodeConfig


def render_config(config: NodeConfig) -> str:
    """Return TOML that `parse_config` reads back as `config`; defaults are left out.

    Paths are written as they are, so make them absolute or relative to the file's folder first.
    """
    return "\n".join(_table(config, "")) + "\n"


def _table(section: Any, prefix: str) -> Iterator[str]:
    inner = []
    for f in fields(section):
        value = getattr(section, f.name)
        if value == _default(f):
            continue
        if is_dataclass(value):
            inner.append((f.name, value))
        else:
            yield f"{f.name} = {_literal(value)}"
    for name, value in inner:
        yield f"\n[{prefix}{name}]"
        yield from _table(value, f"{prefix}{name}.")


def _default(f: Field[Any]) -> object:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + "".join(f"\n  {_literal(element)}," for element in value) + "\n]"
    if is_dataclass(value):
        given = ((f, getattr(value, f.name)) for f in fields(value))
        pairs = (f"{f.name} = {_literal(v)}" for f, v in given if v != _default(f))
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for U+007F, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"no TOML for {type(value).__name__}")
