"""The command `model`: the tools of lib_trainer/toolbox, whose table the subcommands and their flags are made of.

python -m lib_trainer model merge A.safetensors B.safetensors --weight 0.5 --output C.safetensors --dry-run
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib_trainer.cli.watching import watched
from lib_trainer.options.arguments import add_arguments, given_values
from lib_trainer.toolbox.tools import TOOLS

if TYPE_CHECKING:
    from lib_trainer.toolbox.desk import Tool

DONE, FAILED = 0, 1
DESCRIPTION = """Tools for model files: one tensor at a time, in memory that does not grow with the file. Ctrl-C ends
one and leaves nothing half-written. Exit codes: 0 done or stopped, 1 failed, 2 refused."""


def add_parser(commands: Any) -> None:
    """Add the command to the command line's parser."""
    parser = commands.add_parser("model", help="merge, clean and identify model files", description=DESCRIPTION)
    actions = parser.add_subparsers(metavar="TOOL", required=True)
    for tool in TOOLS.values():
        added = actions.add_parser(tool.name, help=tool.title, description=tool.title.capitalize())
        for number, place in enumerate(tool.places):
            spec = tool.specs[place]
            many = "*" if spec.kind == "list" else "?" if spec.default == "" and number >= tool.required else None
            added.add_argument(f"place {place}", metavar=place.upper(), nargs=many, help=spec.help)
        flags = [spec for path, spec in tool.specs.items() if path not in tool.places]
        add_arguments(added, flags)
        added.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        added.set_defaults(run=_command(tool))


def _command(tool: Tool) -> Callable[[argparse.Namespace], int]:
    return lambda options: _run(tool, options)


def _run(tool: Tool, options: argparse.Namespace) -> int:
    """Exit code; raises `TrainerError` for what is refused before it starts."""
    from lib_trainer.toolbox.desk import ToolDesk

    given = given_values(options, tool.specs)
    for place in tool.places:
        value = getattr(options, f"place {place}")
        if value is not None:
            given[place] = tuple(value) if isinstance(value, list) else value
    settings = tool.made(given)
    desk = ToolDesk()
    if options.dry_run:
        for line in desk.look(tool, settings):
            print(line)
        return DONE
    view = watched(lambda bar: desk.start(tool, settings, bar), desk, answered=True)
    if view.state == "failed":
        return FAILED
    print(view.told, *view.notes, sep="\n")
    return DONE
