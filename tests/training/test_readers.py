"""Every kind of file that is written here, held against everything that reads such files (tests/readers.py)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.registry import KINDS as TRAINING_KINDS
from tests.readers import READERS, pickled, webui_safe
from tests.support import make_job

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora bf16": {"output__precision": "bf16"},
    "lora fp32": {"output__precision": "fp32"},
    "locon": {"network__kind": "locon", "network__conv_rank": 2},
    "loha": {"network__kind": "loha", "network__conv_rank": 2},
    "lokr": {"network__kind": "lokr", "network__factor": 4},
    "dora": {"network__dora": True},
    "pivotal": {"network__kind": "pivotal", "output__name": "zrk-word"},
    "difference": {"network__kind": "difference"},
    "embedding": {"network__kind": "embedding", "output__name": "zrk-word"},
    "embedding pt": {"network__kind": "embedding", "output__name": "zrk-word", "embedding__format": "pt"},
    "hypernetwork": {
        "network__kind": "hypernetwork",
        "hypernetwork__layer_norm": True,
        "hypernetwork__dropout_structure": "0, 0.2, 0",
    },
    "checkpoint fp16": {"network__kind": "checkpoint", "output__precision": "fp16"},
    "checkpoint bf16": {"network__kind": "checkpoint", "output__precision": "bf16"},
    "checkpoint fp32": {"network__kind": "checkpoint", "output__precision": "fp32"},
}
FACTS = {
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "ss_training_started_at": str(time.time()),
    "ss_steps": "3",
    "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [64, 64], "count": 6}}}),
    "ss_dataset_dirs": json.dumps({"set": {"n_repeats": 1, "img_count": 6}}),
    "ss_tag_frequency": json.dumps({"set": {"disc": 6}}),
    "ss_sd_model_name": "tiny.safetensors",
}


@pytest.fixture(scope="module")
def written(
    diffusers_model: Any, tiny: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One file of each kind, as its recipe saves it."""
    host = StandaloneHost(tiny.path, tmp_path_factory.mktemp("written"), torch.device("cpu"))
    host._model = diffusers_model
    files = {}
    for name, changes in KINDS.items():
        job = make_job(pictures, **{"output__precision": "fp16"} | changes)
        kind = TRAINING_KINDS[job.network.kind]
        path = host.root / name.replace(" ", "-") / f"{job.output.name}{kind.ending(job)}"
        outputs = Outputs((path,))
        kind.recipe(job, diffusers_model, outputs).save(outputs.results, FACTS, overwrite=False)
        assert path.is_file()
        files[name] = path
    return files


PAIRS = [
    (kind, reader)
    for kind in KINDS
    for reader in READERS
    if kind.split()[0] in reader.kinds
    and (".pt" if kind in ("hypernetwork", "embedding pt") else ".safetensors") in reader.endings
]


@pytest.mark.parametrize(("kind", "reader"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_a_kind_of_file_is_read_by(written: dict[str, Path], kind: str, reader: Any) -> None:
    reader.check(written[kind])


def test_every_kind_has_readers() -> None:
    assert {kind.split()[0] for kind in KINDS} == {"dora", *TRAINING_KINDS}
    assert {kind for kind, _ in PAIRS} == set(KINDS)


def test_these_predicates_notice(tmp_path: Path) -> None:
    """A file of torch's own writer of today is refused, as the WebUI refuses it."""
    torch.save({"string_to_param": {"*": torch.zeros(1, 4)}}, tmp_path / "a.pt")
    names, _ = pickled(tmp_path / "a.pt")
    if not any(name.endswith(".format_version") for name in names):
        pytest.skip(f"torch {torch.__version__} writes no records that the WebUI does not know")
    with pytest.raises(AssertionError):
        webui_safe(tmp_path / "a.pt")


READ_BY_THE_WEBUI = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
plain = torch.load
from modules import safe
for path in sys.argv[2:]:
    safe.check_pt(path, None)
    data = plain(path, map_location="cpu")
    states = [data[size][0] for size in data if type(size) is int] or [data["string_to_param"]]
    tensors = [tensor for state in states for tensor in state.values()]
    print(torch.__version__, sum(float(t.double().sum()) for t in tensors))
"""


def test_a_real_webui_and_its_torch_read_the_pickles(written: dict[str, Path]) -> None:
    """The WebUI's own modules/safe.py, and torch.load of its own version (2.1.2 where it is as published)."""
    folder = Path(os.environ.get("WEBUI_DIR", ""))
    python = folder / "venv" / "bin" / "python"
    if not os.environ.get("WEBUI_DIR") or not python.is_file():
        pytest.skip("WEBUI_DIR names no WebUI with an environment of its own")
    files = [written["hypernetwork"], written["embedding pt"]]
    done = subprocess.run(
        [python, "-c", READ_BY_THE_WEBUI, folder, *files], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for line, path in zip(done.stdout.splitlines(), files, strict=True):
        data = torch.load(path, weights_only=True)
        ours = (
            [data["string_to_param"]["*"]]
            if "string_to_param" in data
            else [tensor for key in data if type(key) is int for tensor in data[key][0].values()]
        )
        assert float(line.split()[1]) == pytest.approx(sum(float(t.double().sum()) for t in ours))
