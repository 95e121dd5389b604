"""Command-line options of the WebUI that belong to the trainer."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Called by the WebUI before it reads its command line."""
    parser.add_argument(
        "--trainer-data-dir",
        type=str,
        default=None,
        help="where the trainer keeps caches and job files (default: the folder 'trainer' in the WebUI's data folder)",
    )
