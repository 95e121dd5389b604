"""Decoding and encoding with a VAE of SD1's channel counts: ours, the untiled one and diffusers' enable_tiling.

    python -m bench.tiled_vae --sizes 512 768 1024
    python -m bench.tiled_vae --what encode --module ldm --sizes 1024 --tiers untiled resident recompute

Each contender runs in a process of its own. Time is that of one run after a small one; processor time is less disturbed
by whatever else the machine does. Memory is the peak resident size less what was resident before, in elements per pixel
of the picture, so that sizes can be compared; "predicted" is the cost model's. Errors are against the untiled result,
in its standard deviations. --module ldm takes the WebUI's own modules in place of diffusers': its encoder keeps every
map until it is done, and so needs more memory untiled. Contenders of one size run one after the other, `--rounds` times
over, and each ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.choose import candidates, untiled_bytes
from lib_trainer.tiling.engine import Options, run
from lib_trainer.tiling.network import Network
from lib_trainer.tiling.plan import Plan, Tier

SD1_CHANNELS = (128, 256, 512, 512)
PREDICTED_SIZES = (2048, 4096, 8192)
CONTENDERS = ("untiled", "resident", "recompute", "host", "diffusers")


def build_vae() -> AutoencoderKL:
    """SD1's layout with random weights, damped so that activations keep their size over the layers."""
    torch.manual_seed(0)
    kind = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = (
        AutoencoderKL(block_out_channels=SD1_CHANNELS, layers_per_block=2, sample_size=512, **kind)
        .eval()
        .requires_grad_(False)
    )
    return damped(vae)


def damped(module: Any) -> Any:
    for name, parameter in module.named_parameters():
        if "norm" not in name:
            bound = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn_like(parameter) * bound)
    return module


def build_ldm(what: str) -> Any:
    """ldm's encoder or decoder with the same channels."""
    from ldm.modules.diffusionmodules.model import Decoder, Encoder

    torch.manual_seed(0)
    kind = Decoder if what == "decode" else Encoder
    module = kind(
        ch=128, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], dropout=0.0, in_channels=3,
        resolution=512, z_channels=4, double_z=True,
    )  # fmt: skip
    return damped(module.eval().requires_grad_(False))


