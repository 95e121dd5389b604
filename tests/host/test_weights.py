"""Weights of a run: converted in their place, put back without allocating, moved once, whatever fails meanwhile."""

from __future__ import annotations

import contextlib
import copy
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib_trainer.families.open_clip import InFile
from lib_trainer.host import weights as weights_module
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.quantised import is_quantised, quantised_parameters
from lib_trainer.host.weights import Bus, Held, Phase, Weights, _reinterpreted, held_parameters, waiting_parameters
from lib_trainer.kinds import slots
from lib_trainer.kinds.slots import Slot
from lib_trainer.ports import OwnParameter, TrainingState
from lib_trainer.refusals import ModelError
from lib_trainer.training.session import Session
from lib_trainer.transfer import has_place
from tests.card import CPU, ON_A_CARD, settled
from tests.host.cards import Card
from tests.support import Tiny, differences, roots_of, snapshot

CARD_SLACK = 1 << 20
"""Bytes by which a card's allocator rounds up what the tiny model's tensors take."""
HALVES = [torch.float16, torch.bfloat16, torch.float32]


class Net(nn.Module):
    """Tied weights, a norm, an embedding, a convolution in the order that --opt-channelslast brings about."""

    def __init__(self, stored: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.linear, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to(torch.float16 if stored is torch.float8_e4m3fn else stored)
        if stored is torch.float8_e4m3fn:
            for layer in (self.linear, self.tied, self.conv):
                layer.to(stored)


def weights_of(
    card: Card, run: torch.dtype, *, unet: nn.Module, unet_waits: bool = False, **others: nn.Module
) -> Weights:
    parts: dict[str, list[Held]] = {"unet": held_parameters(unet, card, run)}
    if "text" in others:
        parts["text"] = held_parameters(others["text"], card, run)
    if "vae" in others:
        parts["vae"] = waiting_parameters(others["vae"], card)
    return Weights(parts, card, unet_waits=unet_waits)


def places(root: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in root.named_parameters()}


class NoAllocation(TorchDispatchMode):
    """Refuses every operation that makes a tensor with memory of its own."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {one.untyped_storage()._cdata for one in args if isinstance(one, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata not in inputs:
            assert out.untyped_storage().nbytes() == 0, f"{func} allocates"
        return out


@pytest.mark.parametrize("run", HALVES, ids=str)
@pytest.mark.parametrize("stored", [*HALVES, torch.float8_e4m3fn], ids=str)
def test_parameters_come_back_in_their_place_without_allocating(stored: torch.dtype, run: torch.dtype) -> None:
    net, card = Net(stored), Card(CPU)
    before, was = snapshot(net), places(net)
    weights = weights_of(card, run, unet=net)
    wider = [name for name, p in net.named_parameters() if _wanted(name, run, p.dtype).itemsize > p.dtype.itemsize]
    for _ in range(2):
        weights.place("training")
        assert net.linear.weight.dtype is net.conv.weight.dtype is run
        assert net.norm.weight.dtype is net.embedding.weight.dtype is torch.float32
        assert net.tied.weight is net.linear.weight
        assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)
        with NoAllocation():
            weights.place("generating")
        assert differences(before, snapshot(net)) == []
        assert {name for name, place in places(net).items() if place != was[name]} <= set(wider)
    weights.place("training")
    with NoAllocation(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weights, "_compact", lambda self: None)
        weights.place("given back")
    assert differences(before, snapshot(net)) == []
    weights._compact()
    assert differences(before, snapshot(net)) == []
    for parameter in net.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.itemsize


def _wanted(name: str, run: torch.dtype, stored: torch.dtype) -> torch.dtype:
    return torch.float32 if name.startswith(("norm", "embedding")) else run


@pytest.mark.parametrize("run", HALVES)
@pytest.mark.parametrize("stored", HALVES)
def test_a_device_whose_tensors_are_opaque(
    stored: torch.dtype, run: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DirectML's have no place that could be read otherwise (microsoft/DirectML#425); oneDNN's on a CPU neither."""
    opaque = torch.ones(2, 2).to_mkldnn()
    assert not has_place(opaque) and has_place(torch.ones(2, 2))
    assert _reinterpreted(opaque, torch.float16) is None
    owner = nn.Linear(2, 2)
    slot = Slot(OwnParameter(InFile("key"), owner, "weight", "unet"), {})
    for unusable in (opaque, torch.ones(2, 2, device="meta")):  # the other lies on another device
        assert torch.equal(slot._borrow(unusable, torch.zeros(2, 2)), torch.zeros(2, 2))
    for module in (weights_module, slots):
        monkeypatch.setattr(module, "has_place", lambda tensor: False)
    net, card = Net(stored), Card(CPU)
    before = snapshot(net)
    weights = weights_of(card, run, unet=net)
    for phase in ("encoding", "training", "generating", "training", "given back"):
        weights.place(phase)  # type: ignore[arg-type]
        assert net.linear.weight.dtype is (run if phase == "training" else stored)
    assert differences(before, snapshot(net)) == []


def test_on_a_plug_ins_device_all_stays_there() -> None:
    """As with DirectML and Ascend's NPU, torch lets a parameter on `meta` take no bytes of the CPU: it is not asked."""
    device, net, vae = torch.device("meta"), Net(torch.float16).to("meta"), nn.Linear(2, 2).to("meta")
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        vae.weight.data = torch.ones(2, 2)
    bus = Bus(device)
    parts = {"unet": held_parameters(net, bus, torch.bfloat16), "vae": waiting_parameters(vae, bus)}
    weights, before = Weights(parts, bus, unet_waits=True), {one: one.data for one in net.parameters()}
    for phase in ("encoding", "training", "generating", "training", "given back"):
        weights.place(phase)  # type: ignore[arg-type]
        assert {one.device.type for one in (*net.parameters(), *vae.parameters())} == {"meta"}
        assert net.linear.weight.dtype is (torch.bfloat16 if phase == "training" else torch.float16)
    assert all(one.data_ptr() == before[one].data_ptr() and one.dtype is before[one].dtype for one in net.parameters())
    slot = Slot(OwnParameter(InFile("key"), net.linear, "weight", "unet"), {})
    learned = nn.Parameter(torch.ones(4, 4, device="meta"))
    slot.take(learned)
    assert net.linear.weight is learned and slot.original.device == device
    slots.give_back([slot], clear=False)
    assert net.linear.weight is slot.original and learned.device == device


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_waits_where_there_is_no_other_place_keeps_no_copy(device: str) -> None:
    """A text encoder that has encoded its captions, on the CPU or on a plug-in's device."""
    bus, nets = Bus(torch.device(device)), {part: Net(torch.float16).to(device) for part in ("unet", "te1")}
    weights = Weights({part: held_parameters(net, bus, torch.bfloat16) for part, net in nets.items()}, bus)
    before = {one: one.data_ptr() for one in nets["te1"].parameters()}
    weights.place("encoding")
    assert nets["te1"].linear.weight.dtype is torch.bfloat16
    weights.place("training", text_encoder=False)
    assert nets["unet"].linear.weight.dtype is torch.bfloat16 and nets["te1"].linear.weight.dtype is torch.float16
    assert all(one.data_ptr() == before[one] for one in nets["te1"].parameters())
    weights.place("given back")


class NoClone(TorchDispatchMode):
    """A device that has no room for a second copy of anything."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("room", [None, 0], ids=["its own room is free", "no room at all"])
def test_a_place_that_grew_is_left_before_a_smaller_one_is_taken(
    room: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    net, card = Net(torch.float16), Card(CPU)
    before = snapshot(net)
    weights = weights_of(card, torch.bfloat16, unet=net)
    weights.place("training")
    card.room = room
    with NoClone():
        weights.place("given back")
    assert differences(before, snapshot(net)) == []
    assert all(card.has(parameter) for parameter in net.parameters())
    larger = {
        name for name, one in net.named_parameters() if one.untyped_storage().nbytes() > one.numel() * one.itemsize
    }
    grown = {name for name, _ in net.named_parameters() if _wanted(name, torch.bfloat16, torch.float16).itemsize > 2}
    assert larger == (set() if room is None else grown) != grown - larger
    assert ("Memory of the run is left" in caplog.text) == (room == 0)
    assert all(record.exc_info is None for record in caplog.records), "a log that is kept must not keep the run"


def _a_card_with_room_for(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots think that they are on a card, which takes so many tensors and no more."""

    def sent_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        nonlocal left
        if device is not slots.CPU:
            if not left:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
            left -= 1
        return tensor.clone()

    monkeypatch.setattr(slots, "moves", lambda device: True)
    monkeypatch.setattr(slots, "sent", sent_to)


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("room", [0, 2, 9])
def test_what_learned_makes_room_for_all_once_one_had_none(
    room: int, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came back before it too: other parts of the model are still to come back to the room that is left."""
    _a_card_with_room_for(room, monkeypatch)
    monkeypatch.setattr(Slot, "compact", lambda self: None)
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(2))).to(stored)
    before = snapshot(net)
    waiting: dict[str, torch.Tensor] = {}
    places = [Slot(OwnParameter(InFile(f"{n}.{name}"), owner, name, "unet"), waiting) for n, owner in enumerate(net)
              for name in ("weight", "bias")]  # fmt: skip
    learned = [nn.Parameter(slot.original.detach().float() + 1) for slot in places]
    values, room_of = [one.detach().clone() for one in learned], [one.data_ptr() for one in learned]
    for slot, one in zip(places, learned, strict=True):
        slot.take(one)
    slots.give_back(places, clear=False)
    assert differences(before, snapshot(net)) == []
    assert all(torch.equal(one, value) for one, value in zip(learned, values, strict=True))
    borrowed = [slot.original.data_ptr() == place for slot, place in zip(places, room_of, strict=True)]
    assert borrowed == [room < len(places)] * len(places)


def test_what_learned_elsewhere_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's preview may have moved it off the device, here to the meta device: its own parameter is back already."""
    _a_card_with_room_for(1, monkeypatch)
    net = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
    before = snapshot(net)
    waiting: dict[str, torch.Tensor] = {}
    places = [Slot(OwnParameter(InFile(str(n)), owner, "weight", "unet"), waiting) for n, owner in enumerate(net)]
    learned = [nn.Parameter(slot.original.detach() + 1) for slot in places]
    for slot, one in zip(places, learned, strict=True):
        slot.take(one)
    places[0]._inside = nn.Parameter(learned[0].detach().to("meta"))
    slots.give_back(places, clear=False)
    assert differences(before, snapshot(net)) == []


def test_what_learns_is_not_copied_where_a_device_is_named_without_its_number() -> None:
    """Tensors of "mps" and "xpu" say "mps:0" and "xpu:0", as here those of "cpu:0" say "cpu"."""
    owner = nn.Linear(2, 2, device="meta")  # where a host rests it
    learned = nn.Parameter(torch.ones(2, 2))
    slot, place = (
        Slot(OwnParameter(InFile("key"), owner, "weight", "unet"), {}, torch.device("cpu:0")),
        learned.data_ptr(),
    )
    slot.take(learned)
    assert owner.weight is learned and learned.data_ptr() == place


def test_the_watch_for_allocations_sees_one() -> None:
    with NoAllocation(), pytest.raises(AssertionError, match="allocates"):
        torch.ones(3).to(torch.bfloat16)


def test_what_the_host_holds_as_the_run_wants_it_is_left_alone() -> None:
    net, card = nn.Linear(4, 4).bfloat16(), Card(CPU)
    weights = weights_of(card, torch.bfloat16, unet=net)
    was = places(net)
    for phase in ("encoding", "training", "generating", "training", "given back"):
        weights.place(phase)  # type: ignore[arg-type]
        assert places(net) == was
    assert card.to_cpu_bytes == card.to_device_bytes == []


def test_what_is_not_used_leaves_the_card_and_crosses_once_for_a_preview() -> None:
    unet, text, vae = (nn.Linear(8, 8).half() for _ in range(3))
    size = sum(parameter.numel() * 2 for parameter in unet.parameters())
    before, card = snapshot(unet, text, vae), Card(CPU)
    weights = weights_of(card, torch.bfloat16, unet=unet, text=text, vae=vae)

    def there(root: nn.Module) -> bool:
        return all(card.has(parameter.data) for parameter in root.parameters())

    weights.place("encoding")
    assert there(unet) and there(text) and there(vae)
    assert (unet.weight.dtype, text.weight.dtype, vae.weight.dtype) == (torch.half, torch.bfloat16, torch.half)
    weights.place("training", text_encoder=False)
    assert there(unet) and not there(text) and not there(vae)
    assert sum(card.to_cpu_bytes) == 3 * size and not card.to_device_bytes, "each part has gone to the CPU once"
    for _ in range(3):
        card.to_device_bytes.clear()
        weights.place("generating")
        assert differences(before, snapshot(unet, text, vae)) == []
        weights.place("training", text_encoder=False)
        assert sum(card.to_device_bytes) == 3 * size, "a preview brings each part over once"
    assert sum(card.to_cpu_bytes) == 3 * size, "and takes nothing back"
    weights.place("training", text_encoder=True)
    assert there(text) and text.weight.dtype is torch.bfloat16
    weights.place("given back")
    assert differences(before, snapshot(unet, text, vae)) == []


def test_a_unet_leaves_a_short_card_while_pictures_are_encoded() -> None:
    unet, text, vae = (nn.Linear(8, 8).half() for _ in range(3))
    size = sum(parameter.numel() * 2 for parameter in unet.parameters())
    before, card = snapshot(unet, text, vae), Card(CPU)
    weights = weights_of(card, torch.bfloat16, unet=unet, text=text, vae=vae, unet_waits=True)
    weights.place("encoding")
    assert [card.has(root.weight.data) for root in (unet, text, vae)] == [False, True, True]
    assert sum(card.to_cpu_bytes) == 2 * size and not card.to_device_bytes, "the VAE has not moved"
    weights.place("training", text_encoder=False)
    assert [card.has(root.weight.data) for root in (unet, text, vae)] == [True, False, False]
    assert unet.weight.dtype is torch.bfloat16
    assert sum(card.to_cpu_bytes) == 3 * size and sum(card.to_device_bytes) == size, "it comes back once"
    weights.place("generating")
    assert differences(before, snapshot(unet, text, vae)) == []
    weights.place("given back")
    assert differences(before, snapshot(unet, text, vae)) == []


def test_a_unet_that_finds_no_room_any_more_is_brought_back_when_there_is_some() -> None:
    unet, vae, card = nn.Linear(4, 4).half(), nn.Linear(4, 4).half(), Card(CPU)
    before = snapshot(unet, vae)
    weights = weights_of(card, torch.bfloat16, unet=unet, vae=vae, unet_waits=True)
    weights.place("encoding")
    card.room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        weights.place("training")
    card.room = None
    weights.place("given back")
    assert differences(before, snapshot(unet, vae)) == []
    assert all(card.has(one.data) for root in (unet, vae) for one in root.parameters())


@pytest.mark.parametrize("run", HALVES, ids=str)
def test_of_a_model_that_rests_on_the_cpu_the_card_has_what_a_state_needs(run: torch.dtype) -> None:
    """--medvram. What is put back is the original itself, for which a card that is full has no need of room."""
    unet, text, vae = (nn.Linear(8, 8).half() for _ in range(3))
    before, was, card = snapshot(unet, text, vae), [places(root) for root in (unet, text, vae)], Card(CPU)
    for root in (unet, text, vae):
        card.take_off(root)
    weights = weights_of(card, run, unet=unet, text=text, vae=vae)

    def there() -> list[bool]:
        return [card.has(one.data) for root in (unet, text, vae) for one in (root.weight, root.bias)]

    weights.place("encoding")
    assert there() == [False, False, True, True, True, True]
    assert (text.weight.dtype, vae.weight.dtype) == (run, torch.half)
    for learned in (True, False):
        card.room = None
        weights.place("training", text_encoder=learned)
        assert there() == [True, True, learned, learned, False, False]
        assert unet.weight.dtype is run
        for phase in ("generating", "training", "given back"):
            card.room = None if phase == "training" else 0
            weights.place(phase, text_encoder=learned)  # type: ignore[arg-type]
            if phase != "training":
                assert there() == [False] * 6
                assert [places(root) for root in (unet, text, vae)] == was, "the very same storages"
    assert differences(before, snapshot(unet, text, vae)) == []
    assert card.to_cpu_bytes == [], "nothing is copied that is there already"


def resting() -> tuple[nn.Linear, Card, Weights, dict[str, object]]:
    """A UNet off the card, and what it was."""
    unet, card = nn.Linear(8, 8).half(), Card(CPU)
    before = snapshot(unet)
    card.take_off(unet)
    return unet, card, weights_of(card, torch.bfloat16, unet=unet), before


def moved(root: nn.Module) -> None:
    """As a host does it, which makes new tensors."""
    for parameter in root.parameters():
        parameter.data = parameter.data.clone()


def test_what_a_host_has_moved_to_draw_is_the_original_from_then_on() -> None:
    """It moves a part to the card and back, which makes a new tensor: the older must not be kept beside it."""
    unet, card, weights, before = resting()
    weights.place("training")
    weights.place("generating")
    moved(unet)
    card.take_off(unet)
    now = places(unet)
    weights.place("training")
    weights.place("given back")
    assert places(unet) == now
    assert differences(before, snapshot(unet)) == []


@pytest.mark.parametrize("phase", ["encoding", "training"])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_while_a_host_draws_nobody_else_holds_what_it_moves(phase: Phase, eight_bits: bool) -> None:
    """Else it would be in the memory twice, once the host has moved it to the card and back."""
    unet, text, vae = (nn.Linear(16, 16).half() for _ in range(3))
    card = Card(CPU)
    for root in (unet, text, vae):
        card.take_off(root)
    before = snapshot(unet, text, vae)
    parts = {"unet": held_parameters(unet, card, torch.bfloat16), "text": held_parameters(text, card, torch.float16)}
    if eight_bits:
        _, parts["unet"] = quantised_parameters(unet, card, parts["unet"])
    weights = Weights(parts | {"vae": waiting_parameters(vae, card)}, card)
    for _ in range(2):
        weights.place(phase, text_encoder=False)
        kept = [weakref.ref(one.keep()) for one in weights._of(weights._parts)]
        weights.place("generating")
        assert [one() for one in kept] == [None] * 6
    weights.place("given back")
    assert differences(before, snapshot(unet, text, vae)) == []
    assert card.to_cpu_bytes == []


def test_what_a_host_has_left_on_the_card_comes_back_as_it_was() -> None:
    """Where it cannot move a part of a model that rests on the CPU back to it."""
    unet, card, weights, before = resting()
    weights.place("encoding")
    moved(unet)
    phases: list[Phase] = ["training", "generating", "training", "given back"]
    for phase in phases:
        weights.place(phase)
        assert phase == "training" or differences(before, snapshot(unet)) == []
    assert not any(card.has(parameter.data) for parameter in unet.parameters())


def test_one_parameter_that_cannot_be_put_back_does_not_stop_the_others() -> None:
    net, card = Net(torch.float16), Card(CPU)
    before = snapshot(net)
    weights = weights_of(card, torch.bfloat16, unet=net)
    weights.place("training")
    card.failing = {net.conv.weight.data_ptr()}
    with pytest.raises(
        ModelError, match=r"could not be restored completely \(the driver is gone\): load the checkpoint"
    ):
        weights.place("given back")
    different = differences(before, snapshot(net))
    assert different and all(" attributes" in name or "conv.weight" in name for name in different)
    card.failing = set()
    weights.place("given back")
    assert differences(before, snapshot(net)) == []


def test_a_card_that_is_full_when_parts_come_back_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put back in its place comes first, and what had left the card when torch's unused memory is released."""
    unet, vae, card = nn.Linear(4, 4).half(), nn.Linear(4, 4).half(), Card(CPU)
    before = snapshot(unet, vae)
    weights = weights_of(card, torch.bfloat16, unet=unet, vae=vae)
    weights.place("training")
    card.room = 0
    releases = []

    def release(device: torch.device) -> None:
        releases.append(device)
        card.room = 2 if len(releases) == 2 else 0

    monkeypatch.setattr("lib_trainer.host.weights.release_cached", release)
    weights.place("given back")
    assert len(releases) == 2
    assert differences(before, snapshot(unet, vae)) == []


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
@pytest.mark.parametrize("room", range(0, 60, 6))
def test_out_of_memory_while_the_model_is_taken_leaves_it_as_it_was(
    kind: str, room: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    monkeypatch.setattr(type(model), "make_bus", Card)
    real, calls = torch.Tensor.to, 0

    def refusing(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += args[:1] == (torch.bfloat16,)
        if calls == room + 1:
            calls += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, **kwargs)

    before = snapshot(*roots_of(model))
    monkeypatch.setattr(torch.Tensor, "to", refusing)
    with pytest.raises(torch.cuda.OutOfMemoryError), model.training(TrainingState(torch.bfloat16, False, True)):
        pass
    monkeypatch.setattr(torch.Tensor, "to", real)
    assert differences(before, snapshot(*roots_of(model))) == []


class Still:
    """A recipe that changes nothing."""

    trains_text_encoder = False

    def applied(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    previewed = applied

    def make_room(self) -> None:
        return


def test_a_session_brings_back_what_it_has_sent_away(ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the whole of a run with previews: the same parts, by the same crossings as above."""
    cards: list[Card] = []

    def make(device: torch.device) -> Card:
        cards.append(Card(device))
        return cards[-1]

    monkeypatch.setattr(LdmModel, "make_bus", staticmethod(make))
    before = snapshot(*roots_of(ldm_model))
    size = sum(p.numel() * p.itemsize for root in roots_of(ldm_model) for p in root.parameters())
    with Session(ldm_model, Still(), TrainingState(torch.bfloat16, False, False)) as session:  # type: ignore[arg-type]
        session.train(text_encoder=False)
        [card] = cards
        assert not any(
            card.has(p.data) for p in (*ldm_model.vae.parameters(), *ldm_model.text.encoders[0].module.parameters())
        )
        assert ldm_model.device == CPU
        for _ in range(2):
            card.to_device_bytes.clear()
            with session.generating():
                assert differences(before, snapshot(*roots_of(ldm_model))) == []
            assert sum(card.to_device_bytes) <= size
    assert sum(card.to_cpu_bytes) <= size
    assert differences(before, snapshot(*roots_of(ldm_model))) == []


@pytest.mark.parametrize("host", ["a short card", "rests"])
def test_pictures_are_encoded_without_the_unet(ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """By the model's own parts, of a run in 8 bits too."""
    cards: list[Card] = []

    def make(device: torch.device) -> Card:
        cards.append(Card(device))
        for root in roots_of(ldm_model) if host == "rests" else ():
            cards[-1].take_off(root)
        return cards[-1]

    def there(*roots: nn.Module) -> list[bool]:
        return sorted({cards[0].has(one.data) for root in roots for one in root.parameters()})

    monkeypatch.setattr(LdmModel, "make_bus", staticmethod(make))
    before, pixels = snapshot(*roots_of(ldm_model)), torch.rand(1, 3, 64, 64)
    expected = ldm_model.encode_images(pixels)
    state = TrainingState(torch.float32, False, False, eight_bits=True, unet_waits=host != "rests")
    text = ldm_model.text.encoders[0].module
    with Session(ldm_model, Still(), state) as session:  # type: ignore[arg-type]
        assert there(ldm_model.unet) == [False] and there(text, ldm_model.vae) == [True]
        assert torch.equal(ldm_model.encode_images(pixels), expected)
        session.train(text_encoder=False)
        assert there(text, ldm_model.vae) == [False]
        held_in_eight = [layer for layer in ldm_model.unet.modules() if is_quantised(layer)]
        assert held_in_eight and not any(cards[0].has(layer.weight.data) for layer in held_in_eight)
        with session.generating():
            assert there(*roots_of(ldm_model)) == [host != "rests"]
    assert there(*roots_of(ldm_model)) == [host != "rests"]
    assert differences(before, snapshot(*roots_of(ldm_model))) == []


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize(
    ("stored", "eight_bits"), [(torch.float16, False), (torch.float16, True), (torch.float32, False)]
)
def test_bytes_on_a_card(tiny: Tiny, device: torch.device, stored: torch.dtype, eight_bits: bool) -> None:
    """Of each phase: what is not used has left the card, what is held in 8 bits takes half, and all comes back."""
    model = copy.deepcopy(tiny).in_ldm()
    for root in roots_of(model):
        root.to(device, stored)
    if stored is torch.float16:
        model.unet.dtype = stored
    parts = {name: sum(p.nbytes for p in root.parameters()) for name, root in model.roots().items()}
    codes = sum(layer.weight.numel() for layer in model.unet.modules() if eight_bits and is_quantised(layer))
    before, there = snapshot(*roots_of(model)), settled(device)
    state = TrainingState(stored, False, False, eight_bits=eight_bits)

    def on_the_card(*roots: nn.Module) -> list[bool]:
        return sorted({one.device.type == device.type for root in roots for one in root.parameters()})

    with Session(model, Still(), state) as session:  # type: ignore[arg-type]
        held = settled(device) - there  # embeddings, for captions, are in fp32
        assert on_the_card(*roots_of(model)) == [True] and held <= CARD_SLACK + parts["te1"]
        session.train(text_encoder=False)
        if device.type == "cuda":
            assert on_the_card(model.vae, model.text.encoders[0].module) == [False]
            gone = there - settled(device)
            waits = parts["vae"] + parts["te1"] + codes * stored.itemsize
            assert gone == pytest.approx(waits - codes, abs=CARD_SLACK + 0.05 * codes)
        assert model.device == device
        for _ in range(2):
            with session.generating():
                assert on_the_card(*roots_of(model)) == [True]
                assert differences(before, snapshot(*roots_of(model))) == []
                assert settled(device) - there <= CARD_SLACK
    assert differences(before, snapshot(*roots_of(model))) == []
    assert settled(device, there) <= there
