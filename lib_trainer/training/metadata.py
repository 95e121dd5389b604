"""What a LoRA file says about its making, in sd-scripts' names, which the WebUI's card and other tools read.

Values are strings; the WebUI parses JSON only where a value begins with a brace.
"""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
from dataclasses import dataclass, field

from PIL import Image

from lib_trainer import __version__
from lib_trainer.config import JobConfig
from lib_trainer.config.base import ADAPTERS
from lib_trainer.dataset.latents import Encoded
from lib_trainer.dataset.scan import Scan
from lib_trainer.ports import Family, LoadedModel

BASE_MODEL_VERSIONS = {Family.SD1: "sd_v1", Family.SD2: "sd_v2", Family.SDXL: "sdxl_base_v1-0"}
COVER_SIDE = 512


@dataclass(frozen=True)
class RunFacts:
    """What stays the same during a run."""

    job: JobConfig
    model: LoadedModel
    scan: Scan
    encoded: Encoded
    total_steps: int
    batches_per_epoch: int
    precision: str
    network_module: str = "networks.lora"
    started: float = field(default_factory=time.time)
    session: str = field(default_factory=lambda: str(uuid.uuid4().int % 2**32))


def run_metadata(facts: RunFacts, *, step: int, epoch: int, cover: Image.Image | None) -> dict[str, str]:
    """Metadata of the file written after `step` optimizer steps."""
    job, model = facts.job, facts.model
    network, optimizer, training = job.network, job.optimizer, job.training
    values: dict[str, object] = {
        "ss_session_id": facts.session,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": time.time(),
        "ss_output_name": job.output.name,
        "ss_training_comment": f"WebUI trainer {__version__}",
        "ss_network_module": facts.network_module,
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.alpha or network.rank,
        "ss_base_model_version": BASE_MODEL_VERSIONS[model.family],
        "ss_v2": model.family is Family.SD2,
        "ss_sd_model_name": model.file.name if model.file else model.name,
        "ss_clip_skip": training.clip_skip,
        "ss_max_token_length": training.max_tokens,
        "ss_seed": training.seed,
        "ss_mixed_precision": facts.precision,
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_max_grad_norm": optimizer.max_gradient_norm,
        "ss_optimizer": optimizer.name,
        "ss_learning_rate": optimizer.unet_lr,
        "ss_unet_lr": optimizer.unet_lr or None,
        "ss_text_encoder_lr": optimizer.text_encoder_lr or None,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps if "warmup" in optimizer.schedule else 0,
        "ss_max_train_steps": facts.total_steps,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": -(-facts.total_steps * training.gradient_accumulation // max(1, facts.batches_per_epoch)),
        "ss_num_train_images": sum(sample.repeats for sample in facts.encoded.samples),
        "ss_batch_size_per_device": training.batch_size,
        "ss_total_batch_size": training.batch_size * training.gradient_accumulation,
        "ss_resolution": (job.dataset.width, job.dataset.height),
        "ss_steps": step,
        "ss_epoch": epoch,
    }
    if job.network.kind in ADAPTERS:
        values["ss_network_args"] = json.dumps(_network_args(job))
    if model.file_hash:
        values["ss_new_sd_model_hash"] = model.file_hash
    metadata = {key: str(value) for key, value in values.items()}
    metadata["ss_tag_frequency"] = json.dumps(facts.scan.tag_frequency(), ensure_ascii=False)
    metadata["ss_dataset_dirs"] = json.dumps(facts.scan.dataset_dirs(), ensure_ascii=False)
    metadata["ss_bucket_info"] = json.dumps(_bucket_info(facts.encoded))
    if cover is not None:
        metadata["ssmd_cover_images"] = json.dumps([_encode_cover(cover)])
    return metadata


def _network_args(job: JobConfig) -> dict[str, str]:
    """What LyCORIS calls the options that rank and alpha do not tell."""
    network = job.network
    values: dict[str, object] = {"algo": {"locon": "locon", "loha": "loha", "lokr": "lokr"}.get(network.kind, "lora")}
    if network.kind in ("locon", "loha", "lokr"):
        values |= {"conv_dim": network.conv_rank, "conv_alpha": network.conv_alpha or network.conv_rank}
    if network.kind == "lokr":
        values |= {"factor": network.factor, "decompose_both": network.decompose_both}
    for name, value in (("dora_wd", network.dora), ("rs_lora", network.rank_stabilised)):
        if value:
            values[name] = value
    for name in ("dropout", "rank_dropout", "module_dropout"):
        if getattr(network, name):
            values[name] = getattr(network, name)
    return {name: str(value) for name, value in values.items()}


def _bucket_info(encoded: Encoded) -> dict[str, object]:
    """Buckets are numbered; `resolution` is (width, height) in pixels."""
    counts: dict[tuple[int, int], int] = {}
    for target, sample in zip(encoded.targets, encoded.samples, strict=True):
        counts[target] = counts.get(target, 0) + sample.repeats
    buckets = {str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(counts.items())}
    return {"buckets": buckets}


def _encode_cover(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((COVER_SIDE, COVER_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
