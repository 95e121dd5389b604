"""The command line: `train` a job file, `tag` a folder, merge `model` files, `serve` the page, list the `options`.

Heavy packages are imported by the commands that use them, so that `--help` and a mistake in a job file answer at once.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_trainer import __version__
from lib_trainer.captions.edits import EDITS, edit_specs
from lib_trainer.cli import cache as cli_cache
from lib_trainer.cli import captions as cli_captions
from lib_trainer.cli import find_rate as cli_rate
from lib_trainer.cli import install as cli_install
from lib_trainer.cli import model as cli_model
from lib_trainer.cli import steps_grid as cli_grid
from lib_trainer.cli import tag as cli_tag
from lib_trainer.cli.watching import watched
from lib_trainer.config import JobConfig, field_specs, from_values, load_values, typed_values
from lib_trainer.counts import counted
from lib_trainer.options.document import options_markdown, options_text
from lib_trainer.refusals import LANGUAGES, ConfigError, TrainerError, printable, speak
from lib_trainer.tagging.settings import tagger_specs

if TYPE_CHECKING:
    from lib_trainer.training.desk import TrainingDesk

DONE, FAILED, BAD_JOB, ABANDONED = 0, 1, 2, 130
"""Exit codes: finished or stopped; failed while running; refused before it ran; ended by a second Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _let_anything_be_printed()
    options = _parser().parse_args(arguments)
    # What a user can mend is printed once, here: the log would repeat it. A defect is logged with its traceback.
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, stream=sys.stderr)
    try:
        code: int = options.run(options)
        print(end="", flush=True)
    except BrokenPipeError:  # who read the output has gone, as `head` does
        _print_nothing_more()
        return FAILED
    except TrainerError as error:
        for problem in error.problems:
            print(f"error: {problem.sentence}", file=sys.stderr)
        return BAD_JOB
    except KeyboardInterrupt:
        return ABANDONED
    except Exception as error:
        logging.getLogger(__name__).exception("The command met an unexpected error")
        print(f"error: Unexpected: {printable(f'{type(error).__name__}: {error}')}", file=sys.stderr)
        return FAILED
    return code


def _let_anything_be_printed() -> None:
    """Signs that the output's encoding lacks (Windows' own, where it is no terminal) are printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_nothing_more() -> None:
    """What still waits to be printed goes nowhere, also when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib_trainer", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log to the terminal, with tracebacks")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="run a job file",
        description="Run a job file. Relative paths in it are meant from its own folder. Ctrl-C ends the run after the "
        "step in progress and keeps the LoRA so far. Exit codes: 0 finished or stopped, 1 failed, 2 a bad job.",
    )
    _add_job_options(train)
    train.set_defaults(run=_train)

    cli_rate.add_parser(commands, _add_job_options, _job_and_desk)
    cli_grid.add_parser(commands, _add_job_options, _job_and_desk)

    serve = commands.add_parser("serve", help="open the page without a WebUI")
    _add_host_options(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    serve.add_argument(
        "--password",
        default=os.environ.get("TRAINER_PASSWORD", ""),
        help="asked for by the page; needed where --host lets other machines in (default: TRAINER_PASSWORD)",
    )
    serve.add_argument("--port", type=int, default=7861)
    serve.add_argument(
        "--size", type=int, help="size in pixels that the Generate tab starts with (default: the checkpoint's own)"
    )
    serve.add_argument("--open", action="store_true", help="open a browser")
    serve.add_argument("--language", default="en", choices=LANGUAGES, help="of notices and errors (default: en)")
    serve.set_defaults(run=_serve)

    describe = commands.add_parser(
        "describe",
        help="say what a checkpoint predicts, and write its .yaml",
        description="Say of which family a checkpoint file is and what it predicts, and why. The WebUI takes a v model "
        "for another unless a .yaml beside it says so: --write writes it, never over one that is there.",
    )
    describe.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    describe.add_argument(
        "--prediction",
        choices=["auto", "epsilon", "v"],
        default="auto",
        help="what is written as its prediction (default: as found)",
    )
    describe.add_argument("--write", action="store_true", help="write the .yaml beside it")
    describe.set_defaults(run=_describe)

    cli_tag.add_parser(commands)
    cli_captions.add_parser(commands)
    cli_model.add_parser(commands)
    cli_install.add_parser(commands)
    cli_cache.add_parser(commands)
    listing = commands.add_parser("options", help="list every option of a job")
    listing.add_argument("--markdown", action="store_true", help="as docs/options.md has it")
    listing.set_defaults(run=_options)
    return parser


def _describe(options: argparse.Namespace) -> int:
    from lib_trainer.networks.formats.checkpoint_file import family_of, read_shapes
    from lib_trainer.networks.formats.description import predicted_by, write_description

    if options.prediction != "auto" and not options.write:
        raise ConfigError("description.not_asked")
    path = options.checkpoint.expanduser().absolute()
    family = family_of(path, read_shapes(path))
    found = predicted_by(path, family)
    print(f"{printable(path.name)}: {family.word}, {found.line}")
    if options.write:
        asked = found.prediction if options.prediction == "auto" else options.prediction
        written = write_description(path, family, asked)
        print(f"Wrote {printable(str(written))}: load the checkpoint again in the WebUI")
    return DONE


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB.toml")
    parser.add_argument(
        "--preset", type=Path, action="append", default=[], metavar="FILE.toml",
        help="a part of a job that is put over it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the job, as in network.rank=16; may be repeated (`options` lists them)",
    )  # fmt: skip
    _add_host_options(parser)


def _add_host_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="a .safetensors or .ckpt file or a diffusers folder; overrides the job's",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("trainer"),
        metavar="DIR",
        help="where results and caches go (default: trainer)",
    )


