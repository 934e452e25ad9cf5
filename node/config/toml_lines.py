"""The line of every key in a TOML document, which the standard library's parser does not tell.

`key_lines` reads only documents that `tomllib` has already accepted (TOML 1.0), so it follows the
shape of the text and checks nothing.
"""

import re
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
# The closing run may have two quotes more, which belong to the text (TOML 1.0, String).
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\n]+")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the first line, from 1, on which each key, table or array element is named."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line, self._counted = 1, 0
        self._table: KeyPath = ()
        self._last_element: dict[KeyPath, int] = {}
        self.lines: dict[KeyPath, int] = {}

    def document(self) -> None:
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._starts("[["):
                self._header(is_array=True)
            elif self._starts("["):
                self._header(is_array=False)
            else:
                self._pair(self._table)
            self._skip(_BLANK)

    def _header(self, is_array: bool) -> None:
        self._at += 2 if is_array else 1
        line = self._current_line()
        keys = self._dotted_key()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for key in keys[:-1]:
            path = self._into((*path, key), line)
        path = (*path, keys[-1])
        if is_array:
            self._last_element[path] = self._last_element.get(path, -1) + 1
        self._table = self._into(path, line)

    def _into(self, path: KeyPath, line: int) -> KeyPath:
        """Name `path`, and step into its latest element when it is an array of tables."""
        self.lines.setdefault(path, line)
        if path in self._last_element:
            path = (*path, self._last_element[path])
            self.lines.setdefault(path, line)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._current_line()
        path = table
        for key in self._dotted_key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._at += 1
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._starts("["):
            self._array(path)
        elif self._starts("{"):
            self._inline_table(path)
        else:
            self._skip(self._scalar_kind())

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        self._skip(_BLANK)
        while not self._starts("]"):
            self.lines[(*path, index)] = self._current_line()
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            if self._starts(","):
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        while not self._starts("}"):
            self._pair(path)
            self._skip(_BLANK)
            if self._starts(","):
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _scalar_kind(self) -> re.Pattern[str]:
        for opening, kind in (
            ('"""', _LONG_BASIC),
            ("'''", _LONG_LITERAL),
            ('"', _BASIC),
            ("'", _LITERAL),
        ):
            if self._starts(opening):
                return kind
        return _SCALAR

    def _dotted_key(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            keys.append(self._key())
            self._skip(_SPACE)
            if not self._starts("."):
                return keys
            self._at += 1

    def _key(self) -> str:
        if self._starts('"'):
            return _ESCAPE.sub(_unescape, self._skip(_BASIC)[1:-1])
        if self._starts("'"):
            return self._skip(_LITERAL)[1:-1]
        return self._skip(_BARE_KEY)

    def _starts(self, opening: str) -> bool:
        return self._text.startswith(opening, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"line {self._current_line()}: unexpected text")
        self._at = match.end()
        return match.group()

    def _current_line(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    return _ESCAPED[code] if code in _ESCAPED else chr(int(code[1:], 16))
