"""Optimizers: the registry, what is refused, arguments, and what each does beside its reference."""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from bench.allocations import Allocations
from lib_trainer.config import OptimizerConfig
from lib_trainer.config.base import AVERAGING
from lib_trainer.networks.flat import Flat
from lib_trainer.refusals import ConfigError
from lib_trainer.training.arguments import parse_arguments
from lib_trainer.training.optimizers import (
    BY_PATH,
    OPTIMIZERS,
    averaged,
    averages,
    check_optimizer,
    effective_rates,
    forget_state,
    known,
    make_optimizer,
    optimizer_class,
    restore,
    to_average,
)
from tests.card import CARD, CPU, NEEDS_A_CARD

HERE = [name for name, entry in OPTIMIZERS.items() if not entry.card]
"""Those that run on a CPU."""
EVERYWHERE = [
    *(pytest.param(name, CPU, id=name) for name in HERE),
    *(pytest.param(name, CARD, id=f"{name} on a card", marks=NEEDS_A_CARD) for name in OPTIMIZERS),
]


def test_adamw_is_the_papers_update() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64 by hand, for two groups with rates of their own."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(3))]
    rates, decay = [0.1, 0.01], 0.2
    mine = [parameter.detach().double().clone() for parameter in parameters]
    first, second = ([torch.zeros_like(p) for p in mine] for _ in range(2))
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": rate, "name": name} for parameter, rate, name in zip(parameters, rates, "ab")
    ]
    optimizer = make_optimizer(groups, OptimizerConfig(weight_decay=decay))
    for step in range(1, 6):
        for index, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            g = gradient.double()
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.999 * second[index] + 0.001 * g * g
            mhat, vhat = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
            mine[index] -= rates[index] * (mhat / (vhat.sqrt() + 1e-8) + decay * mine[index])
        optimizer.step()
    for parameter, expected in zip(parameters, mine):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def having(name: str, **options: Any) -> OptimizerConfig:
    """A job's options; the test is skipped where the package is not there."""
    config = OptimizerConfig(name=name, **options)  # type: ignore[arg-type]
    if name != BY_PATH and not known(config).installed:
        pytest.skip(f"{known(config).module.partition('.')[0]} is not installed (requirements/test.txt)")
    return config


