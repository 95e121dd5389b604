"""What is checked for each kind of training before any model is touched."""

from __future__ import annotations

from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.families.detect import lora_of, model_of
from lib_trainer.families.family import Family
from lib_trainer.families.names import is_resnet
from lib_trainer.networks.blocks import parse_blocks
from lib_trainer.networks.formats.checkpoint_file import read_shapes
from lib_trainer.networks.formats.embedding_file import read_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.networks.formats.lora_file import LoraFile, read_lora
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, ModelError
from lib_trainer.training.recipes.hypernetwork import parse_sizes, parse_structure
from lib_trainer.training.words import caption_maker, initial_texts, names_field, word_names

MAX_VECTORS = 75
CONTINUE = "network.continue_from"
BRACKETS = "()[]\\"
"""Signs of the WebUI's prompts (modules/prompt_parser.py)."""


def check_adapters(job: JobConfig, host: Host) -> None:
    """Rates, blocks, and the file to continue from."""
    if job.optimizer.unet_lr == 0 and job.optimizer.text_encoder_lr == 0:
        raise ConfigError(
            "optimizer.unet_lr and optimizer.text_encoder_lr are both 0, so nothing would be trained: set at least one."
        )
    if job.network.factor == 0:
        raise ConfigError("network.factor = 0 is not allowed: it must be -1 or a whole number from 1 on.")
    unet = host.family().unet
    parse_blocks(job.blocks.rates, "blocks.rates", unet)
    for block, rank in parse_blocks(job.blocks.ranks, "blocks.ranks", unet).items():
        if not rank.is_integer():
            raise ConfigError(f"blocks.ranks: {block} = {rank:g} is not a whole number: correct it.")
    if job.network.continue_from:
        if job.blocks.ranks.strip():
            raise ConfigError(
                f"blocks.ranks = {job.blocks.ranks!r} has no meaning beside {CONTINUE}, whose file has its ranks: "
                "leave one of them empty."
            )
        check_continued_adapters(job, read_lora(Path(job.network.continue_from).expanduser()), host.family())


def check_continued_adapters(job: JobConfig, file: LoraFile, family: Family) -> None:
    """Raise `ConfigError` for a file of another family or another kind."""
    path, wanted = job.network.continue_from, job.network.kind
    other = lora_of(file.tensors, file.metadata)
    if other is not None and other is not family:
        raise ConfigError(f"{CONTINUE} = {path!r} was made for {other.word}: choose one for {family.word}.")
    found = kind_of(file)
    expected = {"pivotal": ("lora", "locon"), "difference": ("lora", "locon")}.get(wanted, (wanted,))
    if found not in expected:
        raise ConfigError(
            f"{CONTINUE} = {path!r} is of the kind {found}, and network.kind is {wanted}: choose its kind."
        )
    dora = any(name.endswith(".dora_scale") for name in file.tensors)
    if dora != job.network.dora:
        state = "on" if dora else "off"
        raise ConfigError(f"{CONTINUE} = {path!r} {'is' if dora else 'is not'} a DoRA: turn network.dora {state}.")


def kind_of(file: LoraFile) -> str:
    """lora, locon, loha or lokr, by the names and shapes of a file's tensors."""
    if any(".hada_" in name for name in file.tensors):
        return "loha"
    if any(".lokr_" in name for name in file.tensors):
        return "lokr"
    return "locon" if any(is_resnet(name) for name in file.tensors) else "lora"


def check_words(job: JobConfig, host: Host) -> None:
    """Names, vectors, initial texts and the template of embeddings."""
    names, texts, field = word_names(job), initial_texts(job), names_field(job)
    if job.embedding.learning_rate == 0:
        raise ConfigError("embedding.learning_rate = 0, so nothing would be learned: the guides' start is 5e-3.")
    for name in names:
        count = host.token_count(name)
        if count == 1:
            raise ConfigError(
                f"{field} = {name!r} is a word of the model's vocabulary and would change its meaning in every "
                "prompt: choose one that is not, as in 'zrk-style'."
            )
        if not (name[0].isalnum() and name[-1].isalnum()):
            raise ConfigError(
                f"{field} = {name!r} begins or ends with a sign, which would melt together with those beside it "
                "in a prompt: let it begin and end with letters or digits."
            )
        brackets = sorted(set(name) & set(BRACKETS))
        if brackets:
            raise ConfigError(
                f"{field} = {name!r} has {' '.join(brackets)}, which a prompt reads as emphasis and not as a part of "
                "the name: leave it out."
            )
    for name, text in zip(names, texts, strict=True):
        count = host.token_count(text) if text else 0
        if count > job.embedding.vectors and not job.network.continue_from:
            raise ConfigError(
                f"embedding.initial_text of {name!r} has {count} tokens and there are {job.embedding.vectors} vectors: "
                "shorten it or raise embedding.vectors."
            )
    caption_maker(job, host)


