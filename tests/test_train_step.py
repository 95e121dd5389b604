"""The bench of a training step: every contender learns in its step, trains what the others train and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import contenders, train_step
from bench.contenders import CONTENDERS, Setting
from bench.profiled_step import report
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.ports import Conditioning

SCRIPTS = os.environ.get("SD_SCRIPTS_DIR", "")
"""A checkout of kohya's sd-scripts."""

NAMES = [
    name if name != "sd-scripts" else pytest.param(name, marks=pytest.mark.skipif(not SCRIPTS, reason="SD_SCRIPTS_DIR"))
    for name in CONTENDERS
]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def own(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param, scripts=Path(SCRIPTS) if SCRIPTS else None)


@pytest.fixture(scope="module")
def model(own: Setting) -> DiffusersModel:
    return own.model()


def said(model: DiffusersModel) -> torch.Tensor:
    """What the UNet says of the same latents and text; on SDXL text is 80 wide, and there are a vector and sizes."""
    told = Conditioning(torch.ones(1, 77, 32))
    if model.family.sizes:
        told = Conditioning(torch.ones(1, 77, 80), torch.ones(1, 40), torch.ones(1, 6))
    with torch.no_grad():
        return model.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), told)


@pytest.mark.parametrize("name", NAMES)
def test_a_contender_takes_its_step(name: str, own: Setting, model: DiffusersModel) -> None:
    bare = said(model)
    with contextlib.ExitStack() as stack:
        found = CONTENDERS[name](model, own, stack)
        torch.testing.assert_close(said(model), bare, msg="an adapter adds nothing at the start")
        losses = found.step(1)
        learned = not torch.equal(said(model), bare)
    assert len(losses) == 1 and 0.1 < float(losses[0]) < 10
    assert learned == (name != "floor")  # the floor has no optimizer
    assert torch.equal(said(model), bare)
    targets = own.targets(model)
    sizes = [one.module.weight.shape[:2] for one in targets]
    assert (found.layers, found.numbers) == (len(targets), sum(contenders.RANK * sum(two) for two in sizes))


def test_sdxl_is_the_published_one() -> None:
    """Podell et al. 2023, arXiv:2307.01952, table 1: 2.6 billion numbers in the UNet, 817 million for the text."""
    own = Setting("sdxl", "full", torch.bfloat16, device=torch.device("meta"))
    model = own.model()
    parts = [target.part for target in own.targets(model)]
    assert {part: parts.count(part) for part in set(parts)} == {"unet": 722, "te1": 72, "te2": 192}
    assert {target.part for target in replace(own, text_encoder=False).targets(model)} == {"unet"}
    texts = sum(one.numel() for text in model.text.parts().values() for one in text.parameters())
    assert sum(one.numel() for one in model.unet.parameters()) == 2_567_463_684
    assert texts == 123_060_480 + 694_659_840
    assert {one.dtype for one in model.unet.parameters()} == {torch.bfloat16}


def test_a_table_tells_every_row_and_goes_on_after_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("sd1", 512, 1, True), ("sd1", 512, 2, True), ("sdxl", 1024, 1, False)
    monkeypatch.setitem(train_step.ROWS, "card", rows)
    monkeypatch.setitem(train_step.PROFILED, "card", {rows[-1]: ("ours",)})
    monkeypatch.setattr(Setting, "model", lambda own: own.family)
    matrix = torch.ones(8, 8)

    def contender(model: Any, own: Setting, stack: contextlib.ExitStack) -> Any:
        if own.batch == 2:
            raise RuntimeError("out of memory")
        assert (model, own.side) in (("sd1", 64), ("sdxl", 128))
        return contenders.Contender(lambda count: [matrix @ matrix for _ in range(count)] and [1.0] * count, 3, 5)

    for name in ("floor", "ours"):
        monkeypatch.setitem(CONTENDERS, name, contender)
    out, profile = tmp_path / "rows.json", tmp_path / "profile.txt"
    more = ["--only", "floor", "ours", "--rounds", "3", "--out", str(out), "--profile", str(profile)]
    train_step.main(["--table", "card", "--size", "mini", *more])
    told = capsys.readouterr().out
    assert "sd1 mini 64², batch 1, fp32 |" in told and "RuntimeError: out of memory" in told
    first, second, third = json.loads(out.read_text())
    assert "failed" in second and not {"failed"} & (first.keys() | third.keys())
    assert {name: len(times) for name, times in first["seconds"].items()} == {"floor": 3, "ours": 3}
    assert (third["layers"], third["numbers"]) == (3, 5) and third["row"].endswith("text encoder not trained")
    traced = profile.read_text()
    assert traced.startswith("# ours: sdxl mini 128²") and "| 1.0 |" in traced and "| aten::mm |" in traced


