"""What a file says about its making, in sd-scripts' names, which the WebUI's card and other tools read.

Values are strings; the WebUI parses JSON only where a value begins with a brace. What the tensors tell (ranks, alphas,
hashes) is added where they are written. `modelspec.` fields: github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import json
import time
import uuid
from dataclasses import dataclass, field

from PIL import Image

from lib_trainer import __version__
from lib_trainer.config import JobConfig
from lib_trainer.dataset.encoded import Encoded
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.ports import LoadedModel, NoiseSchedule
from lib_trainer.training.optimizers import described
from lib_trainer.training.plan import Plan
from lib_trainer.training.schedules import told

COVER_SIDE = 512
PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
"""accelerate's words, as sd-scripts writes them."""


@dataclass(frozen=True)
class RunFacts:
    """What stays the same during a run. `schedule` is the one that is trained with."""

    plan: Plan
    model: LoadedModel
    schedule: NoiseSchedule
    encoded: Encoded
    total_steps: int
    batches_per_epoch: int
    precision: str
    recipe: Recipe
    started: float = field(default_factory=time.time)
    session: str = field(default_factory=lambda: str(uuid.uuid4().int % 2**32))


def run_metadata(facts: RunFacts, *, step: int, epoch: int, cover: Image.Image | None) -> dict[str, str]:
    """Metadata of the file written after `step` optimizer steps."""
    plan, model = facts.plan, facts.model
    job, kind = plan.job, plan.kind
    optimizer, training = job.optimizer, job.training
    values: dict[str, object] = {
        "ss_session_id": facts.session,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": time.time(),
        "ss_output_name": job.output.name,
        "ss_training_comment": f"WebUI trainer {__version__}",
        "ss_base_model_version": model.family.versions(facts.schedule.prediction)[0],
        "ss_v2": model.family.v2,
        "ss_clip_skip": training.clip_skip if model.family.clip_skip else None,
        "ss_max_token_length": training.max_tokens,
        "ss_seed": training.seed,
        "ss_mixed_precision": PRECISIONS.get(facts.precision, facts.precision),
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_max_grad_norm": optimizer.max_gradient_norm,
        "ss_optimizer": described(optimizer),
        "ss_max_train_steps": facts.total_steps,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": -(-facts.total_steps * training.gradient_accumulation // max(1, facts.batches_per_epoch)),
        "ss_batch_size_per_device": training.batch_size,
        "ss_total_batch_size": training.batch_size * training.gradient_accumulation,
        "ss_resolution": (job.dataset.width, job.dataset.height),
        "ss_steps": step,
        "ss_epoch": epoch,
    }
    values |= told(optimizer, facts.total_steps)
    values |= _objective(facts) | _sizes_and_variations(job) | _captions(plan)
    values |= kind.rates_told(job, facts.recipe, model.family)
    values |= _base_model(model) | _pictures(facts) | _model_spec(facts)
    metadata = {key: str(value) for key, value in values.items()}
    metadata |= kind.metadata(job, facts.recipe)
    metadata["ss_tag_frequency"] = json.dumps(plan.scan.tag_frequency(), ensure_ascii=False)
    metadata["ss_dataset_dirs"] = json.dumps(plan.scan.dataset_dirs(), ensure_ascii=False)
    metadata["ss_bucket_info"] = json.dumps(_bucket_info(facts.encoded))
    if cover is not None:
        metadata["ssmd_cover_images"] = json.dumps([_encode_cover(cover)])
    return metadata


def _objective(facts: RunFacts) -> dict[str, object]:
    """Of noise and loss, what is not as usual."""
    noise, loss = facts.plan.job.noise, facts.plan.job.loss
    huber = loss.type in ("huber", "smooth_l1")
    told: dict[str, tuple[object, bool]] = {
        "ss_zero_terminal_snr": (True, facts.schedule.zero_terminal),
        "ss_noise_offset": (noise.offset, noise.offset > 0),
        "ss_noise_offset_random_strength": (True, noise.offset > 0 and noise.offset_random),
        "ss_adaptive_noise_scale": (noise.offset_adaptive, noise.offset > 0 and noise.offset_adaptive > 0),
        "ss_multires_noise_iterations": (noise.pyramid_iterations, noise.pyramid_iterations > 0),
        "ss_multires_noise_discount": (noise.pyramid_discount, noise.pyramid_iterations > 0),
        "ss_ip_noise_gamma": (noise.perturbation, noise.perturbation > 0),
        "ss_ip_noise_gamma_random_strength": (True, noise.perturbation > 0 and noise.perturbation_random),
        "ss_min_snr_gamma": (loss.min_snr_gamma, loss.weighting == "min_snr"),
        "ss_debiased_estimation": (True, loss.weighting == "debiased"),
        "ss_loss_type": (loss.type, loss.type != "l2"),
        "ss_huber_schedule": (loss.huber_schedule, huber),
        "ss_huber_c": (loss.huber_c, huber),
        "ss_huber_scale": (loss.huber_scale, huber),
    }
    values = {name: value for name, (value, holds) in told.items() if holds}
    if (noise.min_timestep, noise.max_timestep) != (0, 1000):
        values["modelspec.timestep_range"] = f"{noise.min_timestep},{noise.max_timestep}"
    return values


