"""What all commands have in common: in which order help tells of them, and how they end where something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperGroup

from raydistill.errors import GOES_ON, ConfigError, RaydistillError, did_you_mean, last_line

INTERRUPTED = 130
_WRONG_USAGE = 2
_PANELS: Mapping[str, Sequence[str]] = {
    "Begin": ("init", "demo"),
    "Train": ("teacher", "cache", "train", "tune"),
    "Look": ("eval", "judge", "report", "compare"),
    "Use the student": ("export", "finetune"),
    "On other machines": ("submit", "pull"),
    "Ask": ("list", "doctor"),
}
"""All commands as a user meets them; those of ``cache`` stand in the order of their definition."""
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer has no public name for it."""


class Commands(TyperGroup):
    """Turns our errors into one message on stderr and the exit codes of the interface."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except _UsageError as error:
            raise _told(_usage(error), _WRONG_USAGE) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help where nothing is asked for."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            raise typer.Exit(_WRONG_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by its name. Raises ``ConfigError`` for one that nobody knows."""
        name = args[0]
        if name not in self.commands and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            raise ConfigError(f"no command '{name}'{did_you_mean(name, known)} (commands: {', '.join(known)})")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RaydistillError as error:
            raise _told(str(error), error.exit_code) from None
        except _UsageError as error:
            raise _told(_usage(error), _WRONG_USAGE) from None
        except KeyboardInterrupt:
            again = "the same command with --resume goes on" if self._resumes(ctx) else "run the same command again"
            raise _told(f"interrupted; {again}", INTERRUPTED) from None
        except Exception as error:
            if not _is_rays(error):
                raise
            reason = f"Ray was lost: {last_line(error)}"
            raise _told(f"{reason}; {GOES_ON}", RaydistillError.exit_code) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in the order of the help."""
        return [name for names in self._groups(ctx).values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what the commands are for, in groups where there are such."""
        width = max(map(len, self.commands))
        for title, names in self._groups(ctx).items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), _about(self.commands[name])) for name in names])

    def _resumes(self, ctx: Any) -> bool:
        """Whether the command that ran has an option ``--resume``."""
        command = self.commands.get(str(ctx.invoked_subcommand))
        return command is not None and any("--resume" in param.opts for param in command.params)

    def _groups(self, ctx: Any) -> Mapping[str, Sequence[str]]:
        return _PANELS if ctx.parent is None else {"Commands": [*self.commands]}


def _about(command: Any) -> str:
    """Return the first paragraph of a command's help in one line."""
    return " ".join(cleandoc(command.help or "").partition("\n\n")[0].split())


def _told(text: str, code: int) -> typer.Exit:
    print(f"raydistill: {text}", file=sys.stderr)
    return typer.Exit(code)


def _usage(error: Any) -> str:
    """Return what is wrong with the arguments, and where they are explained, in one line."""
    context = error.ctx
    if context is None:
        return str(error.format_message())
    whole, _, command = context.command_path.partition(" ")
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        params = context.command.get_params(context)
        known = [name[2:] for param in params for name in param.opts if name[:2] == "--"]
        hint = did_you_mean(option.lstrip("-"), known).replace("'", "'--", 1)
        if not hint and any(param.name == "overrides" for param in params):
            hint = "; keys of the experiment have no dashes, as in train.epochs=3"
        problem = f"no option '{option}'{hint}"
    else:
        problem = " ".join(error.format_message().split()).rstrip(".")
        problem = problem[:1].lower() + problem[1:]
    told = f"{problem}; see `{' '.join(filter(None, (whole, command)))} --help`"
    return f"{command}: {told}" if command else told


def _is_rays(error: Exception) -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)
