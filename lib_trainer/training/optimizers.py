"""Optimizers: what is known of each in one visible registry, how one is made, and how it steps, resumes and averages.

Their packages are imported when they are chosen. A property that the rest of the trainer asks about stands in the
registry's entry; nothing hangs on an optimizer's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import inspect
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lib_trainer.config import OptimizerConfig
from lib_trainer.install_plan import BITSANDBYTES, PRODIGY_PLUS, PYTORCH_OPTIMIZER, Package
from lib_trainer.refusals import ConfigError, Field, one_line
from lib_trainer.torch_version import torch_version
from lib_trainer.training.arguments import parse_arguments

Groups = list[dict[str, Any]]
Shapes = Sequence[tuple[Sequence[int], int]]
"""Shapes of tensors that learn, and how many there are of each."""

BY_PATH = "by path"
"""The choice that names a class itself."""


@dataclass(frozen=True)
class Passing:
    """Bytes that a step makes and lets go of: for each number that learns, and for each of the largest tensor."""

    each: float = 0.0
    largest: float = 0.0


@dataclass(frozen=True)
class Known:
    """What is known of an optimizer. `path`: its class. `package`: what brings it, where the hosts do not.

    `usual` arguments are given unless the job says otherwise, `fixed` ones always: they are decided by other options.
    `whole`: the update of a number hangs on that number and on sums over all of them, so that many tensors may be given
    as one. `state`: bytes that it keeps for each number; `factors`: moments that it keeps as sums over rows and over
    columns beside that. `passing`: what its step makes on the way, on a card and elsewhere; one is made for both.
    `finds_rate`: it finds the step's size itself, and rates are factors on it near 1; with `one_rate` they must be
    equal. `adapts`: the rate alone says how far a number goes in a step, however large its gradients are. `averages`:
    what is to be saved is an average that it keeps. `card`: it needs an NVIDIA card. `kin`: what is nearest to it and
    runs where it does not. `lighter`: the same with a smaller state.
    """

    path: str
    package: Package | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    state: float = 12.0
    factors: int = 0
    passing: tuple[Passing, Passing] = (Passing(), Passing())
    finds_rate: bool = False
    one_rate: bool = False
    adapts: bool = True
    averages: bool = False
    card: bool = False
    kin: str = "AdamW"
    lighter: str = ""

    @property
    def module(self) -> str:
        return self.path.rpartition(".")[0]

    def state_bytes(self, shapes: Shapes) -> int:
        """What it keeps beside tensors of these shapes."""
        return int(sum(count * (self.state * math.prod(shape) + self._factored(shape)) for shape, count in shapes))

    def _factored(self, shape: Sequence[int]) -> float:
        """Of the last two dimensions the sums over each; a vector's moment is kept whole."""
        numbers = math.prod(shape)
        if len(shape) < 2:
            return min(self.factors, 1) * 4.0 * numbers
        return self.factors * 4.0 * (numbers / shape[-1] + numbers / shape[-2])

    def passing_bytes(self, groups: Sequence[Shapes], device: torch.device) -> int:
        """What a step makes on the way beside groups of tensors and their gradients, for one group after the other."""
        own = self.passing[0 if device.type == "cuda" else 1]
        return max((self._passing(own, shapes) for shapes in groups), default=0)

    @staticmethod
    def _passing(own: Passing, shapes: Shapes) -> int:
        numbers = [(math.prod(shape), count) for shape, count in shapes]
        every, largest = sum(size * count for size, count in numbers), max((size for size, _ in numbers), default=0)
        return int(own.each * every + own.largest * largest)

    @property
    def installed(self) -> bool:
        """Whether its package is there; nothing is imported."""
        return importlib.util.find_spec(self.path.partition(".")[0]) is not None


