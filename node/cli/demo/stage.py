"""The demo's steps: each measured, each with what it showed or what it should have shown."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from node.cli.meanings import meaning_of
from node.cli.output import printable

STEP_TIMEOUT_S = 45.0


class StepFailed(Exception):
    """A step did not hold; the demo ends."""


class _Unmet(Exception):
    """Something was seen that was not expected."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(expected, seen)
        self.expected = expected
        self.seen = seen


@dataclass(slots=True)
class Step:
    """One step, while it runs and afterwards."""

    title: str
    is_ok: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    expected: str = ""  # if it failed
    seen: str = ""

    def note(self, line: str) -> None:
        """Say something about what was done or seen."""
        self.notes.append(line)

    def expect(self, is_met: bool, expected: str, seen: object) -> None:
        """End the step as failed unless `is_met`."""
        if not is_met:
            self.fail(expected, seen)

    def expect_fields(self, seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """End the step as failed unless the fields of an answer are as wanted."""
        found = {name: seen.get(name) for name in wanted}
        self.expect(found == wanted, str(dict(wanted)), found)

    def fail(self, expected: str, seen: object) -> NoReturn:
        """End the step as failed."""
        raise _Unmet(expected, str(seen))


class Stage:
    """Runs steps one after the other and shows each."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self._console = console
        self._quiet = quiet
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the first step began."""
        return time.monotonic() - self._started

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Measure what happens inside. Raises `StepFailed` for whatever was not as expected."""
        step = Step(title)
        self.steps.append(step)
        began = time.monotonic()
        watched = self._console.is_terminal and not self._quiet
        try:
            with self._console.status(title) if watched else nullcontext():
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    yield step
            step.is_ok = True
        except _Unmet as unmet:
            step.expected, step.seen = unmet.expected, unmet.seen
        except TimeoutError:
            step.expected = f"to be done within {STEP_TIMEOUT_S:.0f} s"
            step.seen = "it was not"
        except Exception as error:  # noqa: BLE001 - shown, and it ends the demo
            step.expected, step.seen = "no failure", _sentence(error)
        finally:
            step.seconds = time.monotonic() - began
        if not self._quiet:
            self._show(step)
        if not step.is_ok:
            raise StepFailed(step.title)

    def say(self, line: str, style: str = "") -> None:
        """Print a line between the steps."""
        if not self._quiet:
            self._console.print(Text(printable(line), style), soft_wrap=True)

    def _show(self, step: Step) -> None:
        mark, style = (_mark("✓", "ok"), "green") if step.is_ok else (_mark("✗", "FAILED"), "red")
        head = Text.assemble((f"{mark} ", f"bold {style}"), (f"{step.title:<68}", "bold"))
        head.append(f" {step.seconds:6.2f} s", "cyan")
        self._console.print(head, soft_wrap=True)
        for line in step.notes:
            self.say(f"    {line}", "dim")
        if not step.is_ok:
            self.say(f"    expected: {step.expected}", "red")
            self.say(f"    seen:     {step.seen}", "red")


def _sentence(error: Exception) -> str:
    meaning = meaning_of(error)
    return "; ".join(meaning[1]) if meaning is not None else f"{type(error).__name__}: {error}"


def _mark(sign: str, word: str) -> str:
    """Return the sign, or the word where the output's encoding does not have it."""
    try:
        sign.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return word
    return sign
