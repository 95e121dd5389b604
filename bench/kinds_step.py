"""One forward and backward pass with each kind of adapter: ours against LyCORIS' modules on the same layers.

    python -m bench.kinds_step --size full --rounds 5

Both sides wrap the same layers of the UNet at the same rank; what is timed is the pass alone, without noise, optimizer
and events. The two alternate inside each round and the ratio is taken round by round. LyCORIS forms W + ΔW for LoHa,
LoKr and DoRA; ours forms ΔW for LoHa alone.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from bench.random_models import SIZES, build_model
from lib_trainer.host.holding import frozen
from lib_trainer.networks.adapters import AdapterSpec
from lib_trainer.networks.lora import LoraNetwork

RANK = 16
SPECS = {
    "LoRA": AdapterSpec("lora", RANK, RANK),
    "LoHa": AdapterSpec("loha", RANK, RANK),
    "LoKr": AdapterSpec("lokr", RANK, RANK, factor=8),
    "DoRA": AdapterSpec("lora", RANK, RANK, dora=True),
}
Step = Callable[[], None]


def step_of(model: Any, side: int, trained: list[torch.nn.Parameter]) -> Step:
    generator = torch.Generator().manual_seed(1)
    latents, target = (torch.randn(1, 4, side // 8, side // 8, generator=generator) for _ in range(2))
    with torch.no_grad():
        told = model.encode_text(["a red circle"], 1, 1)
    timestep = torch.tensor([500])

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        F.mse_loss(model.predict(latents, timestep, told), target).backward()

    return step


def ours(spec: AdapterSpec, size: str, stack: contextlib.ExitStack) -> Step:
    model = build_model(size)
    stack.enter_context(frozen(model.unet, *model.text.parts().values()))
    network = LoraNetwork.build([(t, spec) for t in _targets(model)], torch.Generator().manual_seed(0))
    stack.enter_context(network.applied())
    return step_of(model, SIZES[size], list(network.parameters()))


def theirs(spec: AdapterSpec, size: str, stack: contextlib.ExitStack) -> Step:
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    model = build_model(size)
    stack.enter_context(frozen(model.unet, *model.text.parts().values()))
    kind = {"lora": LoConModule, "loha": LohaModule, "lokr": LokrModule}[spec.kind]
    options = {"factor": spec.factor} if spec.kind == "lokr" else {}
    trained: list[torch.nn.Parameter] = []
    for target in _targets(model):
        module = kind(
            target.key,
            target.module,
            1.0,
            spec.rank,
            spec.alpha,
            weight_decompose=spec.dora,
            wd_on_out=False,
            **options,
        )
        module.apply_to()
        trained += [parameter for parameter in module.parameters() if parameter.requires_grad]
    return step_of(model, SIZES[size], trained)


def _targets(model: Any) -> list[Any]:
    return [target for target in model.adaptable_modules() if target.part == "unet" and target.group == "transformer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print(f"{options.size} {SIZES[options.size]}², fp32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| kind | ours, s | LyCORIS, s | ratio (median of rounds) | min | max |\n|---|---|---|---|---|---|")
    for name, spec in SPECS.items():
        with contextlib.ExitStack() as stack:
            steps = [make(spec, options.size, stack) for make in (ours, theirs)]
            seconds: list[tuple[float, float]] = []
            for number in range(-1, options.rounds):
                own = []
                for step in steps:
                    started = time.perf_counter()
                    step()
                    own.append(time.perf_counter() - started)
                if number >= 0:
                    seconds.append((own[0], own[1]))
        ratios = [mine / other for mine, other in seconds]
        mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
        row = f"{mine:.3f} | {other:.3f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