class Toy:
    """A small regression, whose tensors are matrices, vectors and a kernel; the same numbers for everybody.

    On a card also one that is large enough for a state in 8 bits (4,096 numbers, says bitsandbytes).
    """

    def __init__(
        self,
        make: Callable[[list[dict[str, Any]]], Optimizer],
        *,
        whole: bool = False,
        rate: float = 0.01,
        device: torch.device = CPU,
    ):
        generator = torch.Generator().manual_seed(3)
        shapes = [(40, 6), (5, 36), (4, 3, 3, 3), (7,)] + ([(128, 64)] if device is CARD else [])
        self.start = torch.cat([torch.randn(shape, generator=generator).flatten() for shape in shapes]).to(device)
        self.target = torch.randn(len(self.start), generator=generator).to(device)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = [self.start.clone()] if whole else list(self.start.clone().split(sizes))
        shaped = parts if whole else [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self.parameters = [nn.Parameter(one) for one in shaped]
        self.optimizer = make([{"params": self.parameters, "lr": rate, "name": "unet"}])
        self.noise = torch.Generator().manual_seed(4)

    @property
    def values(self) -> torch.Tensor:
        return torch.cat([one.detach().flatten() for one in self.parameters])

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            scales = torch.rand(len(self.start), generator=self.noise).to(self.start.device)
            joined = torch.cat([one.flatten() for one in self.parameters])
            ((joined - self.target).square() * scales).mean().backward()
            self.optimizer.step()

    def loss(self) -> float:
        return float((self.values - self.target).square().mean())


def rate_for(name: str) -> float:
    return 1.0 if OPTIMIZERS[name].finds_rate else 0.01


def toy(name: str, *, whole: bool = False, device: torch.device = CPU, **options: Any) -> Toy:
    config = having(name, **options)
    return Toy(lambda groups: make_optimizer(groups, config), whole=whole, rate=rate_for(name), device=device)


# ---------------------------------------------------------------------------------------------------- what each does


@pytest.mark.parametrize(("name", "device"), EVERYWHERE)
def test_each_one_learns(name: str, device: torch.device) -> None:
    run = toy(name, device=device)
    before = run.loss()
    run.step(150)
    assert run.loss() < before * 0.999
    assert bool(run.values.isfinite().all())


REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "Lion": ("lion_pytorch.Lion", {"weight_decay": 0.01}),
    "SGDNesterov": ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "DAdaptLion": ("dadaptation.DAdaptLion", {"weight_decay": 0.01, "betas": (0.9, 0.999)}),
    "DAdaptAdamW": ("dadaptation.DAdaptAdam", {"weight_decay": 0.01, "decouple": True}),
    "Prodigy": ("prodigyopt.Prodigy", {"weight_decay": 0.01}),
    "CAME": ("came_pytorch.CAME", {"lr": 0.01, "weight_decay": 0.01, "betas": (0.9, 0.999, 0.9999)}),
    "AdamWScheduleFree": ("schedulefree.AdamWScheduleFree", {"weight_decay": 0.01, "betas": (0.9, 0.999)}),
    "Adafactor": (
        "transformers.optimization.Adafactor",
        {"weight_decay": 0.01, "scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "ProdigyPlusScheduleFree": ("prodigyplus.ProdigyPlusScheduleFree", {"weight_decay": 0.01}),
}
"""Their authors' own packages (torch's and transformers' where those are what is taken), with the arguments meant."""


@pytest.mark.parametrize("name", REFERENCES)
def test_each_one_is_its_reference(name: str) -> None:
    path, arguments = REFERENCES[name]
    package = pytest.importorskip(path.rpartition(".")[0], reason="a reference of requirements/test-no-deps.txt")

    def reference(groups: list[dict[str, Any]]) -> Optimizer:
        made: Optimizer = getattr(package, path.rpartition(".")[2])(groups, **arguments)
        if averages(made):
            made.train()  # type: ignore[attr-defined]
        return made

    ours, theirs = toy(name), Toy(reference, rate=rate_for(name))
    ours.step(10)
    theirs.step(10)
    assert float((ours.values - theirs.values).norm()) < 0.01 * float((ours.values - ours.start).norm())


def test_ademamix_is_the_papers_update() -> None:
    """Pagliardini et al. 2024, algorithm 1 without schedulers, in float64 by hand."""
    run = toy("AdEMAMix")
    seen: list[torch.Tensor] = []
    run.optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            torch.cat([one.grad.double().flatten() for one in run.parameters if one.grad is not None])
        )
    )
    run.step(6)
    value = run.start.double()
    fast, slow, second = (torch.zeros_like(value) for _ in range(3))
    for step, gradient in enumerate(seen, 1):
        fast = 0.9 * fast + 0.1 * gradient
        slow = 0.9999 * slow + 0.0001 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        size = (second / (1 - 0.999**step)).sqrt() + 1e-8
        value = value - 0.01 * ((fast / (1 - 0.9**step) + 5 * slow) / size + 0.01 * value)
    torch.testing.assert_close(run.values.double(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HERE)
def test_what_may_be_given_as_one_tensor_is_the_same_as_one_tensor(name: str) -> None:
    """`Known.whole` decides whether adapters lie in one buffer for the optimizer."""
    apart, joined = toy(name), toy(name, whole=True)
    apart.step(20)
    joined.step(20)
    if OPTIMIZERS[name].whole:
        torch.testing.assert_close(apart.values, joined.values, rtol=1e-3, atol=1e-5)
    else:
        assert not torch.allclose(apart.values, joined.values, rtol=1e-3, atol=1e-5), "it could be whole"


@pytest.mark.parametrize(("name", "device"), EVERYWHERE)
def test_a_restored_state_goes_on_bit_for_bit(name: str, device: torch.device) -> None:
    run, again = toy(name, device=device), toy(name, device=device)
    run.step(5)
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    restore(again.optimizer, torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    with torch.no_grad():
        for own, other in zip(again.parameters, run.parameters, strict=True):
            own.copy_(other)
    again.noise.set_state(run.noise.get_state())
    run.step(5)
    again.step(5)
    assert torch.equal(run.values, again.values)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_A_CARD) for name, entry in OPTIMIZERS.items() if entry.card]
)
def test_a_state_in_8_bits_is_as_near_as_it_is_small(name: str) -> None:
    """To the same optimizer with its whole state. `state` of the registry is what the forecast reckons with."""
    run, whole = toy(name, device=CARD), toy(OPTIMIZERS[name].kin, device=CARD)
    run.step(20)
    whole.step(20)
    moved = whole.values - whole.start
    assert 0 < float((run.values - whole.values).norm()) < 0.4 * float(moved.norm())
    held = run.optimizer.state[run.parameters[-1]]
    large = run.parameters[-1].numel()
    wide = [one for one in held.values() if isinstance(one, torch.Tensor) and one.numel() == large]
    assert wide and all(one.dtype is torch.uint8 for one in wide)
    assert len(wide) == round(OPTIMIZERS[name].state)


