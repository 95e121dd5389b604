"""The bench of a training step: every contender that needs no checkout of sd-scripts learns in its step."""

import contextlib

import pytest
import torch

from bench.train_step import CONTENDERS, Setting, build_model
from lib_trainer.ports import Conditioning


@pytest.mark.parametrize("name", ["floor", "ours", "peft"])
def test_a_contender_takes_its_step(name):
    own, model = Setting(), build_model("mini")
    latents, context = torch.ones(1, 4, 8, 8), torch.ones(1, 77, 32)

    def said() -> torch.Tensor:
        with torch.no_grad():
            return model.predict(latents, torch.tensor([500]), Conditioning(context))

    bare = said()
    with contextlib.ExitStack() as stack:
        step = CONTENDERS[name](model, own, stack)
        torch.testing.assert_close(said(), bare, msg="an adapter adds nothing at the start")
        step()
        learned = not torch.equal(said(), bare)
    assert learned == (name != "floor")  # the floor has no optimizer
