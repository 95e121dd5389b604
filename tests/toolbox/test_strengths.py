"""Strengths as prompts and LoRA Block Weight write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_trainer.families.known import FAMILIES
from lib_trainer.refusals import ConfigError
from lib_trainer.toolbox.layers import layers_of
from lib_trainer.toolbox.strengths import Meant, parse_meant, parse_weights

SD1, SD2, SDXL = FAMILIES
WRITTEN = {
    "a.safetensors": Meant(Path("a.safetensors")),
    "a.safetensors:0.8": Meant(Path("a.safetensors"), 0.8, 0.8),
    "a.safetensors:.5:-1": Meant(Path("a.safetensors"), 0.5, -1.0),
    "a.safetensors:0.8:unet=0": Meant(Path("a.safetensors"), 0.8, 0.0),
    "C:\\loras\\a b.safetensors:te=0.1": Meant(Path("C:\\loras\\a b.safetensors"), 0.1, 1.0),
    "a.pt:1:lbw=MIDD": Meant(Path("a.pt"), 1.0, 1.0, "MIDD"),
    "a.pt:lbw=input_4=0.5, middle=0": Meant(Path("a.pt"), blocks="input_4=0.5, middle=0"),
    '"a.pt"': Meant(Path("a.pt")),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_stands_behind_a_file_is_read(text: str) -> None:
    assert parse_meant(text, "loras") == WRITTEN[text]


@pytest.mark.parametrize("text", ["", ":0.5", "a:1:2:3", "a.pt:te=x", "a.pt:te=nan", "a.pt:1e999"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not understood"):
        parse_meant(text, "loras")


def test_lists_are_for_the_blocks_that_the_extension_names() -> None:
    base, blocks = parse_weights(",".join(str(n) for n in range(17)), SD1.unet, "x")
    inputs, outputs = [1, 2, 4, 5, 7, 8], range(3, 12)  # IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 … OUT11
    names = [*(f"input_{n}" for n in inputs), "middle", *(f"output_{n}" for n in outputs)]
    assert base == 0 and {name: n for name, n in blocks.items() if n} == dict(zip(names, range(1, 17)))
    assert blocks.keys() == set(SD1.unet.blocks)
    assert parse_weights(",".join(["0.5"] * 26), SD2.unet, "x") == (0.5, dict.fromkeys(SD2.unet.blocks, 0.5))
    assert parse_weights(",".join(["0.5"] * 20), SDXL.unet, "x") == (0.5, dict.fromkeys(SDXL.unet.blocks, 0.5))
    few = parse_weights(",".join(["1"] * 12), SDXL.unet, "x")[1]
    assert [name for name, n in few.items() if not n] == [
        *(f"input_{n}" for n in (0, 1, 2, 3, 6)), *(f"output_{n}" for n in (6, 7, 8)),
    ]  # fmt: skip
    middle = parse_weights("MIDD", SD1.unet, "x")[1]
    assert {name for name, n in middle.items() if n} == {
        "input_5", "input_7", "input_8", "middle", *(f"output_{n}" for n in (3, 4, 5, 6)),
    }  # fmt: skip


def test_blocks_by_name_may_be_below_0_as_in_lists() -> None:
    assert parse_weights("input_0-1=-0.5, middle = 2e-1", SD1.unet, "x")[1] == {
        "input_0": -0.5, "input_1": -0.5, "middle": 0.2,
    }  # fmt: skip
    for text in ("middle=1e999", ",".join(["1e999"] * 17)):
        with pytest.raises(ConfigError, match="x"):
            parse_weights(text, SD1.unet, "x")


def test_a_strength_is_the_product_of_part_and_block() -> None:
    meant = Meant(Path("x"), text=0.5, unet=2.0, blocks=",".join(["0.25", *["1"] * 15, "3"]))
    strength = meant.strength(SD1, "x")
    by_name = {layer.published[0]: layer for layer in layers_of(SD1)}
    assert strength.of(by_name["text_model.encoder.layers.3.mlp.fc1"]) == 0.125
    assert strength.of(by_name["output_blocks.11.1.proj_in"]) == 6
    assert strength.of(by_name["out.2"]) == 6
    assert strength.of(by_name["input_blocks.4.1.proj_in"]) == 2
    assert strength.of(by_name["input_blocks.3.0.op"]) == 0