def _base_model(model: LoadedModel) -> dict[str, object]:
    values: dict[str, object] = {"ss_sd_model_name": model.file.name if model.file else model.name}
    if model.file_hash:
        values["ss_new_sd_model_hash"] = model.file_hash
    if model.file is not None and model.file.is_file():
        with contextlib.suppress(OSError), model.file.open("rb") as file:
            file.seek(0x100000)
            values["ss_sd_model_hash"] = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]  # the WebUI's older one
    return values


def _pictures(facts: RunFacts) -> dict[str, object]:
    counts = dict.fromkeys(("learn", "class", "before"), 0.0)
    for sample in facts.encoded.samples:
        counts[sample.role] += sample.repeats
    values: dict[str, object] = {
        "ss_num_train_images": round(counts["learn"] + counts["before"]),
        "ss_num_reg_images": round(counts["class"]),
    }
    if held := facts.plan.held.pictures:
        own = facts.plan.job.validation
        values |= {"ss_num_validation_images": len(held), "ss_validation_seed": own.seed}
        values |= {"ss_validation_split": own.share} if own.pictures == "share" else {}
        values |= {"ss_validate_every_n_steps": own.every} if own.every else {"ss_validate_every_n_epochs": 1}
    return values | ({"ss_prior_loss_weight": facts.plan.job.prior.weight} if counts["class"] else {})


def _model_spec(facts: RunFacts) -> dict[str, object]:
    """The fields of ModelSpec 1.0.0 that are certain here."""
    job, kind = facts.plan.job, facts.plan.kind
    _, architecture = facts.model.family.versions(facts.schedule.prediction)
    values: dict[str, object] = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture}{kind.architecture}",
        "implementation": kind.implementation,
        "title": job.output.name,
        "date": datetime.datetime.fromtimestamp(int(facts.started)).isoformat(),
        "resolution": f"{job.dataset.width}x{job.dataset.height}",
        "prediction_type": facts.schedule.prediction,
    }
    if facts.model.family.clip_skip:
        values["encoder_layer"] = job.training.clip_skip
    if job.dataset.trigger_word.strip():
        values["trigger_phrase"] = job.dataset.trigger_word.strip()
    return {f"modelspec.{name}": value for name, value in values.items()}


def _sizes_and_variations(job: JobConfig) -> dict[str, object]:
    """Of what is on: who reads a file takes what it does not say for off."""
    own, found = job.augment, dict[str, object]()
    if job.buckets.enabled:
        found |= {
            "ss_enable_bucket": True,
            "ss_min_bucket_reso": job.buckets.low,
            "ss_max_bucket_reso": job.buckets.high,
            "ss_bucket_no_upscale": not job.buckets.enlarge,
        }
    flags = {"ss_flip_aug": own.mirror, "ss_color_aug": own.colour > 0, "ss_random_crop": own.crop}
    return found | {name: True for name, on in flags.items() if on}


def _captions(plan: Plan) -> dict[str, object]:
    """Of what is on, what sd-scripts would do alike: it has no lists of tags, and counts the words at the front."""
    own, words = plan.captions.variation, len(plan.captions.variation.words)
    told: dict[str, tuple[object, bool]] = {
        "ss_shuffle_caption": (True, own.shuffle),
        "ss_keep_tokens": (words + own.keep, own.reads_tags and words + own.keep > 0),
        "ss_caption_dropout_rate": (own.dropout, own.dropout > 0),
        "ss_caption_dropout_every_n_epochs": (own.dropout_epochs, own.dropout_epochs > 0),
        "ss_caption_tag_dropout_rate": (own.tag_dropout, own.tag_dropout > 0 and not own.spared and not own.alone),
    }
    return {name: value for name, (value, holds) in told.items() if holds}


def _bucket_info(encoded: Encoded) -> dict[str, object]:
    """Buckets are numbered; `resolution` is (width, height) in pixels."""
    counts: dict[tuple[int, int], float] = {}
    for target, sample in zip(encoded.targets, encoded.samples, strict=True):
        counts[target] = counts.get(target, 0) + sample.repeats
    buckets = {
        str(i): {"resolution": list(size), "count": round(count)} for i, (size, count) in enumerate(counts.items())
    }
    return {"buckets": buckets}


def _encode_cover(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((COVER_SIDE, COVER_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
