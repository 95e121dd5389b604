"""What is installed in this Python. Needs Python alone: the WebUI's installer runs before anything else is there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from lib_trainer.install_plan import Machine, cuda_of, normalised

LEFT_BEHIND = ("~", "-")
"""How folders of packages begin that pip has put aside; older versions of it took a dash."""


def installed_packages() -> dict[str, str]:
    """{normalised name: version}; of two installations the one that Python finds first.

    What pip could not delete while it was in use (Windows) stays as `~umpy-1.25.dist-info`, and counts for pip as
    little as here: it is of an older version, to which numpy would be held.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if Path(str(getattr(distribution, "_path", ""))).name.startswith(LEFT_BEHIND):
            continue
        name, version = distribution.metadata["Name"], distribution.version
        if name and version:  # a broken installation has neither
            found.setdefault(normalised(name), version)
    return found


def cuda_version() -> str | None:
    """torch's CUDA version, without importing torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    return cuda_of(file.read_text(encoding="utf-8")) if file.is_file() else None


def this_machine() -> Machine:
    return Machine(installed_packages(), (sys.version_info[0], sys.version_info[1]), cuda_version())
