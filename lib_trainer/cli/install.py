"""`install-optimizer`: the package of an optimizer, beside what is there."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "install-optimizer",
        help="install the package that an optimizer needs",
        description="Install the package that an optimizer needs, with everything that is installed held where it is. "
        "Exit codes: 0 it is there, 2 it cannot be had.",
    )
    parser.add_argument("name", metavar="NAME", help="as optimizer.name has it, as in Prodigy")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from lib_trainer.refusals import Sentence
    from lib_trainer.training.packages import install, missing_for, package_of

    package = package_of(options.name)
    if missing_for(options.name) is not None:
        install(package)
    print(Sentence("install.done", package=package.name))
    return 0
