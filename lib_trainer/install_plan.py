"""What the WebUI's Python still needs, decided without touching it: pure functions over what is installed.

The WebUI pins its packages and repairs only those at its next start; torch it never repairs. So nothing that is there
may change: pip gets every installed version as a constraint, and what cannot be had under them is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VALID_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+([._-][a-z0-9]+)*)?", re.ASCII)
"""PEP 440. One constraint that is none of these would make pip refuse the whole file."""

VALID_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
"""PEP 508; likewise."""


@dataclass(frozen=True)
class Package:
    """`requirement` is what pip is asked for; `minimum` what an installed one must have, as far as we know."""

    name: str
    requirement: str
    minimum: tuple[int, ...]
    why: str
    optional: bool = False


@dataclass(frozen=True)
class Step:
    """What happens to one package, with the line that tells the user."""

    package: Package
    action: Literal["install", "keep", "skip"]
    line: str


@dataclass(frozen=True)
class Machine:
    """What is known of the host's Python. `installed`: {name: version}; `cuda`: torch's CUDA version, None for none."""

    installed: Mapping[str, str]
    python: tuple[int, int]
    cuda: str | None


MSGSPEC = Package("msgspec", "msgspec>=0.18.6,<1", (0, 18), "checks jobs")
TOMLI_W = Package("tomli_w", "tomli_w>=1.0,<2", (1, 0), "writes job files")
TOMLI = Package("tomli", "tomli>=2.0,<3", (1, 1), "reads job files")
PSUTIL = Package("psutil", "psutil>=5.9", (5, 0), "tells how much memory is in use")
BITSANDBYTES = Package("bitsandbytes", "bitsandbytes==0.45.5", (0, 41), "the AdamW8bit optimizer", optional=True)
PYTORCH_OPTIMIZER = Package(
    "pytorch-optimizer", "pytorch-optimizer>=4.1,<5", (4, 1), "brings optimizers", optional=True
)
PRODIGY_PLUS = Package(
    "prodigy-plus-schedule-free", "prodigy-plus-schedule-free>=2,<3", (2, 0), "brings an optimizer", optional=True
)
ONNXRUNTIME = Package("onnxruntime", "onnxruntime>=1.17.1,<1.24", (1, 17), "runs the taggers", optional=True)
NO_RUNTIMES = ("onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-tools")
"""Packages whose name begins like the runtime's, but which do not bring it."""

TORCH_OF_BITSANDBYTES = ((2, 1), (2, 5))
"""First and last torch that bitsandbytes 0.45.5 is known to work with."""


def plan(machine: Machine) -> list[Step]:
    """One step for each package, in order."""
    wanted = [MSGSPEC, TOMLI_W, *([TOMLI] if machine.python < (3, 11) else []), PSUTIL]
    steps = [*(_step(package, machine) for package in wanted), _onnxruntime_step(machine)]
    reason = why_left_out(BITSANDBYTES, machine)
    if reason and _version_of(BITSANDBYTES, machine) is None:
        return [*steps, Step(BITSANDBYTES, "skip", f"bitsandbytes: left out, because {reason}")]
    return [*steps, _step(BITSANDBYTES, machine)]


def constraints(installed: Mapping[str, str]) -> str:
    """A constraints file that holds every installed package where it is."""
    sound = {name: text for name, text in installed.items() if VALID_NAME.fullmatch(name)}
    lines = [f"{name}=={text}" for name, text in sorted(sound.items()) if VALID_VERSION.fullmatch(text)]
    return "\n".join(lines) + "\n"


def normalised(name: str) -> str:
    """A distribution's name as the package index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def cuda_of(version_py: str) -> str | None:
    """torch's CUDA version from the text of its version.py, which needs no import of torch; None for other builds."""
    match = re.search(r"^cuda[^=\n]*=\s*['\"]([^'\"]+)['\"]", version_py, re.MULTILINE)
    return match.group(1) if match else None


def _step(package: Package, machine: Machine) -> Step:
    version = _version_of(package, machine)
    if version is None:
        return Step(package, "install", f"{package.name}: installing, it {package.why}")
    if _numbers(version) < package.minimum:
        least = ".".join(str(part) for part in package.minimum)
        return Step(
            package, "skip", f"{package.name}: {version} is older than {least}, but the host's packages are left alone"
        )
    return Step(package, "keep", f"{package.name}: {version} is there")


def _onnxruntime_step(machine: Machine) -> Step:
    """All builds (for the CPU, CUDA, DirectML, …) install the same files: a second one would break the first."""
    builds = [
        name
        for name in sorted(machine.installed)
        if name.startswith(("onnxruntime-", "ort-nightly")) and not name.startswith(NO_RUNTIMES)
    ]
    if builds:
        there = ", ".join(f"{name} {machine.installed[name]}" for name in builds)
        return Step(ONNXRUNTIME, "keep", f"onnxruntime: {there} is there")
    return _step(ONNXRUNTIME, machine)


def why_left_out(package: Package, machine: Machine) -> str:
    """Why a package cannot be installed here; empty if it can."""
    if package != BITSANDBYTES:
        return ""
    torch = machine.installed.get("torch")
    low, high = TORCH_OF_BITSANDBYTES
    if torch is None:
        return "there is no torch"
    if machine.cuda is None:
        return f"torch {torch} is not a CUDA build (AdamW works without)"
    if not low <= _numbers(torch)[:2] <= high:
        return f"no version is known to work with torch {torch} (AdamW works without)"
    return ""


def _version_of(package: Package, machine: Machine) -> str | None:
    return machine.installed.get(normalised(package.name))


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
