"""Read the config file: settings, or every problem in it with its line."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from node.config.checks import cross_problems
from node.config.errors import ConfigError, Problem
from node.config.model import NodeConfig
from node.config.toml_lines import KeyPath, key_lines

CONFIG_BYTES_MAX = 1024 * 1024

_LINE = re.compile(r"\(at line (\d+), column (\d+)\)")


def load_config(path: Path) -> NodeConfig:
    """Return the settings in the TOML file `path`; relative paths in it start at its folder.

    Raises `ConfigError` with every problem of the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = Problem(0, "", f"cannot be read: {reason}")
        raise ConfigError(str(path), [problem]) from error
    return parse_config(content, name=str(path), base=path.absolute().parent)


def parse_config(content: bytes, *, name: str, base: Path) -> NodeConfig:
    """Return the settings in the TOML text `content`; `name` stands in front of each problem.

    Raises `ConfigError`.
    """
    text = _text(content, name)
    document, lines = _document(text, name)
    problems = _unknown_keys(document, NodeConfig, (), lines)
    config: NodeConfig | None = None
    try:
        config = _ADAPTER.validate_python(document, context={"base": base})
    except ValidationError as error:
        problems += [_problem(detail, lines) for detail in error.errors(include_url=False)]
    problems += [
        Problem(_line(path, lines), _dotted(path), sentence)
        for path, sentence in cross_problems(document)
    ]
    if problems or config is None:
        raise ConfigError(name, problems)
    return config


_ADAPTER: TypeAdapter[NodeConfig] = TypeAdapter(NodeConfig)


def _text(content: bytes, name: str) -> str:
    if len(content) > CONFIG_BYTES_MAX:
        problem = Problem(0, "", f"is larger than {CONFIG_BYTES_MAX} bytes: not a config")
        raise ConfigError(name, [problem])
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(name, [Problem(line, "", "is not UTF-8 text")]) from error


def _document(text: str, name: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        return tomllib.loads(text), key_lines(text)
    except RecursionError as error:
        raise ConfigError(name, [Problem(0, "", "is nested too deeply")]) from error
    except ValueError as error:
        raise ConfigError(name, [_syntax_problem(error, text)]) from error


def _syntax_problem(error: ValueError, text: str) -> Problem:
    found = _LINE.search(str(error))
    if found:
        sentence = f"{str(error)[: found.start()].strip()} (column {found.group(2)})"
        return Problem(int(found.group(1)), "", sentence)
    if "integer string conversion" in str(error):
        return Problem(0, "", "has a number of too many digits")
    at_end = "at end of document" in str(error)
    sentence = str(error).replace("(at end of document)", "").strip()
    return Problem(text.rstrip().count("\n") + 1 if at_end else 0, "", sentence)


def _unknown_keys(
    table: Mapping[str, Any], kind: type, path: KeyPath, lines: Mapping[KeyPath, int]
) -> list[Problem]:
    """Return a problem for every key that `kind` has no field for, at any depth."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    problems = []
    for key, value in table.items():
        here = (*path, key)
        if key not in known:
            sentence = f"unknown key{_suggestion(key, known, path)}"
            problems.append(Problem(_line(here, lines), _dotted(here), sentence))
            continue
        inner = _section(hints[key])
        if inner is None:
            continue
        for place, element in _tables(value, here):
            problems += _unknown_keys(element, inner, place, lines)
    return problems


def _section(hint: Any) -> type | None:
    """Return the dataclass that `hint` is, or is a tuple of."""
    if isinstance(hint, type):
        return hint if is_dataclass(hint) else None
    return next((found for inner in get_args(hint) if (found := _section(inner))), None)


def _tables(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
    elif isinstance(value, list):
        for index, element in enumerate(value):
            if isinstance(element, dict):
                yield (*path, index), element


def _suggestion(key: str, known: Mapping[str, Field[Any]], path: KeyPath) -> str:
    close = get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    elsewhere = [dotted for dotted in _every_key(NodeConfig, ()) if dotted.endswith(f".{key}")]
    if path and key in {f.name for f in fields(NodeConfig)}:
        elsewhere = [f"{key} at the top of the file"]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; known here: {', '.join(known)}"


def _every_key(kind: type, path: KeyPath) -> Iterator[str]:
    hints = get_type_hints(kind)
    for f in fields(kind):
        here = (*path, f.name)
        yield _dotted(here)
        inner = _section(hints[f.name])
        if inner is not None:
            yield from _every_key(inner, here)


def _problem(detail: ErrorDetails, lines: Mapping[KeyPath, int]) -> Problem:
    path = detail["loc"]
    return Problem(_line(path, lines), _dotted(path), _sentence(detail))


def _sentence(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    value = "the value" if _is_secret(detail) else _shown(detail["input"])
    match detail["type"]:
        case "missing":
            return "is needed and is not there"
        case "greater_than_equal":
            return f"{value} is below {context['ge']}"
        case "less_than_equal":
            return f"{value} is above {context['le']}"
        case "int_type" | "int_from_float" | "int_parsing":
            return f"{value} is not a whole number"
        case "string_type":
            return f"{value} is not text"
        case "bool_type":
            return f"{value} is neither true nor false"
        case "string_pattern_mismatch":
            return f"{value} does not have the form {context['pattern']}"
        case "literal_error":
            return f"{value} is not one of {context['expected']}"
        case "too_long":
            return f"has {context['actual_length']} entries; at most {context['max_length']}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{value} is not a table of settings"
        case "tuple_type":
            return f"{value} is not an array"
        case "value_error":
            return str(context["error"])
        case _:
            return detail["msg"]


def _is_secret(detail: ErrorDetails) -> bool:
    """A passphrase or token may stand where its file's name belongs; it is not repeated."""
    return any("passphrase" in str(part) or "token" in str(part) for part in detail["loc"])


def _shown(value: object) -> str:
    """Return a scalar as it would stand in the file, cut short; containers by their kind."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > 64:
            return "a number of more than 64 bits"
        case int() | float():
            return str(value)
        case str():
            return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _line(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """Return the line of `path`, or of the nearest table around it; 1 at the least."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
