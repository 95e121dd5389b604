"""Set up and run everything from a bare clone: `python dev.py demo`, `python dev.py test`; `--help` lists the rest.

Needs nothing but a Python, of whatever version: the pinned packages run on 3.10 and 3.11, and one of these is looked
for, or fetched. Packages go into `.venv` beside this file, and again only when the pinned requirements change.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = VENV / "install.log"
REQUIREMENTS = ROOT / "requirements"
CHECKED = ["."]
SUPPORTED = ((3, 11), (3, 10))
"""Versions of Python that all pinned packages have wheels for, the better one first."""

FETCHED = ROOT / ".python"
"""Where uv, and the Python that it fetches, go if none is installed."""

UV = "uv==0.13.9"  # fetches a Python where none of SUPPORTED is installed; comes from the package index
CPU_TORCH = os.environ.get("TRAINER_CPU_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""torch's own index of builds without CUDA; PyPI's build for Linux brings some gigabytes of it."""

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
        return COMMANDS[options.command][0](rest)
    except StepFailed as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


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
    """Lint, format, types, then pytest with `rest`, a worker for each core (`-n0` for none).

    The types are checked beside the others, which leave a core idle here and there, and told last.
    """
    set_up("test", TEST)
    failed = []
    checks = (
        ("lint", ["ruff", "check", *CHECKED]),
        ("format", ["ruff", "format", "--check", *CHECKED]),
        ("tests", ["pytest", "-n", str(min(4, os.cpu_count() or 1)), "--no-loadscope-reorder", *rest]),
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, begun("-m", "mypy", output=said) as types:
        for name, command in checks:
            print(f"== {name}: {' '.join(command)}", flush=True)
            started = time.monotonic()
            if run("-m", *command, miniature=True):
                failed.append(name)
            print(
                f"== {name}: {'FAILED' if name in failed else 'ok'} in {time.monotonic() - started:.0f} s", flush=True
            )
        if types.wait():
            failed.append("types")
        said.seek(0)
        print(f"== types: mypy\n{said.read()}== types: {'FAILED' if 'types' in failed else 'ok'}", flush=True)
    if failed:
        raise StepFailed(f"failed: {', '.join(failed)} (the output above says why).")
    return 0


@contextlib.contextmanager
def begun(*arguments: str, output: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The venv's Python beside this one; ended with the block if it has not ended before."""
    command = [str(PYTHON), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


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
    stamp = VENV / f".installed-{name}"
    version = version_of([str(PYTHON)], "pip")
    if version and stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(version):
        return
    started = time.monotonic()
    if version is None:
        create_venv(find_python())
        version = version_of([str(PYTHON)], "pip")
    if torch := torch_without_cuda():
        print("No NVIDIA card is here: installing the build of torch for the processor", flush=True)
        install(torch)
    for call in calls:
        print(f"Installing {call[-1]} (a few minutes; details in {LOG.relative_to(ROOT)})", flush=True)
        install(call)
    stamp.write_text(fingerprint(version), encoding="utf-8")
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)


def fingerprint(version: tuple[int, int] | None) -> str:
    """Changes with the requirements, the venv's Python and the place of the clone (a venv cannot be moved)."""
    digest = hashlib.sha256(f"{version} {VENV}".encode())
    for file in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def version_of(command: list[str], *modules: str) -> tuple[int, int] | None:
    """The version of a Python that is one of SUPPORTED, works and has these modules; else None."""
    code = f"import sys, {', '.join(modules)}; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([*command, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"(\d+)\.(\d+)", done.stdout.strip())
    version = (int(found[1]), int(found[2])) if found and not done.returncode else None
    return version if version in SUPPORTED else None


def find_python() -> list[str]:
    """The command of a Python that the pins run on: this one, another that is installed, or one that uv fetches."""
    this = "{}.{}".format(*sys.version_info[:2])
    for command in [[sys.executable], *installed_pythons()]:
        version = version_of(command, "venv", "ensurepip")
        if version is not None:
            if command != [sys.executable]:
                print(
                    f"The pinned packages have no wheels for Python {this}: taking {' '.join(command)} "
                    f"({version[0]}.{version[1]})",
                    flush=True,
                )
            return command
    print(
        f"The pinned packages have no wheels for Python {this} and no other is here: fetching one with uv", flush=True
    )
    return fetch_python()


def installed_pythons() -> list[list[str]]:
    """Commands that may start a Python of SUPPORTED: on the PATH, by Windows' launcher, of pyenv and of uv."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    managed = [FETCHED, Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")]
    found: list[list[str]] = []
    for major, minor in SUPPORTED:
        version = f"{major}.{minor}"
        if on_path := shutil.which(f"python{version}"):
            found.append([on_path])
        if launcher := shutil.which("py"):
            found.append([launcher, f"-{version}"])
        homes = [*pyenv.glob(f"versions/{version}.*"), *pyenv.glob(f"pyenv-win/versions/{version}.*")]
        homes += [one for folder in managed for one in folder.glob(f"cpython-{version}*")]
        for one in sorted(homes, reverse=True):
            found += [[str(one / name)] for name in ("bin/python3", "python.exe") if (one / name).exists()]
    return found


def fetch_python() -> list[str]:
    """A Python of its own for this clone, by uv (from the package index where it is not installed)."""
    version = "{}.{}".format(*SUPPORTED[0])
    tools = FETCHED / "tools"
    uv = shutil.which("uv")
    if uv is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--upgrade", "--target", str(tools)]
        done = subprocess.run([*command, UV], capture_output=True, text=True, check=False)
        uv = str(tools / "bin" / ("uv.exe" if os.name == "nt" else "uv"))
        if done.returncode or not Path(uv).exists():
            raise StepFailed(
                f"{no_python()} uv, which would fetch one, could not be installed: {last_line(done.stderr)}"
            )
    done = subprocess.run(
        [uv, "python", "install", version, "--install-dir", str(FETCHED)], capture_output=True, text=True, check=False
    )
    for command in installed_pythons():
        if version_of(command, "venv", "ensurepip"):
            return command
    raise StepFailed(f"{no_python()} uv could not fetch one: {last_line(done.stderr)}")


def no_python() -> str:
    return "Python 3.11 or 3.10 is needed and none is here: install one (on Debian and Ubuntu with python3.11-venv)."


def torch_without_cuda() -> list[str]:
    """What pip is called with for the build of torch without CUDA; empty where pip's usual build is right.

    That is so elsewhere than on Linux, beside an NVIDIA card, where an index is chosen by hand, and without a network.
    """
    chosen = any(os.environ.get(name) for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"))
    if not sys.platform.startswith("linux") or has_nvidia_card() or chosen:
        return []
    pinned = re.search(r"^torch==[\w.+]+", (REQUIREMENTS / "runtime.txt").read_text(encoding="utf-8"), re.MULTILINE)
    try:
        urllib.request.urlopen(f"{CPU_TORCH}/torch/", timeout=20).close()
    except OSError:
        print(f"{CPU_TORCH} cannot be reached: pip takes the torch that it finds, which may bring CUDA", flush=True)
        return []
    return ["--no-deps", "--index-url", CPU_TORCH, pinned[0]] if pinned else []


def has_nvidia_card() -> bool:
    driver = Path("/proc/driver/nvidia/version"), Path("/usr/lib/wsl/lib/nvidia-smi")
    return bool(shutil.which("nvidia-smi")) or any(path.exists() for path in driver)


def create_venv(python: list[str]) -> None:
    print("Creating .venv", flush=True)
    if VENV.exists():
        shutil.rmtree(VENV)
    done = subprocess.run([*python, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(
            f"`{' '.join(python)} -m venv` failed, so there is no .venv: on Debian and Ubuntu install python3-venv. "
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
    """The venv's Python in the clone.

    The miniature's tensors are too small to be shared among threads: one is as fast, and many times faster where other
    work has one of the cores.
    """
    given = environment()
    if miniature:
        given.setdefault("OMP_NUM_THREADS", "1")
    code = subprocess.run([str(PYTHON), *arguments], cwd=ROOT, env=given, check=False).returncode
    if code < 0:  # it had no chance to say so itself
        raise StepFailed(f"`python {' '.join(arguments)}` was ended by signal {-code}.")
    return code


def environment() -> dict[str, str]:
    """With nothing fetched or reported by the libraries.

    What is compiled is kept, whatever the shell says of it: the tests start this clone's modules hundreds of times.
    """
    given = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUTF8": "1",
    }
    for name in ("PYTHONHOME", "PYTHONDONTWRITEBYTECODE"):
        given.pop(name, None)
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
