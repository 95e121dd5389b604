"""Run by the WebUI when it starts: installs what is missing, and changes nothing that is there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the package lies beside this file

from lib_trainer.install_plan import Step, constraints, plan
from lib_trainer.installed import this_machine

Pip = Callable[[list[str], str], object]
"""Takes pip's arguments, and what is being installed. Raises if it failed."""


def launcher() -> tuple[Pip, bool]:
    """The WebUI's own pip, and whether it was told to skip installations; plain pip where there is no WebUI."""
    try:
        import launch
    except ImportError:
        return _plain_pip, False

    def webui_pip(arguments: list[str], what: str) -> None:
        launch.run_pip(shell_line(arguments), what)

    return webui_pip, bool(getattr(launch.args, "skip_install", False))


def shell_line(arguments: list[str]) -> str:
    """One line for the WebUI's pip, which hands it to the system's shell."""
    if os.name == "nt":
        return " ".join(f'"{argument}"' for argument in arguments)
    return shlex.join(arguments)


def _plain_pip(arguments: list[str], what: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--prefer-binary"], check=True)


def install(steps: list[Step], installed: dict[str, str], pip: Pip) -> None:
    """Carry out the steps. A package that cannot be had is told, and the WebUI starts all the same."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text(constraints(installed), encoding="utf-8")
        for step in steps:
            print(f"Trainer: {step.line}")
            if step.action != "install":
                continue
            try:
                arguments = ["install", step.package.requirement, "--constraint", str(file)]
                pip(arguments, f"{step.package.name} for Trainer")
            except Exception as error:
                kind = "warning" if step.package.optional else "error"
                print(f"Trainer: {kind}: {step.package.name} could not be installed ({_last_line(error)})")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def main() -> None:
    pip, skip = launcher()
    if skip:
        print("Trainer: nothing is installed, because of --skip-install")
        return
    machine = this_machine()
    install(plan(machine), dict(machine.installed), pip)


if __name__ == "__main__":
    main()