OPTIMIZERS: dict[str, Known] = {
    # Decoupled weight decay: Loshchilov & Hutter 2019, arXiv:1711.05101
    "AdamW": Known("torch.optim.AdamW", whole=True, state=8.0, lighter="AdamW8bit"),
    # Block-wise 8-bit states, with a fp32 scale for every 256 numbers: Dettmers et al. 2022, arXiv:2110.02861
    "AdamW8bit": Known("bitsandbytes.optim.AdamW8bit", BITSANDBYTES, state=2.06, card=True),
    "PagedAdamW8bit": Known("bitsandbytes.optim.PagedAdamW8bit", BITSANDBYTES, state=2.06, card=True),
    # Chen et al. 2023, arXiv:2302.06675
    "Lion": Known(
        "pytorch_optimizer.Lion", PYTORCH_OPTIMIZER, whole=True, state=4.0, passing=2 * (Passing(4.0),),
        lighter="Lion8bit",
    ),
    "Lion8bit": Known("bitsandbytes.optim.Lion8bit", BITSANDBYTES, state=1.03, card=True, kin="Lion"),
    # Sutskever et al. 2013
    "SGDNesterov": Known(
        "torch.optim.SGD", usual={"momentum": 0.9}, fixed={"nesterov": True}, whole=True, state=4.0, adapts=False,
        passing=(Passing(4.0), Passing(0.0, 8.0)), lighter="SGDNesterov8bit",
    ),
    # bitsandbytes takes `nesterov`, and steps by plain momentum
    "SGDNesterov8bit": Known(
        "bitsandbytes.optim.SGD8bit", BITSANDBYTES, usual={"momentum": 0.9}, fixed={"nesterov": True}, state=1.03,
        card=True, kin="SGDNesterov", adapts=False,
    ),
    # Defazio & Mishchenko 2023, arXiv:2301.07733
    "DAdaptAdamW": Known(
        "pytorch_optimizer.DAdaptAdam", PYTORCH_OPTIMIZER, usual={"weight_decouple": True}, whole=True, state=12.0,
        passing=2 * (Passing(4.0, 4.0),), finds_rate=True, one_rate=True,
    ),
    "DAdaptLion": Known(
        "pytorch_optimizer.DAdaptLion", PYTORCH_OPTIMIZER, usual={"weight_decouple": True}, whole=True, state=8.0,
        passing=2 * (Passing(4.0, 4.0),), finds_rate=True, one_rate=True, kin="Lion",
    ),
    # Shazeer & Stern 2018, arXiv:1804.04235, at the job's own rate
    "Adafactor": Known(
        "transformers.optimization.Adafactor", usual={"scale_parameter": False},
        fixed={"relative_step": False, "warmup_init": False}, state=0.0, factors=1, passing=2 * (Passing(0.0, 12.0),),
    ),
    # Mishchenko & Defazio 2024, arXiv:2306.06101
    "Prodigy": Known(
        "pytorch_optimizer.Prodigy", PYTORCH_OPTIMIZER, whole=True, state=16.0, finds_rate=True, one_rate=True,
        passing=(Passing(4.0, 4.0), Passing(0.0, 4.0)),
    ),
    # Defazio et al. 2024, arXiv:2405.15682
    "AdamWScheduleFree": Known(
        "pytorch_optimizer.ScheduleFreeAdamW", PYTORCH_OPTIMIZER, fixed={"warmup_steps": 0}, whole=True, state=8.0,
        passing=2 * (Passing(8.0),), averages=True,
    ),
    "ProdigyPlusScheduleFree": Known(
        "prodigyplus.ProdigyPlusScheduleFree", PRODIGY_PLUS, fixed={"use_schedulefree": True, "fused_back_pass": False},
        state=4.4, passing=2 * (Passing(0.0, 8.0),), finds_rate=True, averages=True, kin="Prodigy",
    ),
    # Luo et al. 2023, arXiv:2307.02047
    "CAME": Known(
        "pytorch_optimizer.CAME", PYTORCH_OPTIMIZER, state=4.0, factors=2, passing=2 * (Passing(8.0, 8.0),),
        kin="Adafactor",
    ),
    # Pagliardini et al. 2024, arXiv:2409.03137
    "AdEMAMix": Known(
        "pytorch_optimizer.AdEMAMix", PYTORCH_OPTIMIZER, usual={"weight_decouple": True}, whole=True, state=12.0,
        passing=2 * (Passing(8.0),),
    ),
}  # fmt: skip


def known(config: OptimizerConfig) -> Known:
    """The registry's entry of a job's optimizer; of a class by its path what can be said of any."""
    return Known(config.class_path.strip(), adapts=False) if config.name == BY_PATH else OPTIMIZERS[config.name]


def called(config: OptimizerConfig) -> str:
    """What files and sentences call a job's optimizer."""
    return config.class_path.strip() if config.name == BY_PATH else config.name


def wants_average(config: OptimizerConfig) -> bool:
    """Whether a job keeps a running average beside what learns; an optimizer that averages does so itself."""
    return config.ema and not known(config).averages


def finds_rate(config: OptimizerConfig) -> bool:
    """Whether a job's optimizer finds the rate itself; of a class by its path its parameter groups tell."""
    if config.name != BY_PATH:
        return known(config).finds_rate
    try:
        return "d" in make_optimizer(_tried(), config).param_groups[0]
    except ConfigError:  # it cannot run at all, and the job's checks say why
        return False