def inputs(what: str, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    if what == "decode":
        return torch.randn(1, 4, side // 8, side // 8, generator=generator)
    noise = torch.rand(1, 3, side // 16, side // 16, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear")


def first_plan(network: Network, given: torch.Tensor, tier: Tier) -> Plan:
    return candidates(network, given.shape, given.element_size(), tiers=(tier,))[0]


def run_one(what: str, contender: str, given: torch.Tensor, vae: AutoencoderKL, module: Any) -> torch.Tensor:
    with torch.no_grad():
        if contender == "untiled":
            return module(given)
        if contender == "diffusers":
            vae.enable_tiling()
            if what == "decode":
                return vae.tiled_decode(given, return_dict=False)[0]
            return vae.tiled_encode(given, return_dict=False)[0].parameters
    if contender == "host":  # on a CPU the engine would not take it: its maps are copied to and fro all the same
        from lib_trainer.tiling.engine import attempt

        network = describe(module)
        with torch.no_grad():
            return attempt(network, first_plan(network, given, Tier.HOST), given, Options())
    return run(describe(module), given, Options(tiers=(Tier(contender),)))


def alone(what: str, contender: str, side: int, result: str, module_of: str) -> None:
    """In a process of its own: time, peak memory, and the result for comparison."""
    vae, given = build_vae(), inputs(what, side)
    if contender == "diffusers":  # its tiles go through the two 1×1 convolutions as well: make them do nothing
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.weight.copy_(torch.eye(conv.weight.shape[0])[:, :, None, None])
            conv.bias.zero_()
    module = build_ldm(what) if module_of == "ldm" else vae.decoder if what == "decode" else vae.encoder
    run_one(what, contender, inputs(what, 64), vae, module)
    before, started, worked = resident_now(), time.perf_counter(), time.process_time()
    out = run_one(what, contender, given, vae, module)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(out, result)
    print(json.dumps({"seconds": seconds, "work": work, "peak": peak - before}))


def resident_now() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def measure(what: str, side: int, contenders: list[str], rounds: int, module_of: str) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    results: dict[str, torch.Tensor] = {}
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # waiting threads would count as work
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in contenders:
                path = str(Path(folder) / f"{name}.pt")
                command = [sys.executable, "-m", "bench.tiled_vae", "--alone", name, "--what", what]
                command += ["--sizes", str(side), "--result", path, "--threads", str(torch.get_num_threads())]
                command += ["--module", module_of]
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                    continue
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                results[name] = torch.load(path)
    report(what, side, found, results, module_of)


def report(
    what: str, side: int, found: dict[str, list[dict[str, float]]], results: dict[str, Any], module_of: str
) -> None:
    print(f"\n{what} {side}², {module_of}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        "| | s | × untiled | processor s | × untiled "
        "| peak /HW | predicted /HW | × untiled | max err/std | mean err/std |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    network, given = predicted_network(what), inputs(what, side)
    base = found.get("untiled") or []
    for name, runs in found.items():
        if not runs:
            continue
        seconds = statistics.median(one["seconds"] for one in runs)
        peak = statistics.median(one["peak"] for one in runs) / 4 / side**2
        row = [name, f"{seconds:.1f}"]
        work = statistics.median(one["work"] for one in runs)
        worked = statistics.median(a["work"] / b["work"] for a, b in zip(runs, base)) if base else float("nan")
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs, base)) if base else float("nan")
        share = statistics.median(a["peak"] / b["peak"] for a, b in zip(runs, base)) if base else float("nan")
        row += [
            f"{ratio:.2f}",
            f"{work:.1f}",
            f"{worked:.2f}",
            f"{peak:.0f}",
            f"{predicted(network, given.shape, name, keeps_maps=module_of == 'ldm') / 4 / side**2:.0f}",
            f"{share:.2f}",
        ]
        if "untiled" in results:
            error = (results[name] - results["untiled"]).abs() / results["untiled"].std()
            row += [f"{error.max():.1e}", f"{error.mean():.1e}"]
        print("| " + " | ".join(row) + " |", flush=True)


def predicted_network(what: str) -> Network:
    vae = build_vae()
    return describe(vae.decoder if what == "decode" else vae.encoder)


def predicted(network: Network, shape: Any, name: str, *, keeps_maps: bool) -> float:
    if name == "diffusers":
        return float("nan")
    if name == "untiled":
        return untiled_bytes(network, tuple(shape), 4, keeps_maps=keeps_maps)
    plan = candidates(network, tuple(shape), 4, tiers=(Tier(name),))[0]
    return plan.device_bytes + plan.host_bytes


def print_predictions(what: str) -> None:
    """GiB in half precision, where nothing is measured."""
    network = predicted_network(what)
    print(f"\n{what}, predicted, GiB in fp16 on the device (and in the computer) and tera multiply-adds")
    print("| | untiled | " + " | ".join(tier.value for tier in Tier) + " |\n|---|---|---|---|---|")
    for side in PREDICTED_SIZES:
        shape = (1, 4, side // 8, side // 8) if what == "decode" else (1, 3, side, side)
        row = [f"{side}²", f"{untiled_bytes(network, shape, 2) / 2**30:.1f}"]
        for tier in Tier:
            plan = candidates(network, shape, 2, tiers=(tier,))[0]
            host = (
                f" (+ {plan.host_bytes / 2**30:.0f}, moving {plan.traffic_bytes / 2**30:.0f})"
                if plan.host_bytes
                else ""
            )
            row.append(f"{plan.device_bytes / 2**30:.1f}{host}, {plan.macs / 1e12:.0f} T")
        print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("decode", "encode"), default="decode")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--tiers", dest="contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--module", choices=("diffusers", "ldm"), default="diffusers", help="whose VAE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alone", choices=CONTENDERS)
    parser.add_argument("--result")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.alone:
        alone(options.what, options.alone, options.sizes[0], options.result, options.module)
        return
    for side in options.sizes:
        measure(options.what, side, options.contenders, options.rounds, options.module)
    print_predictions(options.what)


if __name__ == "__main__":
    main()
