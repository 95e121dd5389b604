"""Every kind of training on both hosts, with and without previews, leaves byte for byte the files it left before.

The digests were recorded at commit 5e95aac. Those of a model four times as deep still held there: they were of commit
8b69a28, before kinds of training became objects, and of c923c24 for previews, which are files since then, and for saved
steps, which got names of their own in their metadata; those of the rank-stabilised LoRA are of when a block's own rank
kept the scale of the others. Who changes what is learned on purpose records them anew
(`python -m tests.training.same_files`, in the environment below) and says so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.same_files import PORTABLE

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "same_files.json"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_files_are_those_that_were_recorded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if recorded["torch"] != torch.__version__:
        pytest.skip(f"recorded with torch {recorded['torch']}, and this is {torch.__version__}")
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip("recorded on Linux on x86-64")
    out = tmp_path / "digests.json"
    command = [sys.executable, "-m", "tests.training.same_files", str(out)]
    environment = os.environ | PORTABLE | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(out.read_text(encoding="utf-8"))
    if written["processor"] != recorded["processor"]:
        pytest.skip("this processor's arithmetic is another than that of the one the digests were recorded on")
    found = written["digests"]
    assert found.keys() == recorded["digests"].keys()
    assert [name for name, digest in recorded["digests"].items() if found[name] != digest] == []
