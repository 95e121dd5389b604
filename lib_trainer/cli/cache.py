"""`cache`: the encoded pictures that runs keep, how much of it is unused, and removing that."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cache",
        help="count or remove the encoded pictures that runs keep",
        description="Count the encoded pictures that runs keep on the disk (dataset.cache = 'disk'), and remove those "
        "that no run has read for some days. What a running job reads is never removed. Exit codes: 0 done, 2 refused.",
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER",
        help="where they are (default: cache below --root; in the WebUI trainer/cache in its data folder)",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, default=Path("trainer"), metavar="DIR", help="as `train` has it")
    parser.add_argument("--days", type=float, default=30.0, help="unread for so many; 0: all (default: %(default)g)")
    parser.add_argument("--remove", action="store_true", help="remove what is unread for as long")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from lib_trainer.dataset.latent_cache import checked_days, contents, prune, shown_bytes
    from lib_trainer.refusals import Count, Sentence

    folder, days = options.folder or options.root / "cache", checked_days(options.days)
    if options.remove:
        gone = prune(folder, days)
        print(Sentence("cache.removed", pictures=Count(gone.pictures), size=shown_bytes(gone)))
    found = contents(folder, days)
    print(Sentence("cache.kept", pictures=Count(found.all.pictures), folder=folder, size=shown_bytes(found.all)))
    if found.all.pictures:
        unused = found.unused
        told = Sentence("cache.unused", pictures=Count(unused.pictures), size=shown_bytes(unused), days=f"{days:g}")
        print(told)
    return 0
