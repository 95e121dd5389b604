"""EMA: what it is, and that looking at it moves nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_trainer.ports import PreviewRequest
from lib_trainer.training import average as averages
from lib_trainer.training import loop
from lib_trainer.training.average import Average
from lib_trainer.work import events as ev
from tests.training.watched import Watched


def test_it_follows_what_learns_and_forgets_the_first_steps_soon() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average, expected = Average([parameter], 0.5), parameter.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            parameter.add_(step)
        average.after_step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(average.values[0], expected)
    assert (1 + step) / (10 + step) >= 0.5, "the decay that was asked for has been reached"
    learned = parameter.detach().clone()
    with pytest.raises(RuntimeError), average.shown():
        torch.testing.assert_close(parameter.detach(), expected)
        raise RuntimeError
    assert torch.equal(parameter, learned)
    again = Average([nn.Parameter(torch.zeros(2))], 0.5)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.values[0], average.values[0])
    average.settle()
    torch.testing.assert_close(parameter.detach(), expected)


def test_what_learns_after_others_is_averaged_as_if_it_were_alone() -> None:
    """The picture before a difference: its steps would have the average remember that nothing was learned."""
    parameter, alone = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    average, other = Average([parameter], 0.9995, begins=40), Average([alone], 0.9995)
    for step in range(1, 61):
        if step > 40:
            with torch.no_grad():
                parameter.add_(step)
                alone.add_(step)
            other.after_step(step - 40)
        if step != 41:  # loss scaling has skipped it
            average.after_step(step)
    torch.testing.assert_close(average.values[0], other.values[0], rtol=0.05, atol=0)


class Full(TorchDispatchMode):
    """A device that has room for `left` more tensors."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("clone", "empty", "_to_copy", "zeros")):
            if not self.left:
                raise RuntimeError("out of memory")
            self.left -= 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("left", range(6))
def test_a_full_device_leaves_no_mixture_of_what_learns_and_its_average(
    left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever tensor finds no room, on the way there or back; odd shapes and layouts, in pieces."""
    monkeypatch.setattr(averages, "PIECE", 5)
    learned = [
        nn.Parameter(torch.randn(())),
        nn.Parameter(torch.randn(7, 2)),
        nn.Parameter(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(0, 3)),
    ]
    average = Average(learned, 0.5)
    before = [one.detach().clone() for one in learned]
    for value in average.values:
        value.add_(1)
    means = [value.clone() for value in average.values]
    shown = False
    with contextlib.suppress(RuntimeError), Full(left), average.shown():
        shown = all(torch.equal(one.detach(), mean) for one, mean in zip(learned, means, strict=True))
    assert shown or not left, "the one piece of room is enough"
    assert all(torch.equal(one.detach(), old) for one, old in zip(learned, before, strict=True))
    assert all(torch.equal(value, mean) for value, mean in zip(average.values, means, strict=True))


@pytest.mark.parametrize("kind", ["lora", "embedding"])
def test_what_a_run_saves_is_the_average_of_its_steps(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also when it was drawn in between, and every file in between."""
    changes = {
        "network__kind": kind, "optimizer__unet_lr": 0.05, "embedding__learning_rate": 0.05, "training__max_steps": 4,
        "optimizer__ema": True, "optimizer__ema_decay": 0.25, "embedding__norm_decay": 0.0, "output__name": "zrk-a",
    }  # fmt: skip
    looking = {"preview__prompt": "a thing", "preview__every": 1, "output__save_every": 3}
    places: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    learning: list[torch.Tensor] = []
    step, preview = loop._step, type(watched.host).preview

    def noted(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], *rest: object) -> object:
        learning[:] = trained
        done = step(optimizer, trained, *rest)  # type: ignore[arg-type]
        places.append(torch.cat([one.detach().flatten() for one in trained]))
        return done

    def looked(host: object, request: PreviewRequest) -> object:
        drawn.append(torch.cat([one.detach().flatten() for one in learning]))
        return preview(host, request)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_step", noted)
    monkeypatch.setattr(type(watched.host), "preview", looked)
    assert watched.run(pictures, **changes, **looking).state == "finished"
    assert len(watched.of(ev.PreviewMade)) == len(places) == 4
    assert not any(torch.equal(place, average) for place, average in zip(places, drawn))
    expected = drawn[0]
    for number, place in enumerate(places[1:], 2):
        decay = min(0.25, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * place
        torch.testing.assert_close(drawn[number - 1], expected)
    watched_files = {path.name: path for path in watched.host.root.rglob("zrk-a*") if path.suffix == ".safetensors"}
    assert set(watched_files) == {"zrk-a.safetensors", "zrk-a-step00000003.safetensors"}
    for name, shown in (("zrk-a", drawn[3]), ("zrk-a-step00000003", drawn[2])):
        tensors = {
            key: one for key, one in load_file(watched_files[f"{name}.safetensors"]).items() if "alpha" not in key
        }
        found = torch.cat([one.float().flatten() for one in tensors.values()])
        torch.testing.assert_close(found.sort().values, shown.sort().values, rtol=0, atol=0)
