"""Commands that are loaded when they are asked for, each from a module of its own."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """The commands of `table`, which says for each name "module:attribute": a function, or a
    `typer.Typer` with commands of its own."""

    table: ClassVar[Mapping[str, str]] = {}

    # Any: typer brings a click of its own in late versions, and uses the package in early ones.
    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None when there is none of this name."""
        # For a name that is none, all are loaded: typer suggests one that is like it.
        for name in [cmd_name] if cmd_name in self.table else self.table:
            if name not in self.commands:
                self.commands[name] = _load(name, self.table[name])
        return self.commands.get(cmd_name)


def _load(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        group = found
    else:
        group = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        group.command(name)(found)
    command = typer.main.get_command(group)
    command.name = name
    return command
