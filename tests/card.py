"""The NVIDIA card, where there is one: which tests run on it too, and how many of its bytes are in use.

`GPU_TESTS_ON=cpu pytest -m gpu` runs the tests of a card on the CPU as far as they go there, so that whoever writes one
without a card at hand finds what is mistyped.
"""

from __future__ import annotations

import gc
import os
import time

import pytest
import torch

CPU = torch.device("cpu")
CARD = torch.device(os.environ.get("GPU_TESTS_ON") or "cuda:0")
NEEDS_A_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(CARD.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no NVIDIA card"),
]
ON_A_CARD = pytest.param(CARD, id="card", marks=NEEDS_A_CARD)
DEVICES = [pytest.param(CPU, id="cpu"), ON_A_CARD]
"""What a test is parametrised by that is worth its time on both."""


def settled(device: torch.device, most: int | None = None) -> int:
    """Bytes of tensors on a card when all work is done and what nobody refers to any more is gone; 0 on the CPU.

    As they were asked for: a block that the allocator finds for a tensor may be up to 1 MiB larger. Without the
    workspaces that cuBLAS keeps for each of its handles. Where it is more than `most`, another thread may be in the
    midst of a collection, during which this one's does nothing: it is looked at again.
    """
    if device.type == "cpu":
        return 0
    for _ in range(40):
        torch.cuda.synchronize(device)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        used = int(torch.cuda.memory_stats(device)["requested_bytes.all.current"])
        if most is None or used <= most:
            break
        time.sleep(0.05)
    return used