def check_embedding(job: JobConfig, host: Host) -> None:
    check_words(job, host)
    if job.network.continue_from:
        if len(word_names(job)) > 1:
            raise ConfigError(f"{CONTINUE} holds one embedding and embedding.names has several: name one.")
        rows = read_embedding(Path(job.network.continue_from).expanduser(), host.family())
        if len(rows) > MAX_VECTORS:
            raise ConfigError(f"{CONTINUE} has {len(rows)} vectors: the most that a prompt can hold is {MAX_VECTORS}.")


def check_pivotal(job: JobConfig, host: Host) -> None:
    check_adapters(job, host)
    check_words(job, host)
    dotted = next((name for name in word_names(job) if "." in name), None)
    if dotted is not None:
        raise ConfigError(
            f"{names_field(job)} = {dotted!r} has a dot, which ends a name inside a LoRA file: leave it out."
        )
    if job.network.continue_from:
        path = Path(job.network.continue_from).expanduser()
        found = read_lora(path).embeddings()
        absent = next((name for name in word_names(job) if name not in found), None)
        if absent is not None:
            held = ", ".join(sorted(found)) or "none"
            raise ConfigError(f"{CONTINUE}: {path} holds no embedding {absent!r} (it has {held}): correct the name.")


def check_hypernetwork(job: JobConfig, host: Host) -> None:
    if job.hypernetwork.learning_rate == 0:
        raise ConfigError("hypernetwork.learning_rate = 0, so nothing would be learned: the guides' start is 1e-5.")
    parse_structure(job)
    parse_sizes(job.hypernetwork.sizes)
    caption_maker(job, host)
    if job.network.continue_from:
        read_hypernetwork(Path(job.network.continue_from).expanduser())


def check_difference(job: JobConfig, host: Host) -> None:
    check_adapters(job, host)
    if not job.difference.before:
        raise ConfigError("difference.before is empty: name the picture or the folder that the difference starts from.")
    if job.training.max_steps and job.difference.base_steps >= job.training.max_steps:
        raise ConfigError(
            f"difference.base_steps = {job.difference.base_steps} leaves none of the {job.training.max_steps} steps "
            "for the difference: lower it or raise training.max_steps."
        )


def check_checkpoint(job: JobConfig, host: Host) -> None:
    """Rates, the place of the difference, and the file to continue from."""
    tuning = job.finetune
    if tuning.unet_lr == 0 and tuning.text_encoder_lr == 0:
        raise ConfigError(
            "finetune.unet_lr and finetune.text_encoder_lr are both 0, so nothing would be trained: set at least one."
        )
    if job.network.continue_from:
        shapes, family = read_shapes(Path(job.network.continue_from).expanduser()), host.family()
        model = model_of(shapes)
        if isinstance(model, Family) and model is not family:
            raise ConfigError(
                f"{CONTINUE} = {job.network.continue_from!r} is of another family: choose one of {family.word}."
            )
        if not any(name.startswith(family.unet.prefix) for name in shapes):
            raise ModelError(f"{job.network.continue_from} holds no UNet: choose a whole checkpoint.")
    if not host.parts():
        raise ModelError("A whole checkpoint is fine-tuned from a single file, which this one is not: choose another.")


def difference_path(job: JobConfig, host: Host) -> Path | None:
    """Where the LoRA of the difference goes."""
    return host.lora_folder() / f"{job.output.name}.safetensors" if job.finetune.difference_rank else None