def _options(options: argparse.Namespace) -> int:
    print(documented() if options.markdown else options_text(field_specs()), end="")
    return DONE


def documented() -> str:
    """The text of docs/options.md."""
    edits = {name: (str(kind.__doc__), edit_specs(name)) for name, kind in EDITS.items()}
    return options_markdown(field_specs(), tagger_specs(), edits)


def resolve_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """{path: value} with relative paths made absolute, as seen from `folder`; `~` is the home folder.

    What may also be a name stays one where there is no such file.
    """
    resolved = dict(values)
    for path, value in values.items():
        place = field_specs()[path].place
        if not place or not value:
            continue
        if place == "path":
            resolved[path] = str(folder.absolute() / Path(value).expanduser())
        elif os.path.isfile(folder.absolute() / value):  # unlike Path's own it takes any name
            resolved[path] = str(folder.absolute() / value)
    return resolved


def values_of(file: Path, presets: Sequence[Path] = (), assignments: Sequence[str] = ()) -> dict[str, Any]:
    """{path: value} of a job file, with presets over it in their order, and `section.field=value` over them."""
    values = resolve_paths(load_values(file), file.parent)
    for preset in presets:
        values |= resolve_paths(load_values(preset), preset.parent)
    return values | resolve_paths(typed_values(assignments), Path())


def _train(options: argparse.Namespace) -> int:
    return train(*_job_and_desk(options))


def _job_and_desk(options: argparse.Namespace) -> tuple[JobConfig, TrainingDesk]:
    """The job that is asked for, and a desk on its checkpoint, whose own size is the job's where none is set."""
    values = values_of(options.job, options.preset, options.set)
    job = from_values(values)
    checkpoint = options.checkpoint or (Path(job.model.checkpoint) if job.model.checkpoint else None)

    from lib_trainer.host.standalone.host import StandaloneHost
    from lib_trainer.training.desk import TrainingDesk
    from lib_trainer.training.sizes import with_usual

    host = StandaloneHost(_absolute(checkpoint), options.root.absolute())
    return from_values(with_usual(values, host)), TrainingDesk(host)


def train(job: JobConfig, desk: TrainingDesk) -> int:
    """Run a job with a progress bar in the terminal. Returns the exit code; raises `TrainerError` for a bad job."""
    from lib_trainer.kinds.registry import prompt_for

    view = watched(lambda bar: desk.start(job, bar), desk, lambda: _stop(desk))
    if view.state == "failed":
        if view.output is not None:
            print(f"The last good weights are in {printable(str(view.output))}", file=sys.stderr)
        return FAILED
    if view.output is None:
        print("Stopped before the first step: nothing was saved.")
    else:
        word = "Stopped" if view.state == "stopped" else "Finished"
        seconds, output = view.elapsed_seconds, printable(str(view.output))
        print(f"{word} after {counted(view.step, 'step')} in {seconds:.0f} s: {output}")
        call = prompt_for(desk.host, view.output)
        if call:
            print(f"Use it in a prompt as {call}")
    return DONE


def _stop(desk: TrainingDesk) -> None:
    desk.stop()
    print(
        "\nStopping after this step; what was learned so far is kept. Press Ctrl-C again to give it up.",
        file=sys.stderr,
    )


def _serve(options: argparse.Namespace) -> int:
    from lib_trainer.ui.doors import check_password

    check_password(options.host, options.password)
    speak(options.language)
    checkpoint = _absolute(options.checkpoint)
    if checkpoint is not None and not checkpoint.exists():
        raise ConfigError("cli.no_checkpoint", path=checkpoint)

    from lib_trainer.host.standalone.host import StandaloneHost
    from lib_trainer.toolbox.desk import process_desk as tool_desk
    from lib_trainer.training.desk import process_desk
    from lib_trainer.training.sizes import usual_values
    from lib_trainer.ui.standalone import build_app, serve

    host = StandaloneHost(checkpoint, options.root.absolute())
    size = options.size or usual_values(host)["dataset.width"]
    desk = process_desk(lambda: host)
    tagger = cli_tag.make_desk(options.root.absolute())
    app = build_app(desk, host, size=size, tagger=tagger, count_tokens=cli_captions.clip_tokens, tools=tool_desk())
    address = serve(app, options.host, options.port, options.open, block=False, password=options.password)
    print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
    app.block_thread()
    return DONE


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()