@pytest.mark.parametrize("name", [pytest.param("PagedAdamW8bit", marks=NEEDS_A_CARD)])
def test_a_paged_state_is_given_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To CUDA itself, as torch knows nothing of it. (What is free on the card hangs on other programs too.)"""
    config = having(name)
    if CARD.type == "cpu":
        pytest.skip("bitsandbytes pages on a card only")
    from bitsandbytes import cextension
    from bitsandbytes.functional import GlobalPageManager

    library, given = getattr(cextension.lib, "_lib", cextension.lib), []

    def free(pointer: Any) -> int:
        given.append((pointer.value, library.cudaFree(pointer)))
        return int(given[-1][1])

    monkeypatch.setattr(cextension, "lib", SimpleNamespace(cudaFree=free))
    parameter = nn.Parameter(torch.zeros(1 << 18, device=CARD))
    parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer([{"params": [parameter], "lr": 1e-3, "name": "unet"}], config)
    optimizer.step()
    paged = [optimizer.state[parameter][one].data_ptr() for one in ("state1", "state2")]
    forget_state(optimizer)
    assert sorted(given) == [(pointer, 0) for pointer in sorted(paged)], "0: CUDA has taken it back"
    listed = {one.data_ptr() for one in GlobalPageManager.get_instance().paged_tensors}
    assert not optimizer.state and not listed & set(paged)


def test_a_state_of_plain_values_is_let_go_of() -> None:
    """As torch saves and restores one: under keys that are no parameters may be anything."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state["steps"], optimizer.state[parameter] = 3, {"mean": torch.ones(2)}  # type: ignore[index]
    forget_state(optimizer)
    assert not optimizer.state


# --------------------------------------------------------------------------------------------- averages, found rates


@pytest.mark.parametrize("name", HERE)
def test_what_is_saved_is_the_average_and_learning_goes_on_as_if_nobody_had_looked(name: str) -> None:
    run, watched = toy(name), toy(name)
    assert averages(run.optimizer) == OPTIMIZERS[name].averages == (name in AVERAGING)
    with averaged(run.optimizer):
        assert torch.equal(run.values, run.start), "before the first step there is nothing to average"
    run.step(6)
    seen = []
    for _ in range(6):
        watched.step()
        learning = watched.values
        seen.append(learning)
        with averaged(watched.optimizer):
            if len(seen) > 1:  # after one step there is nothing else to average
                assert torch.equal(watched.values, learning) != OPTIMIZERS[name].averages
            looked_at = watched.values
        assert torch.equal(watched.values, learning)
    assert torch.equal(run.values, watched.values)
    to_average(run.optimizer)
    assert torch.equal(run.values, looked_at)


