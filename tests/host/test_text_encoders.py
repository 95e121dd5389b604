"""Text encoders of every family, against transformers, diffusers and open_clip."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.families.family import Family
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.host.holding import frozen
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from lib_trainer.host.weights import held_in
from lib_trainer.networks.fused import FusedAttention
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.training.precision import autocast
from tests.encoders import CAPTION, LONG, encoders_of, open_clip_classes, texts_of, tiny
from tests.support import differences, relative, snapshot

KEYS = Path(__file__).parents[1] / "data" / "lora_keys.json.gz"
CPU = torch.device("cpu")
LAYOUTS = [(SD1, "transformers")] + [
    (family, layout) for family in (SD2, SDXL) for layout in ("transformers", "open_clip")
]


@pytest.fixture(params=LAYOUTS, ids=lambda pair: f"{pair[0].word}-{pair[1]}")
def texts(request: pytest.FixtureRequest) -> Texts:
    return texts_of(*request.param)


@pytest.fixture(params=[SD2, SDXL], ids=lambda one: one.word)
def fused(request: pytest.FixtureRequest) -> Texts:
    """Encoders of which the last one is open_clip's."""
    return texts_of(request.param, "open_clip")


def ids_of(chunks: list[str], padding: int | None) -> torch.Tensor:
    tokenizer = load_tokenizer()
    ids = tokenizer(chunks, padding="max_length", max_length=77, return_tensors="pt").input_ids
    if padding is not None:
        behind = (ids == tokenizer.eos_token_id).cumsum(1) > 1
        ids[behind] = padding
    return ids  # type: ignore[no-any-return]


