"""Set up and run everything from a bare clone: `python dev.py demo`, `python dev.py test`; `--help` lists the rest.

Needs nothing but Python 3.10 or 3.11. Packages go into `.venv` beside this file and are installed again only when the
pinned requirements change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = VENV / "install.log"
REQUIREMENTS = ROOT / "requirements"
CHECKED = ["."]

RUNTIME = [["-r", "requirements/runtime.txt"]]
TEST = [["-r", "requirements/test.txt"], ["--no-deps", "-r", "requirements/test-no-deps.txt"]]
"""What pip is called with, one list a call."""


class StepFailed(Exception):
    """A step did not succeed; the message is the sentence for the user."""


def main(arguments: list[str]) -> int:
    """Run a subcommand; what it does not know itself is passed on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description, description=description, add_help=False)
    options, rest = parser.parse_known_args(arguments)
    try:
        check_python()
        return COMMANDS[options.command][0](rest)
    except StepFailed as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def check_python() -> None:
    """The pinned packages have wheels for these two versions only."""
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        found = "{}.{}".format(*sys.version_info[:2])
        raise StepFailed(
            f"Python 3.10 or 3.11 is needed and this is {found}: run `python3.11 {Path(sys.argv[0]).name}` instead."
        )


def demo(rest: list[str]) -> int:
    """Train a LoRA on the miniature checkpoint and draw with and without it."""
    set_up("runtime", RUNTIME)
    return run("-m", "miniature.demo", *rest, miniature=True)


def serve(rest: list[str]) -> int:
    """The standalone page; with the miniature where no checkpoint is named."""
    set_up("runtime", RUNTIME)
    if not any(argument.split("=")[0] in ("--checkpoint", "--help", "-h") for argument in rest):
        folder = ROOT / "trainer" / "miniature"
        print("No --checkpoint was given: the miniature is loaded, which draws 64×64 pixels.", flush=True)
        if run("-m", "miniature.export", "webui", str(folder)):
            raise StepFailed("the miniature could not be exported (the output above says why).")
        rest = ["--checkpoint", str(folder / "mini-sd1.safetensors"), "--size", "64", *rest]
    return run("-m", "lib_trainer", "serve", *rest)


def test(rest: list[str]) -> int:
    """Lint, format, types, then pytest with `rest`."""
    set_up("test", TEST)
    failed = []
    checks = (
        ("lint", ["ruff", "check", *CHECKED]),
        ("format", ["ruff", "format", "--check", *CHECKED]),
        ("types", ["mypy", "lib_trainer"]),
        ("tests", ["pytest", *rest]),
    )
    for name, command in checks:
        print(f"== {name}: {' '.join(command)}", flush=True)
        started = time.monotonic()
        if run("-m", *command, miniature=True):
            failed.append(name)
        print(f"== {name}: {'FAILED' if name in failed else 'ok'} in {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        raise StepFailed(f"failed: {', '.join(failed)} (the output above says why).")
    return 0


def bench(rest: list[str]) -> int:
    """Time a training step against its floor and its peer."""
    set_up("test", TEST)
    return run("-m", "bench.train_step", *rest)


def bench_vae(rest: list[str]) -> int:
    """Time and peak memory of the VAE over row bands against the untiled one and diffusers' tiling."""
    set_up("test", TEST)
    return run("-m", "bench.tiled_vae", *rest)


def build_miniature(rest: list[str]) -> int:
    """Train the miniature checkpoint and tagger anew."""
    set_up("test", TEST)
    return run("-m", "miniature.build", *(rest or ["--work", str(ROOT / ".miniature")]))


COMMANDS = {
    "demo": (demo, "train a LoRA on the miniature checkpoint and draw with and without it"),
    "test": (test, "lint, format and type checks, then all tests; further arguments go to pytest"),
    "serve": (serve, "open the page without a WebUI; arguments as `python -m lib_trainer serve --help` lists them"),
    "bench": (bench, "time a training step against its floor and against diffusers + peft"),
    "bench-vae": (bench_vae, "time and peak memory of Tiled VAE against the untiled VAE and diffusers' tiling"),
    "build-miniature": (build_miniature, "train the miniature checkpoint and tagger anew (about an hour)"),
}


def set_up(name: str, calls: list[list[str]]) -> None:
    """Make `.venv` and install into it, unless a stamp says that these very requirements are installed."""
    stamp, wanted = VENV / f".installed-{name}", fingerprint()
    if PYTHON.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    started = time.monotonic()
    if not runs(PYTHON):
        print("Creating .venv", flush=True)
        create_venv()
    for call in calls:
        print(f"Installing {call[-1]} (a few minutes; details in {LOG.relative_to(ROOT)})", flush=True)
        install(call)
    stamp.write_text(wanted, encoding="utf-8")
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)


def fingerprint() -> str:
    """Changes with the requirements, the Python version and the place of the clone (a venv cannot be moved)."""
    digest = hashlib.sha256("{} {} {}".format(*sys.version_info[:2], VENV).encode())
    for file in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def runs(python: Path) -> bool:
    """Whether this venv's Python is there, is ours in version and works."""
    code = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def create_venv() -> None:
    if VENV.exists():
        shutil.rmtree(VENV)
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(
            f"`{sys.executable} -m venv` failed, so there is no .venv: on Debian and Ubuntu install python3-venv. "
            f"{last_line(done.stdout + done.stderr)}"
        )


def install(arguments: list[str]) -> None:
    """One pip call, its output in the log."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    with LOG.open("a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise StepFailed(
            f"pip could not install {arguments[-1]}; see {LOG}. {last_line(LOG.read_text(encoding='utf-8'))}"
        )


def last_line(text: str) -> str:
    """pip's last error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [""])[-1]


def run(*arguments: str, miniature: bool = False) -> int:
    """The venv's Python in the clone, with nothing fetched or reported by the libraries.

    The miniature's tensors are too small to be shared among threads: one is as fast, and many times faster where other
    work has one of the cores.
    """
    environment = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUTF8": "1",
    }
    environment.pop("PYTHONHOME", None)
    if miniature:
        environment.setdefault("OMP_NUM_THREADS", "1")
    code = subprocess.run([str(PYTHON), *arguments], cwd=ROOT, env=environment, check=False).returncode
    if code < 0:  # it had no chance to say so itself
        raise StepFailed(f"`python {' '.join(arguments)}` was ended by signal {-code}.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