@pytest.mark.parametrize("name", AVERAGING)
def test_copies_that_are_kept_of_parameters_follow_to_the_average(name: str) -> None:
    """Of what learns no more and was computed with in a step: nothing but a parameter's version tells of a change."""
    flat = Flat([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))], whole=True)
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    optimizer = make_optimizer([{"params": flat.leaves, "lr": 1.0, "name": "te1"}], config)
    for _ in range(4):
        for leaf in flat.leaves:
            leaf.grad = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
    flat.learn(False)
    learning = torch.cat([one.flatten() for one in flat.working(torch.float32)])
    with averaged(optimizer):
        shown = torch.cat([one.flatten() for one in flat.working(torch.float32)])
        assert torch.equal(shown, flat.leaves[0].detach()) and not torch.equal(shown, learning)
    assert torch.equal(torch.cat([one.flatten() for one in flat.working(torch.float32)]), learning)


def test_the_average_is_the_mean_of_where_it_has_been() -> None:
    """x of Defazio et al. 2024, equation 5 with a constant rate: the mean of all z."""
    run = toy("AdamWScheduleFree", weight_decay=0.0)
    places = []
    for _ in range(5):
        run.step()
        places.append(torch.cat([run.optimizer.state[one]["z"].flatten() for one in run.parameters]))
    to_average(run.optimizer)
    torch.testing.assert_close(run.values, torch.stack(places).mean(0), rtol=1e-4, atol=1e-5)


def test_a_rate_that_was_found_is_shown() -> None:
    run = toy("Prodigy")
    assert effective_rates(run.optimizer) == {"unet": pytest.approx(1e-6)}
    run.step(60)
    group = run.optimizer.param_groups[0]
    assert effective_rates(run.optimizer)["unet"] == group["d"] * group["lr"] > 1e-5
    plain = toy("AdamW")
    assert effective_rates(plain.optimizer) == {"unet": 0.01}


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.card])
def test_one_that_needs_a_card_offers_its_kin(name: str) -> None:
    kin = OPTIMIZERS[name].kin
    with pytest.raises(ConfigError, match=rf"optimizer\.name = '{name}' needs an NVIDIA card: take {kin}\."):
        check_optimizer(OptimizerConfig(name=name), CPU)  # type: ignore[arg-type]
    assert not OPTIMIZERS[kin].card


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.package])
def test_one_whose_package_is_not_there_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    package = OPTIMIZERS[name].package
    assert package is not None
    told = rf"needs the package {package.name}, which is not installed: .*install-optimizer {name}"
    with pytest.raises(ConfigError, match=told):
        check_optimizer(OptimizerConfig(name=name), torch.device("cuda"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if not entry.card])
def test_what_an_optimizer_keeps_and_makes_is_foreseen(name: str) -> None:
    """Of kernels, matrices and vectors, and of one buffer where it is given that, beside a group of others, which steps
    after the first. A step may make as much again as all that learns: whole checkpoints were foreseen to need a quarter
    less than they do."""
    entry, config = OPTIMIZERS[name], OptimizerConfig(name=name)  # type: ignore[arg-type]
    many = [((96, 64, 3, 3), 3), ((256, 64), 8), ((8, 512), 8), ((64,), 20)]
    for shapes in (many, [((1 << 17,), 1)]) if entry.whole else (many,):
        groups = [shapes, [((256, 64), 6)]]
        made = [[nn.Parameter(torch.randn(shape)) for shape, count in one for _ in range(count)] for one in groups]
        parameters = [one for own in made for one in own]
        with Allocations() as live:
            live.watch(parameters)
            rate = 1.0 if entry.finds_rate else 1e-3
            named = zip(("unet", "te1"), made, strict=True)
            optimizer = make_optimizer([{"params": own, "lr": rate, "name": name} for name, own in named], config)
            learned, most = live.now, 0
            for _ in range(2):
                for parameter in parameters:
                    parameter.grad = torch.randn_like(parameter)
                live.forget_peak()
                optimizer.step()
                most = max(most, live.peak)
        whole = most - learned
        state = sum(entry.state_bytes(own) for own in groups)
        foreseen = learned + state + entry.passing_bytes(groups, torch.device("cpu"))
        assert foreseen / whole == pytest.approx(1, abs=0.05)