def described(config: OptimizerConfig) -> str:
    """An optimizer with its arguments, as files tell them."""
    given = " ".join(config.arguments.split())
    return f"{called(config)}({given})" if given else called(config)


def lighter(config: OptimizerConfig, device: torch.device) -> str:
    """The same optimizer with a smaller state, if it would run on the device; empty if there is none."""
    name = known(config).lighter
    return name if name and device.type == "cuda" and OPTIMIZERS[name].installed else ""


# ------------------------------------------------------------------------------------------------------- making one


def make_optimizer(groups: Groups, config: OptimizerConfig) -> Optimizer:
    """A job's optimizer over parameter groups, each with `params`, `lr` and `name`. Raises `ConfigError`."""
    entry, kind = known(config), optimizer_class(config)
    arguments = {**_own_arguments(groups, entry), **_demanded(groups, kind), **_arguments(config, kind)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some packages print what they decide
            optimizer: Optimizer = kind(groups, **arguments)
    except Exception as error:
        raise ConfigError(
            "optimizer.not_made", field="optimizer.arguments", optimizer=called(config), reason=one_line(error)
        ) from error
    if averages(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _own_arguments(groups: Groups, entry: Known) -> dict[str, Any]:
    """torch's AdamW is fused into one kernel where torch can."""
    if entry.path != "torch.optim.AdamW":
        return {}
    device = groups[0]["params"][0].device
    fused = device.type == "cuda" or (device.type == "cpu" and _cpu_has_fused_adamw())
    return {"fused": fused or None}


def _demanded(groups: Groups, kind: type[Optimizer]) -> dict[str, Any]:
    """Some classes are made with a rate, although every group has its own."""
    rate = inspect.signature(kind).parameters.get("lr")
    return {} if rate is None or rate.default is not rate.empty else {"lr": max(group["lr"] for group in groups)}


def _arguments(config: OptimizerConfig, kind: type[Optimizer]) -> dict[str, Any]:
    """Weight decay and the arguments of a job, checked against the class. Raises `ConfigError`."""
    entry, names = known(config), _parameters(kind)
    given = parse_arguments(config.arguments)
    for name in given:
        here, optimizer = "optimizer.arguments", called(config)
        if name == "lr":
            raise ConfigError("optimizer.rate_argument", field=here, optimizer=optimizer)
        if name == "weight_decay":
            raise ConfigError("optimizer.decay_argument", field=here, decay=Field("optimizer.weight_decay"))
        if name in entry.fixed:
            raise ConfigError(
                "optimizer.fixed_argument", field=here, optimizer=optimizer, argument=name, value=entry.fixed[name]
            )
        if name not in names:
            takes = sorted(names - {"lr", "weight_decay", *entry.fixed})
            raise ConfigError("optimizer.no_argument", field=here, optimizer=optimizer, argument=name, takes=takes)
    decay = {"weight_decay": config.weight_decay} if "weight_decay" in names else {}
    return {**decay, **entry.usual, **given, **entry.fixed}


def _parameters(kind: type[Optimizer]) -> set[str]:
    """Names that the constructor takes, beside the parameters to learn."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = [one for one in inspect.signature(kind).parameters.values() if one.kind in named]
    return {one.name for one in own[1:]}


def optimizer_class(config: OptimizerConfig) -> type[Optimizer]:
    """The class of a job's optimizer, whose package is imported now. Raises `ConfigError` where it cannot be had."""
    entry = known(config)
    if config.name != BY_PATH and not entry.installed:
        assert entry.package is not None  # what has none comes with torch and transformers
        raise ConfigError(
            "optimizer.not_installed", field="optimizer.name", name=config.name, package=entry.package.name,
            kin=entry.kin,
        )  # fmt: skip
    field = "optimizer.class_path" if config.name == BY_PATH else "optimizer.name"
    module, name = entry.module, entry.path.rpartition(".")[2]
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except Exception as error:  # a package may fail in any way when it meets versions that it was not made for
        raise ConfigError("optimizer.no_class", field=field, path=entry.path, reason=one_line(error)) from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ConfigError("optimizer.other_class", field=field, path=entry.path)
    return found


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Raise `ConfigError` if the optimizer cannot run on the device, is not installed, or refuses its arguments."""
    entry = known(config)
    if entry.card and device.type != "cuda":
        raise ConfigError("optimizer.no_card", field="optimizer.name", name=config.name, kin=entry.kin)
    make_optimizer(_tried(), config)


def _tried() -> Groups:
    """The least that an optimizer can be made over."""
    return [{"params": [torch.nn.Parameter(torch.zeros(2, 2))], "lr": 1e-3, "name": "tried"}]


# ---------------------------------------------------------------------------------------------------- how one steps


def step_unless(optimizer: Optimizer, bad: torch.Tensor) -> None:
    """One step, unless the scalar `bad` is true on the device: then parameters and state stay as they are.

    torch's fused kernels read the answer themselves, as they do for loss scaling; other optimizers are waited for. SGD
    is too: its kernel makes a momentum also at a first step that it leaves out, fills it with nothing, and goes on so.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or isinstance(optimizer, torch.optim.SGD):
        if not bool(bad):
            optimizer.step()
        return
    own: Any = optimizer
    own.grad_scale, own.found_inf = None, bad.float()
    try:
        optimizer.step()
    finally:
        del own.grad_scale, own.found_inf


def restore(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """`Optimizer.load_state_dict`, but that tensors keep their precision, which torch would make the parameters'."""
    optimizer.load_state_dict(dict(state))
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            own = optimizer.state.get(parameter, {})
            for name, value in state["state"].get(key, {}).items():
                now = own.get(name)
                if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
                    own[name] = value.to(now.device)


def forget_state(optimizer: Optimizer) -> None:
    """Let go of all that it keeps beside the parameters; it steps no more."""
    owns = [own for own in optimizer.state.values() if isinstance(own, Mapping)]  # torch lets any value stand there
    tensors = [one for own in owns for one in own.values() if isinstance(one, torch.Tensor)]
    optimizer.state.clear()
    paged = [one for one in tensors if getattr(one, "is_paged", False)]
    if paged:
        _give_back(paged, optimizer)


def _give_back(paged: list[torch.Tensor], optimizer: Any) -> None:
    """bitsandbytes takes memory for paged states from CUDA itself, lists it for good and never gives it back."""
    from bitsandbytes.cextension import lib

    gone, kept = {id(one) for one in paged}, optimizer.page_mng.paged_tensors
    kept[:] = [one for one in kept if id(one) not in gone]
    # of the CUDA that it is linked with; Windows does not show that of a library
    free = getattr(getattr(lib, "_lib", lib), "cudaFree", None)
    if free is not None:
        torch.cuda.synchronize()
        for one in paged:
            free(ctypes.c_void_p(one.data_ptr()))


class Beginning:
    """An optimizer as it is before its first step: what its groups hold besides their parameters, and the state that
    some make at once."""

    def __init__(self, optimizer: Optimizer) -> None:
        groups: Groups = optimizer.param_groups
        self._groups = [deepcopy({name: one for name, one in group.items() if name != "params"}) for group in groups]
        self._state = {parameter: deepcopy(own) for parameter, own in optimizer.state.items()}

    def again(self, optimizer: Optimizer) -> None:
        """Forget what it has counted, found and averaged. One that averages leaves what has learned at its average."""
        to_average(optimizer)
        forget_state(optimizer)
        optimizer.state.update({parameter: deepcopy(own) for parameter, own in self._state.items()})
        for group, own in zip(optimizer.param_groups, self._groups, strict=True):
            for name in group.keys() - own.keys() - {"params"}:
                del group[name]
            group.update(deepcopy(own))
            with torch.no_grad():
                for parameter in group["params"]:
                    parameter.mul_(1)  # see `averaged`


def averages(optimizer: Optimizer) -> bool:
    """Whether it learns in one place and keeps an average of it in another, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def to_average(optimizer: Optimizer) -> None:
    """After the last step: the parameters become what is to be saved. Allocates next to nothing."""
    if averages(optimizer) and optimizer.state:
        optimizer.eval()  # type: ignore[attr-defined]


@contextlib.contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """While this holds, the parameters are what is to be saved; afterwards they are bit for bit what they were.

    The way back that optimizers have themselves is arithmetic and would lose bits: a copy is kept, in the computer's
    memory. Before the first step and after the state was cleared nothing is done.
    """
    if not (averages(optimizer) and optimizer.state):
        yield
        return
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().to("cpu", copy=True) for parameter in learning]
    try:
        optimizer.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter in learning:
                parameter.mul_(1)  # packages change `.data`, which copies that are kept of parameters do not notice
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(learning, kept, strict=True):
                parameter.copy_(value)


def effective_rates(optimizer: Optimizer) -> dict[str, float]:
    """What each group's step is scaled by: its rate, times what an optimizer that finds the rate itself has found."""
    return {group["name"]: group["lr"] * float(group.get("d", 1.0)) for group in optimizer.param_groups}


def _cpu_has_fused_adamw() -> bool:
    """torch 2.4 brought the fused CPU kernel; earlier ones refuse `fused=True` there."""
    return torch_version() >= (2, 4) and "fused" in inspect.signature(torch.optim.AdamW).parameters
