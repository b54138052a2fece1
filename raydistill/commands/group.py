"""What all commands have in common: how they end."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from raydistill.errors import RaydistillError, last_line

INTERRUPTED = 130


class Commands(TyperGroup):
    """Turns our errors into one message on stderr and the exit codes of the interface."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RaydistillError as error:
            print(f"raydistill: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("raydistill: interrupted; the same command with --resume goes on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _is_rays(error):
                raise
            reason = f"Ray was lost: {last_line(error)}"
            print(f"raydistill: {reason}; the same command goes on (train and tune: with --resume)", file=sys.stderr)
            raise typer.Exit(RaydistillError.exit_code) from None


def _is_rays(error: Exception) -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)
