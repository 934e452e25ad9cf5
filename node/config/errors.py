"""What is wrong with a config file, all of it, each with its line."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    line: int  # 1 is the first; 0 when the problem is the file itself
    path: str  # dotted, "network.peers[2].port"; empty for the whole document
    sentence: str


class ConfigError(Exception):
    """The config cannot be used. `problems` has every one found, in the order of the file."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        lines = []
        for problem in self.problems:
            place = f"{self.name}:{problem.line}" if problem.line else self.name
            path = f"{problem.path}: " if problem.path else ""
            lines.append(f"{place}: {path}{problem.sentence}")
        return lines
