"""Packages of optimizers, installed on demand beside what is there and without changing any of it."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lib_trainer.install_plan import Package, constraints, why_left_out
from lib_trainer.installed import this_machine
from lib_trainer.refusals import ConfigError, Sentence, TrainerError, one_line
from lib_trainer.training.optimizers import OPTIMIZERS
from lib_trainer.work.control import Control
from lib_trainer.work.events import Finished, Listener, Phase
from lib_trainer.work.job import Job
from lib_trainer.work.runner import Runner, Running

logger = logging.getLogger(__name__)
Pip = Callable[[Sequence[str]], None]
"""Takes pip's arguments. Raises `ChildProcessError` with what it said last."""


def package_of(name: str) -> Package:
    """What brings the optimizer of that name. Raises `ConfigError` for one that needs nothing, or is none."""
    entry = OPTIMIZERS.get(name)
    if entry is None or entry.package is None:
        offered = [name for name, one in OPTIMIZERS.items() if one.package]
        raise ConfigError("install.nothing", name=name, offered=offered)
    return entry.package


def missing_for(name: str) -> Package | None:
    """The package that the optimizer of that name still needs here; None if it needs none."""
    entry = OPTIMIZERS.get(name)
    return None if entry is None or entry.package is None or entry.installed else entry.package


def install(package: Package, pip: Pip | None = None) -> None:
    """Ask pip for a package, with everything that is installed held where it is. Raises a `TrainerError`."""
    machine = this_machine()
    reason = why_left_out(package, machine)
    if reason:
        raise ConfigError("install.left_out", package=package.name, reason=reason)
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text(constraints(machine.installed), encoding="utf-8")
        try:
            (pip or _pip)(["install", package.requirement, "--constraint", str(held), "--prefer-binary"])
        except OSError as error:
            raise TrainerError("install.failed", package=package.name, reason=one_line(error)) from error
    importlib.invalidate_caches()


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        logger.warning("pip has failed\n%s", done.stderr)
        raise ChildProcessError(next((line for line in said if line.startswith("ERROR")), (said or ["pip failed"])[-1]))


def start_install(runner: Runner, name: str, *listeners: Listener) -> Running:
    """Install what the optimizer of that name needs, as a job. Raises a `TrainerError`."""
    package = package_of(name)

    def work(control: Control, emit: Listener) -> None:
        emit(Phase(Sentence("phase.install", package=package.name)))
        install(package)
        emit(Finished(told=Sentence("install.done", package=package.name)))

    queue = runner.queue("install", lambda: ConfigError("install.busy"))
    return queue.start(lambda: Job("install", package.name, work, name), *listeners)
