"""Progress bars on standard error, where somebody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def file_progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how many files are done, and how many there are."""
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    disable = quiet or not errors.is_terminal  # where nobody watches, a bar is noise in a log
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
