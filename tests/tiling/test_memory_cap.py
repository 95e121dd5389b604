"""Under a limit on its address space a process decodes in bands what it cannot decode untiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import resource, sys, torch
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.engine import run
from lib_trainer.memory import is_out_of_memory
from tests.tiling.conftest import build_diffusers, given

torch.set_num_threads(1)
decoder = build_diffusers((32, 32, 32, 32)).decoder
with torch.no_grad():  # threads, kernels and lazy imports come before the limit
    run(describe(decoder), given("decoder", 1, 8, 8))
    decoder(given("decoder", 1, 8, 8))
    x = given("decoder", 1, 64, 32)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        decoder(x)
        print("untiled fits")
    except Exception as error:
        assert is_out_of_memory(error), error
        print("untiled is out of memory")
    out = run(describe(decoder), x)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    difference = (out - decoder(x)).abs().max() / out.std()
    print("in bands", tuple(out.shape), "the same" if difference < 1e-4 else float(difference))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits nothing elsewhere")
def test_what_dies_untiled_succeeds_in_bands() -> None:
    """512 × 256 with 32 channels all over: about 65 MiB untiled and 25 in bands; the limit leaves 45.

    Without the limit the untiled one succeeds: it died of nothing else.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CODE, str(45)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["untiled is out of memory", "in bands (1, 3, 512, 256) the same"]