def test_the_registry_is_sound() -> None:
    for name, entry in OPTIMIZERS.items():
        assert entry.kin in OPTIMIZERS and (entry.kin != name or name == "AdamW")
        assert not entry.lighter or OPTIMIZERS[entry.lighter].state < entry.state
        assert entry.package or importlib.util.find_spec(entry.path.partition(".")[0])
        if entry.installed and not entry.card:
            kind = optimizer_class(OptimizerConfig(name=name))  # type: ignore[arg-type]
            taken = inspect.signature(kind).parameters
            assert {*entry.usual, *entry.fixed} <= set(taken), name


def test_any_class_that_is_installed() -> None:
    config = having(BY_PATH, class_path="torch.optim.RMSprop", arguments="momentum=0.5, centered=true")
    check_optimizer(config, CPU)
    run = Toy(lambda groups: make_optimizer(groups, config))
    assert type(run.optimizer) is torch.optim.RMSprop
    group = run.optimizer.param_groups[0]
    assert (group["momentum"], group["centered"], group["weight_decay"], group["lr"]) == (0.5, True, 0.01, 0.01)
    assert not known(config).whole, "of its rules nothing is known"


class WantsARate(torch.optim.SGD):
    """bitsandbytes' SGD is made like this."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)


def test_a_class_that_is_made_with_a_rate_gets_one_and_each_group_keeps_its_own() -> None:
    config = OptimizerConfig(name=BY_PATH, class_path=f"{__name__}.WantsARate")  # type: ignore[arg-type]
    check_optimizer(config, CPU)
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate, "name": str(rate)} for rate in (0.0, 0.5, 0.25)]
    made = make_optimizer(groups, config)
    assert made.defaults["lr"] == 0.5
    assert [group["lr"] for group in made.param_groups] == [0.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "is no optimizer of torch's kind"),
        ("RMSprop", "is no optimizer of torch's kind"),
        ("torch.optim.Nothing", "cannot be had .*Nothing"),
        ("no_such_package.Adam", "cannot be had .*no_such_package"),
        ("torch.nn.Linear", "is no optimizer of torch's kind"),
        ("os.system", "is no optimizer of torch's kind"),
        ("torch..Adam", "cannot be had"),
    ],
)
def test_what_is_no_class_of_an_optimizer_is_refused(path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.class_path = '{path}' {told}"):
        check_optimizer(OptimizerConfig(name=BY_PATH, class_path=path), CPU)  # type: ignore[arg-type]


def test_arguments_as_people_type_them() -> None:
    text = "betas=(0.9, 0.99), eps=1e-8; amsgrad = true\nmode='a=b' wide=[1, 2],"
    assert parse_arguments(text) == {
        "betas": (0.9, 0.99), "eps": 1e-8, "amsgrad": True, "mode": "a=b", "wide": [1, 2]
    }  # fmt: skip
    assert parse_arguments("  ") == {} and parse_arguments("betas=0.9, 0.99") == {"betas": (0.9, 0.99)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("betas", "'betas' is not of the form name=value"),
        ("0.9 eps=1", "'0.9' is not of the form"),
        ("eps=1 eps=2", "has eps twice"),
        ("eps=__import__('os')", "eps = .* is no number"),
        ("eps=", "eps = '' is no number"),
        ("momentum=0.9", r"AdamW has no argument 'momentum': it has (?!.*(weight_decay|\blr\b))amsgrad, betas"),
        ("lr=1", "leave lr out, as AdamW gets it from the learning rates"),
        ("weight_decay=1", "leave weight_decay out and set optimizer.weight_decay"),
        ("betas=(2, 3)", "AdamW cannot be made with these arguments .*beta"),
    ],
)
def test_arguments_are_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.arguments.*{told}"):
        check_optimizer(OptimizerConfig(arguments=text), CPU)


def test_what_the_job_decides_is_no_argument() -> None:
    with pytest.raises(ConfigError, match="leave nesterov out, as SGDNesterov always has True there"):
        check_optimizer(OptimizerConfig(name="SGDNesterov", arguments="nesterov=False"), CPU)
    check_optimizer(OptimizerConfig(name="SGDNesterov", arguments="momentum=0.5"), CPU)
