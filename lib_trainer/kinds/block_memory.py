"""What a step keeps of a model's layers, by the UNet's blocks: for each cell of a latent, from its table."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lib_trainer.training.memory_table import Layer, Table

Blocks = frozenset[str] | None
"""None: of all layers."""
NEARLY = 0.9


def made(table: Table) -> dict[str, float]:
    """Numbers that the UNet's layers make, for each cell of a latent, by block."""
    found: dict[str, float] = {}
    for one in table.layers:
        if one.part == "unet":
            found[one.block] = found.get(one.block, 0.0) + one.out * one.count * one.share
    return found


def largest_blocks(table: Table) -> frozenset[str]:
    """About as large as the largest, which decides what a step takes that recomputes one after the other."""
    sizes = made(table)
    return frozenset(block for block, size in sizes.items() if size >= NEARLY * max(sizes.values()))


def added(numbers: Iterable[tuple[Layer, int]], blocks: Blocks) -> float:
    """So many for each vector of a layer: of all layers, or the most of one of the blocks."""
    found: dict[str, float] = {}
    for layer, size in numbers:
        block = "" if blocks is None else layer.block
        if blocks is None or block in blocks:
            found[block] = found.get(block, 0.0) + size * layer.count * layer.share
    return max(found.values(), default=0.0)


def given(layer: Layer) -> int:
    """Numbers that a layer is given for each vector that it gives."""
    return layer.inner * layer.stride**2


def place_of(block: str) -> tuple[int, int]:
    """Of a block of the UNet in its forward pass."""
    side, _, number = block.partition("_")
    return ("input", "middle", "output").index(side), int(number or 0)


def frozen_inputs(table: Table, learning: Collection[Layer], *, told: bool, recomputed: bool) -> float:
    """Numbers that convolutions without an adapter keep of what they are given, and would not with weights in 8 bits.

    torch keeps them for a gradient of the weights, also where those are frozen; a frozen Linear keeps nothing, and what
    a convolution past a ResNet is given waits for its norm too. Gradients enter the first block behind its
    convolutions. `learning`: layers with an adapter, which keep what they are given; where there are none, attentions
    learn, or what they read. `told`: gradients go back to the captions too.
    """
    unet = [one for one in table.layers if one.part == "unet"]
    learns = [one.block for one in unet if one in learning]
    reads = [one.block for one in unet if one.group == "transformer"] if told or not learns else []
    first = min(map(place_of, learns + reads))
    passed = [one for one in unet if one.kernel and one not in learning and place_of(one.block) > first]
    alone = [one for one in passed if one.kernel > 1 or one.group == "transformer"]
    return added(((one, given(one)) for one in alone), largest_blocks(table) if recomputed else None)
