"""Answers as JSON: dataclasses become objects, bytes become lower-case hex, and back by type.

Encoding is generic, so that a view of the ledger needs no second description here; decoding is
compiled once per dataclass from its type hints.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

T = TypeVar("T")


class NotAnAnswer(ValueError):
    """The JSON value does not have the shape of the expected answer; names the field."""


def encode(value: object) -> bytes:
    """Return compact JSON. Raises `TypeError` for what has no form here (integers: 64 bits)."""
    return orjson.dumps(value, default=_plain)


def decode(kind: type[T], value: object) -> T:
    """Return the dataclass `kind` that `value`, parsed JSON, describes.

    Unknown members are ignored, so that a newer node may say more. Raises `NotAnAnswer`.
    """
    decoded: T = decoder(kind)(value)  # type: ignore[arg-type]  # a class is hashable
    return decoded


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


@cache
def decoder(kind: Any) -> Callable[[Any], Any]:
    """Return the function that reads parsed JSON as `kind`; made once per kind."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _object(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array(decoder(arguments[0]))
    if origin is tuple:
        return _row([decoder(argument) for argument in arguments])
    if origin is frozenset:
        inner = _array(decoder(arguments[0]))
        return lambda value: frozenset(inner(value))
    if origin is Literal:
        return _one_of(frozenset(arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(decoder(arguments[1]))
    if kind in (str, int, bool, float):
        return _scalar(kind)
    if kind is bytes:
        return _from_hex
    return _anything


def _object(kind: type) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    parts = [(f.name, decoder(hints[f.name])) for f in fields(kind) if f.init]

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise NotAnAnswer(f"{kind.__name__} is not an object")
        arguments = {}
        for name, part in parts:
            if name not in value:
                raise NotAnAnswer(f"{kind.__name__}.{name} is missing")
            try:
                arguments[name] = part(value[name])
            except NotAnAnswer as error:
                raise NotAnAnswer(f"{kind.__name__}.{name}: {error}") from error
        return kind(**arguments)

    return read


def _union(arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    """`X | None` only: nothing else can be told apart in JSON."""
    inner = [argument for argument in arguments if argument is not type(None)]
    read = decoder(inner[0]) if len(inner) == 1 else _anything
    return lambda value: None if value is None else read(value)


def _array(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def elements(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise NotAnAnswer("not an array")
        return tuple([read(element) for element in value])

    return elements


def _row(reads: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def row(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(reads):
            raise NotAnAnswer(f"not an array of {len(reads)}")
        return tuple([read(each) for read, each in zip(reads, value, strict=True)])

    return row


def _mapping(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def members(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise NotAnAnswer("not an object")
        return {name: read(member) for name, member in value.items()}

    return members


def _scalar(kind: type) -> Callable[[Any], Any]:
    def scalar(value: Any) -> Any:
        if type(value) is kind or (kind is float and type(value) is int):
            return value
        raise NotAnAnswer(f"not of type {kind.__name__}")

    return scalar


def _one_of(values: frozenset[Any]) -> Callable[[Any], Any]:
    def member(value: Any) -> Any:
        if type(value) is str and value in values:
            return value
        raise NotAnAnswer("not one of the known words")

    return member


def _from_hex(value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (ValueError, TypeError) as error:
        raise NotAnAnswer("not hexadecimal text") from error


def _anything(value: Any) -> Any:
    return value
