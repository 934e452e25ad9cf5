"""Checks of single arguments. Each returns the value, or raises `Refused` naming the argument.

A refusal never repeats the value: what somebody wrongly put there may identify a patient.
"""

import re
from collections.abc import Set
from typing import NoReturn

from consensus.wire import Value
from node.ledger.errors import Refused

ID_BYTES = 16
DIGEST_BYTES = 32

# Bytes of which record numbers, names, dates and UIDs consist. Sixteen random bytes are all of
# these once in over two hundred million times; a name or number put in an id's place always is.
_TEXT = bytes(
    b for b in range(128) if b == 0 or bytes((b,)).isalnum() or bytes((b,)) in b" ^.-_/,:;'()"
)
# Without dots and without runs of five digits: neither a UID nor a record number is a model name.
_MODEL_NAME = re.compile(r"(?=.{1,48}\Z)(?!.*\d{5})[a-z][a-z0-9]*(?:[-_/][a-z0-9]+)*")
_MODEL_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,3}(?:-[a-z]{1,8}\d{0,3})?")


def refuse(argument: str, expected: str) -> NoReturn:
    """Raise the refusal of `argument`."""
    raise Refused("operation_invalid", f"{argument} must be {expected}")


def fields(arguments: tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """Return `arguments` if there are `count` of them."""
    if len(arguments) != count:
        raise Refused(
            "operation_invalid", f"{count} arguments are needed, {len(arguments)} were given"
        )
    return arguments


def random_id(value: Value, argument: str) -> bytes:
    """Return `value` if it is 16 bytes that are not text."""
    if type(value) is not bytes or len(value) != ID_BYTES or not value.translate(None, _TEXT):
        refuse(argument, f"{ID_BYTES} random bytes")
    return value


def digest(value: Value, argument: str) -> bytes:
    """Return `value` if it is 32 bytes that are not text."""
    if type(value) is not bytes or len(value) != DIGEST_BYTES or not value.translate(None, _TEXT):
        refuse(argument, f"a digest of {DIGEST_BYTES} bytes")
    return value


def word(value: Value, words: Set[str], argument: str) -> str:
    """Return `value` if it is one of the listed `words`."""
    if type(value) is not str or value not in words:
        refuse(argument, f"a listed word ({len(words)} are; see the vocabulary)")
    return value


def integer(value: Value, low: int, high: int, argument: str) -> int:
    """Return `value` if it is an integer from `low` to `high`, both included."""
    if type(value) is not int or not low <= value <= high:
        refuse(argument, f"an integer from {low} to {high}")
    return value


def model_name(value: Value, argument: str) -> str:
    """Return `value` if it is like `vendor/lung-nodule`: at most 48 lower-case letters and digits
    in parts joined by `-`, `_` or `/`, with no run of five digits."""
    if type(value) is not str or not value.isascii() or not _MODEL_NAME.fullmatch(value):
        refuse(argument, "a model name like vendor/lung-nodule of at most 48 characters")
    return value


def model_version(value: Value, argument: str) -> str:
    """Return `value` if it is like `2.1.0` or `2.1-rc1`: up to four numbers of four digits each."""
    if type(value) is not str or not value.isascii() or not _MODEL_VERSION.fullmatch(value):
        refuse(argument, "a version like 2.1.0 or 2.1-rc1")
    return value