@torch.no_grad()
def told(family: Family, chunks: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a caption of these chunks comes to, by transformers' own states and the formula of each family."""
    encoders, words = encoders_of(family, "transformers"), ids_of(chunks, None)
    first = encoders[0](words if family is not SD2 else ids_of(chunks, 0), output_hidden_states=True)
    if family is SD1:
        return first.last_hidden_state.flatten(0, 1), None
    if family is SD2:
        return encoders[0].text_model.final_layer_norm(first.hidden_states[-2]).flatten(0, 1), None
    second = encoders[1](ids_of(chunks, 0), output_hidden_states=True)
    both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return both.flatten(0, 1), second.text_embeds[:1]


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("words", [0, 5, 75, 76, 160])
@torch.no_grad()
def test_captions_of_any_length_are_the_formulas(texts: Texts, words: int, lean: bool) -> None:
    tokens = ["abcdefghij"[number % 10] for number in range(words)]
    chunks = [" ".join(tokens[start : start + 75]) for start in range(0, max(1, words), 75)]
    family = next(one for one in (SD1, SD2, SDXL) if one.word == texts.family.word)
    context, pooled = told(family, chunks)
    if lean:
        with texts.lean():
            mine = texts.encode([" ".join(tokens)], 1, 3)
    else:
        mine = texts.encode([" ".join(tokens)], 1, 3)
    torch.testing.assert_close(mine.context[0], context, rtol=1e-4, atol=1e-5)
    assert (mine.pooled is None) == (pooled is None)
    if pooled is not None:
        torch.testing.assert_close(mine.pooled, pooled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_both_classes_give_the_same(fused: Texts) -> None:
    other = texts_of(next(one for one in (SD2, SDXL) if one.word == fused.family.word), "transformers")
    captions = [CAPTION, "", LONG]
    one, two = fused.encode(captions, 1, 3), other.encode(captions, 1, 3)
    torch.testing.assert_close(one.context, two.context, rtol=1e-4, atol=1e-5)
    assert one.context.shape == (3, 154, sum(fused.widths.values()))
    if one.pooled is not None:
        torch.testing.assert_close(one.pooled, two.pooled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_short_captions_are_diffusers() -> None:
    """`encode_prompt` of its SDXL pipeline pads the second encoder's chunk as its tokenizer says."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

    first, second = encoders_of(SDXL, "transformers")
    padded = copy.deepcopy(load_tokenizer())
    padded.pad_token = "!"
    pipeline = StableDiffusionXLPipeline(
        AutoencoderKL(), first, second, load_tokenizer(), padded, Unet(), None, force_zeros_for_empty_prompt=True
    )
    context, without, pooled, pooled_without = pipeline.encode_prompt(CAPTION, device=CPU)
    mine = texts_of(SDXL, "transformers").encode([CAPTION], 1, 1)
    torch.testing.assert_close(mine.context, context, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.pooled, pooled, rtol=1e-4, atol=1e-5)
    emptied = mine.emptied([True])
    assert torch.equal(emptied.context, without) and torch.equal(emptied.pooled, pooled_without)  # type: ignore[arg-type]


class Unet(nn.Module):
    """What the pipeline asks of a UNet before it encodes."""

    dtype, config = torch.float32, SimpleNamespace(sample_size=8)


@torch.no_grad()
def test_clip_skip_is_heeded_where_the_webui_heeds_it(texts: Texts) -> None:
    one, two = (texts.encode([CAPTION], skip, 1).context for skip in (1, 2))
    assert torch.equal(one, two) == (not texts.family.clip_skip)
    assert texts.family.clip_skip == (texts.family.word == SD1.word)


@torch.no_grad()
def test_an_encoder_without_the_layer_that_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A diffusers folder of SD 2.x has 23 layers, a checkpoint file 24."""
    whole, short = texts_of(SD2, "transformers"), texts_of(SD2, "transformers")
    short.encoders[0].module.text_model.encoder.layers = short.encoders[0].module.text_model.encoder.layers[:-1]  # type: ignore[union-attr,index,operator]
    torch.testing.assert_close(short.encode([CAPTION], 1, 1).context, whole.encode([CAPTION], 1, 1).context)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_our_attention_is_torchs(dtype: torch.dtype, batch_first: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=batch_first).to(dtype).eval()
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(*((2, 77) if batch_first else (77, 2)), 32, dtype=dtype)
    mask = torch.full((77, 77), float("-inf"), dtype=dtype).triu_(1)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    fused = FusedAttention(attention)
    before = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    with fused.called():
        after = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert relative(after.float(), before.float()) < tolerance
    whole = torch.cat([fused.layers[name].weight for name in ("q_proj", "k_proj", "v_proj")])
    assert torch.equal(whole, attention.in_proj_weight)
    assert fused.layers["k_proj"].weight.untyped_storage()._cdata == attention.in_proj_weight.untyped_storage()._cdata
    assert fused.layers["out_proj"].weight is attention.out_proj.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_gradients_reach_every_layer_and_all_is_put_back(fused: Texts, dtype: torch.dtype, stored: torch.dtype) -> None:
    roots = [root.to(stored) for root in fused.parts().values()]
    before = snapshot(*roots)
    network = LoraNetwork.create(list(fused.adaptable()), 2, 2, torch.Generator().manual_seed(0))
    network.flatten(list(network), whole=False)
    with frozen(*roots), held_in(dtype, *roots), fused.lean(), network.applied(), autocast(CPU, dtype):
        said = fused.encode([CAPTION], 1, 1)
        loss = said.context.float().square().mean()
        (loss if said.pooled is None else loss + said.pooled.float().square().mean()).backward()
    unread = {f"{one.key}_text_model_encoder_layers_{len(encoder.blocks()) - 1}_"
              for encoder in fused.encoders if (one := encoder.described).skipped and not one.pooled}  # fmt: skip
    for adapter in network:
        gradient = adapter.up.grad  # type: ignore[union-attr]
        if any(adapter.key.startswith(prefix) for prefix in unread):
            assert gradient is None or not bool(gradient.any())
        else:
            assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any()), adapter.key
    assert differences(before, snapshot(*roots)) == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
def test_an_adapter_does_what_its_weight_difference_would(fused: Texts, name: str) -> None:
    """In eval mode without gradients too, where torch has a kernel that looks at the fused weight alone."""
    texts = fused
    targets = [one for one in texts.adaptable() if one.part == texts.family.encoders[-1].part]
    chosen = [one for one in targets if one.key.endswith(name)]
    network = LoraNetwork.create(chosen, 3, 3, torch.Generator().manual_seed(0))
    for adapter in network:
        nn.init.normal_(adapter.up, std=0.3)  # type: ignore[arg-type]
    plain = texts.encode([CAPTION], 1, 1)
    with network.applied():
        adapted = texts.encode([CAPTION], 1, 1)
    assert torch.equal(texts.encode([CAPTION], 1, 1).context, plain.context)
    for adapter in network:
        adapter.layer.weight.add_(adapter.delta())
    merged = texts.encode([CAPTION], 1, 1)
    assert relative(adapted.context, plain.context) > 1e-3
    torch.testing.assert_close(adapted.context, merged.context, rtol=1e-3, atol=1e-4)
    if merged.pooled is not None:
        torch.testing.assert_close(adapted.pooled, merged.pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
@pytest.mark.parametrize(("family", "group", "count"), [(SD2, "sd2_lora_r4", 138), (SDXL, "sdxl_lora_r4", 264)])
def test_names_and_shapes_are_the_published_ones(family: Family, group: str, count: int, layout: str) -> None:
    published: dict[str, list[int]] = json.loads(gzip.decompress(KEYS.read_bytes()))[group]
    prefixes = tuple(f"{encoder.key}_text_model" for encoder in family.encoders)
    wanted = {name: shape for name, shape in published.items() if name.startswith(prefixes)}
    texts = Texts([_published(encoder, layout) for encoder in family.encoders], None, family)
    network = LoraNetwork.create(list(texts.adaptable()), 4, 4, torch.Generator())
    assert len(network) == count
    shapes = {f"{one.key}.{name}": list(own.shape) for one in network for name, own in one.file_tensors().items()}
    assert shapes == {name: shape for name, shape in wanted.items() if not name.endswith(".alpha")}


def _published(encoder: Any, layout: str) -> Any:
    """An encoder of the published size, without contents."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if encoder.layout == "open_clip" and layout == "open_clip":
            return open_clip_classes().TextTransformer(width=encoder.width, heads=16, layers=encoder.layers)
        sizes = {
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.layers,
            "intermediate_size": 4 * encoder.width,
        }
        make = CLIPTextModelWithProjection if encoder.pooled else CLIPTextModel
        return make(CLIPTextConfig(**sizes, num_attention_heads=16))


def test_a_word_has_rows_for_each_encoder(texts: Texts) -> None:
    known = texts.rows("red circle")
    assert {part: rows.shape for part, rows in known.items()} == {part: (2, n) for part, n in texts.widths.items()}
    with torch.no_grad():
        wanted = texts.encode(["a red circle, large"], 1, 3)
        with texts.extended({"zrk-thing": known}):
            said = texts.encode(["a zrk-thing, large"], 1, 3)
    torch.testing.assert_close(said.context, wanted.context)
    assert said.pooled is None or torch.allclose(said.pooled, wanted.pooled)  # type: ignore[arg-type]
    learned = {part: torch.randn(2, width, requires_grad=True) for part, width in texts.widths.items()}
    with texts.extended({"zrk-thing": learned}):
        texts.encode(["a zrk-thing here"], 1, 1).context.square().mean().backward()
    assert all(rows.grad is not None and bool((rows.grad.norm(dim=1) > 0).all()) for rows in learned.values())
    assert all(abs(norm - float(encoder.vocabulary.detach().norm(dim=1).mean())) < 1e-4
               for norm, encoder in zip(texts.usual_norm().values(), texts.encoders, strict=True))  # fmt: skip
    assert tiny(SD1).encoders[0].output == 4
