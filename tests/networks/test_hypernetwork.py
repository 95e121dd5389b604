"""Hypernetworks on layers of their own: what they add, where, and when their dropouts act."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_trainer.networks.hypernetwork import Hypernetwork, Structure, attention_sizes
from lib_trainer.ports import AdaptableModule


def layers() -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {name: nn.Linear(6, 4).requires_grad_(False) for name in ("to_q", "to_k", "to_v")}


def targets(own: dict[str, nn.Linear], part: str = "unet") -> list[AdaptableModule]:
    return [AdaptableModule(f"lora_{part}_{name}", one, part, "transformer", "middle") for name, one in own.items()]  # type: ignore[arg-type]


def made(structure: Structure) -> Hypernetwork:
    network = Hypernetwork(structure, [6])
    network.reset(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(30)
    return network


def test_keys_and_values_read_through_networks_of_their_own() -> None:
    own, network, x = layers(), made(Structure()), torch.randn(3, 6)
    assert attention_sizes(targets(own)) == [6]
    with torch.no_grad():
        before = {name: one(x) for name, one in own.items()}
        with network.applied(targets(own), 0.5):
            now = {name: one(x) for name, one in own.items()}
            with network.off():
                assert all(torch.equal(one(x), before[name]) for name, one in own.items())
        with network.applied(targets(own, "te1")):
            assert all(torch.equal(one(x), before[name]) for name, one in own.items())
        assert torch.equal(now["to_q"], before["to_q"])
        for name, networks in (("to_k", network.keys), ("to_v", network.values)):
            torch.testing.assert_close(now[name], own[name](x + 0.5 * networks["6"](x)))
            assert not torch.allclose(now[name], before[name])
        assert all(torch.equal(one(x), before[name]) for name, one in own.items())


def test_dropouts_act_while_gradients_are_on() -> None:
    own, network, x = layers(), made(Structure((1, 4, 1), dropouts=(0, 0.5, 0))), torch.ones(1, 6)
    with network.applied(targets(own)):
        for _ in range(2):  # from either to the other
            assert len({tuple(own["to_k"](x)[0].tolist()) for _ in range(8)}) > 1
            with torch.no_grad():
                assert len({tuple(own["to_k"](x)[0].tolist()) for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("initialisation", "activation", "deviation", "uniform"),
    [
        ("Normal", "linear", 0.01, False),
        ("XavierNormal", "linear", (2 / 600) ** 0.5, False),
        ("XavierUniform", "relu", (2 / 600) ** 0.5, True),
        ("KaimingNormal", "relu", (2 / 200) ** 0.5, False),
        ("KaimingUniform", "leakyrelu", (2 / 200) ** 0.5, True),
    ],
)
def test_layers_are_drawn_as_they_are_called(
    initialisation: str, activation: str, deviation: float, uniform: bool
) -> None:
    network = Hypernetwork(Structure((1, 2), activation, initialisation), [200])
    network.reset(torch.Generator().manual_seed(1))
    for module in (network.keys["200"], network.values["200"]):
        weight = module[0].weight.detach()
        assert float(weight.std()) == pytest.approx(deviation, rel=0.02) and not module[0].bias.any()
        assert (float(weight.abs().max()) <= 3**0.5 * deviation * 1.01) is uniform