def test_a_table_begins_nothing_after_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Setting, "model", lambda own: own.family)
    out = tmp_path / "rows.json"
    train_step.main(["--table", "card", "--limit", "-1", "--out", str(out), "--profile", str(tmp_path / "profile.txt")])
    assert not out.exists()
    contender = contenders.Contender(lambda count: [1.0] * count, 3, 5)
    assert len(train_step.time_rounds(Setting(), {"ours": contender}, 9, until=-1)["ours"]) == 2


def test_losses_that_are_not_finite_and_other_counts_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def contender(loss: float, layers: int) -> Any:
        return lambda model, own, stack: contenders.Contender(lambda count: [loss] * count, layers, 10)

    def entered(*pair: Any) -> train_step.Field:
        for name, one in zip(("floor", "ours"), pair, strict=True):
            monkeypatch.setitem(CONTENDERS, name, one)
        models: Any = {"floor": None, "ours": None}
        return train_step.enter(Setting(), models, contextlib.ExitStack())

    assert entered(contender(1.0, 2), contender(1.0, 2)).peaks == {"floor": None, "ours": None}
    with pytest.raises(AssertionError, match="ours: losses are"):
        entered(contender(1.0, 2), contender(float("nan"), 2))
    with pytest.raises(AssertionError, match="layers and trained numbers differ"):
        entered(contender(1.0, 2), contender(1.0, 3))


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down twofold slows both."""
    seconds = {"ours": [1.0, 2.0, 4.0], "sd-scripts": [1.5, 3.0, 8.0]}
    assert train_step.ratios(seconds, "sd-scripts", "ours") == (1.5, 1.5, 2.0)


def event(category: str, name: str, start: float, length: float, thread: int = 1, **numbers: int) -> dict[str, Any]:
    return {"cat": category, "name": name, "ts": start, "dur": length, "tid": thread, "args": numbers}


def test_a_profile_adds_up_kernels_and_what_launched_them() -> None:
    """A trace by hand, of three steps: two streams that overlap, operations inside operations, a launch not traced."""
    events = [
        event("cpu_op", "outer", 0, 3000),
        event("cpu_op", "aten::mm", 300, 900),
        event("cuda_runtime", "cudaLaunchKernel", 600, 300, correlation=2),
        event("cuda_runtime", "cudaStreamSynchronize", 4000, 600, correlation=9),
        event("cpu_op", "outer", 0, 300, thread=2, **{"External id": 3}),
        event("cuda_runtime", "cudaLaunchKernel", 100, 100, thread=2, correlation=1),
        event("kernel", "sm90_gemm", 5000, 3000, thread=7, correlation=2),
        event("kernel", "void at::native::elementwise_kernel<add>", 6500, 3000, thread=8, correlation=1),
        event("gpu_memcpy", "Memcpy HtoD", 12000, 1500, thread=7, correlation=5, **{"External id": 3}),
        {"ph": "M", "name": "process_name"},
    ]
    said = report(events, "by hand", 0.004, 0.008).splitlines()
    assert "launched in a step: 1 kernels, 0 copies, 0 fills" in said
    assert "the device is busy 2.00 ms of a step, 50% of an untraced one" in said
    assert any(line.startswith("the host computes 1.10 ms") and "waits 0.20 ms" in line for line in said)
    tables = {name: body for name, *body in (part.splitlines() for part in "\n".join(said).split("\n## ")[1:])}
    assert tables["device time by kernel"][2] == "| 1.000 | 40.0% | 0.3 | 3000.0 | sm90_gemm |"
    assert tables["device time by kernel"][3].endswith("| elementwise_kernel<add> |")
    assert tables["device time by sort of kernel"][2].endswith("| products |")
    assert tables["device time by operation"][2:4] == [
        "| 1.500 | 60.0% | 0.7 | 2250.0 | outer |",
        "| 1.000 | 40.0% | 0.3 | 3000.0 | aten::mm |",
    ]
    assert tables["device time by outermost operation"][2] == "| 2.500 | 100.0% | 1.0 | 2500.0 | outer |"
    assert tables["the host's own time by operation or call"][2:4] == [
        "| 0.767 | 59.0% | 0.7 | 1150.0 | outer |",
        "| 0.200 | 15.4% | 0.3 | 600.0 | aten::mm |",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA card")
def test_a_peak_is_the_contenders_own() -> None:
    """Alone on the card or beside another one: the same within 2%."""
    own = Setting("sd1", "mini", torch.bfloat16, 256, 2, torch.device("cuda"))
    peaks = []
    for names in (["ours"], ["ours"], ["floor", "ours"]):  # the first makes the card's workspaces
        with contextlib.ExitStack() as stack:
            found = train_step.enter(own, {name: own.model() for name in names}, stack)
            peaks.append(found.peaks["ours"])
        train_step._collect(own.device)
    assert peaks[2] == pytest.approx(peaks[1], rel=0.02)
