"""Groups of commands of which one needs no name: `raysft tune CONFIG`, `raysft runs`."""

from typing import Any

from typer.core import TyperGroup


class DefaultCommand(TyperGroup):
    """What is typed without the name of a command is for the default one."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = (*self.commands, *self.get_help_option_names(ctx))
        if (args[:1] and args[0] not in named) or not (args or self.no_args_is_help):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class SearchByDefault(DefaultCommand):
    default = "search"


class ListByDefault(DefaultCommand):
    default = "list"
