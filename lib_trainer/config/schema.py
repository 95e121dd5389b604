"""Every option of a job. Label, help, bounds and unit stand beside the field and nowhere else."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from lib_trainer.config.base import ADAPTERS, kinds
from lib_trainer.config.captions import CaptionsConfig
from lib_trainer.config.inpainting import InpaintingConfig
from lib_trainer.config.kinds import DifferenceConfig, EmbeddingConfig, FinetuneConfig, HypernetworkConfig
from lib_trainer.config.masks import MasksConfig
from lib_trainer.config.network import BlocksConfig, NetworkConfig
from lib_trainer.config.objective import LossConfig, NoiseConfig
from lib_trainer.config.optimizer import OptimizerConfig
from lib_trainer.config.pictures import AugmentConfig, BucketsConfig
from lib_trainer.config.preserve import PreserveConfig
from lib_trainer.config.validation import ValidationConfig
from lib_trainer.options.declare import EXISTING, Existing, Group, Section, given, one_of, option

SIZE = "Pictures are resized and cropped to this. A job file that gives neither width nor height takes the model's own."


class ModelConfig(Section):
    """Model"""

    checkpoint: Annotated[
        str,
        option(
            "Checkpoint file",
            "Path of a .safetensors or .ckpt file or a diffusers folder. Only headless runs read it: in the WebUI the "
            "loaded checkpoint is trained.",
            place="path",
            width="wide",
            headless=True,
        ),
    ] = ""
    prediction: Annotated[
        Literal["auto", "epsilon", "v"],
        option(
            "Prediction",
            "What the checkpoint's UNet predicts: the noise (epsilon) or v. Auto finds out by itself; choose one "
            "only where you know that the line above is wrong.",
            names={"auto": "auto (as found)", "epsilon": "epsilon (the noise)", "v": "v"},
            advanced=True,
        ),
    ] = "auto"
    zero_terminal_snr: Annotated[
        Literal["auto", "on", "off"],
        option(
            "Zero terminal SNR",
            "Whether nothing of the picture is left at the noisiest step. Turn it on for a v model that was "
            "trained so and does not say so.",
            names={"auto": "auto (as found)"},
            advanced=True,
        ),
    ] = "auto"


class DatasetConfig(Section):
    """Pictures"""

    folder: Annotated[
        str,
        option(
            "Folder of pictures",
            "Pictures with captions of the same name (.txt) beside them. In subfolders called N_concept every "
            "picture is shown N times per epoch; a file weights.csv sets repeats and loss weights of single pictures.",
            place="path",
            width="wide",
            first=2,
        ),
    ] = ""
    trigger_word: Annotated[
        str,
        option(
            "Trigger word",
            "Put in front of every caption that lacks it; a picture without a caption gets it alone. Write it in "
            "a prompt to call the concept.",
            first=3,
        ),
    ] = ""
    template: Annotated[
        str,
        option(
            "Caption template",
            "A text file of lines with [name] and [filewords] (the caption), drawn at random; a path, or a name in the "
            "WebUI's own folder of templates. Empty: the captions, with the name in front where it is missing.",
            group=kinds("embedding", "hypernetwork", "pivotal"),
            place="path or name",
            width="wide",
        ),
    ] = ""
    caption_lines: Annotated[
        Literal["all", "first", "random"],
        option(
            "Captions of several lines",
            "All lines as one caption, the first line alone, or a line drawn at random at each step; one that begins "
            "with a number and two colons (0.3:: a dog) has that share of the chances, others 1.",
            advanced=True,
        ),
    ] = "all"
    caption_files: Annotated[
        str,
        option(
            "Caption files",
            "Endings of the files with captions, with their chances, where pictures have several: .txt 0.7, .caption "
            "0.3. One of those that a picture has is drawn at each step. Empty: .txt.",
            advanced=True,
        ),
    ] = ""
    second_captions: Annotated[
        str,
        option(
            "Captions of the second encoder",
            "Ending of files (.long) that hold what a model's second text encoder is told instead, as sentences beside "
            "tags. Pictures without one, and an empty field, tell both the same.",
            advanced=True,
            family="second_encoder",
        ),
    ] = ""
    width: Annotated[
        int,
        option("Training width", SIZE, low=64, high=2048, unit="px", step=64),
    ] = 512
    height: Annotated[
        int,
        option("Training height", SIZE, low=64, high=2048, unit="px", step=64),
    ] = 512
    repeats: Annotated[
        float,
        option(
            "Repeats",
            "How often an epoch shows each picture that is not in an N_concept subfolder. 0.5 shows every other one, "
            "and all of them equally often over the epochs: for large sets.",
            low=0.01,
            high=1000,
            step=1,
        ),
    ] = 10.0
    cache: Annotated[
        Literal["memory", "disk"],
        option(
            "Keep encoded pictures",
            "Pictures are encoded once. On disk they are found again by the next run; in memory they are gone with it.",
            advanced=True,
        ),
    ] = "memory"


class PriorConfig(Section):
    """Class pictures (prior preservation)"""

    GROUP: ClassVar[Group] = kinds("lora", "locon", "loha", "lokr", "pivotal", "checkpoint")

    class_prompt: Annotated[
        str,
        option(
            "Class prompt",
            "What the concept is one of ('photo of a dog'): pictures of it are trained beside yours, so that the class "
            "keeps its variety. Empty: no class pictures.",
            width="wide",
        ),
    ] = ""
    class_folder: Annotated[
        str,
        option(
            "Folder of class pictures",
            "What is missing there is drawn before training. Empty: a folder of the trainer's own.",
            advanced=True,
            place="path",
            width="wide",
        ),
    ] = ""
    class_pictures: Annotated[
        int,
        option(
            "Class pictures",
            "How many there should be; 100 to 200 are usual.",
            low=1,
            high=10_000,
            when=given("prior.class_prompt"),
        ),
    ] = 100
    weight: Annotated[
        float,
        option(
            "Weight of the class pictures",
            "Factor on their loss.",
            low=0,
            high=10,
            advanced=True,
            when=given("prior.class_prompt"),
        ),
    ] = 1.0


class TrainingConfig(Section):
    """Run"""

    epochs: Annotated[
        int,
        option(
            "Epochs",
            "How often the whole set is seen. Ignored where steps are given.",
            low=1,
            high=10_000,
            step=1,
            when=one_of("training.max_steps", 0),
        ),
    ] = 10
    max_steps: Annotated[
        int,
        option(
            "Steps",
            "Number of optimizer steps. 0: the epochs decide.",
            low=0,
            high=10_000_000,
            unit="steps",
            step=1,
        ),
    ] = 0
    batch_size: Annotated[
        int, option("Batch size", "Pictures in one forward pass.", low=1, high=256, unit="pictures", step=1)
    ] = 1
    gradient_accumulation: Annotated[
        int,
        option(
            "Gradient accumulation",
            "Batches that are added up before one optimizer step.",
            low=1,
            high=1024,
            unit="batches",
            step=1,
            advanced=True,
        ),
    ] = 1
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        option(
            "Precision",
            "What the frozen checkpoint is held and computed in; what is trained stays fp32. Auto takes bf16 where "
            "the device has it, else fp16 on a GPU, else fp32.",
        ),
    ] = "auto"
    weights: Annotated[
        Literal["run precision", "fp8"],
        option(
            "Frozen weights",
            "fp8 holds the UNet's frozen layers in 8 bits: half their memory, a little slower, and what the UNet "
            "predicts is 1 to 2% off. For small cards; not with DoRA or a UNet that is trained itself.",
            advanced=True,
        ),
    ] = "run precision"
    gradient_checkpointing: Annotated[
        bool,
        option(
            "Gradient checkpointing",
            "Recompute activations instead of keeping them: far less memory, about a third slower.",
        ),
    ] = False
    cuda_graphs: Annotated[
        Literal["auto", "on", "off"],
        option(
            "CUDA graphs",
            "Auto records steps on an NVIDIA card where many of the same shape come, so that a fast card need not wait "
            "for Python, on torch 2.11 or newer; On does so with an older torch too, where it was not tried. Not with "
            "dropouts, learned loss weights or gradient checkpointing.",
            advanced=True,
        ),
    ] = "auto"
    seed: Annotated[
        int,
        option(
            "Seed",
            "The same seed gives the same noise and pictures; a GPU's sums still differ in their last bits.",
            low=0,
            high=2**32 - 1,
            step=1,
        ),
    ] = 1
    clip_skip: Annotated[
        int,
        option(
            "Clip skip",
            "Which of the text encoder's last layers is used: 1 is the last. Use the value that is recommended "
            "for the checkpoint. Later families of models ignore it, as in the WebUI.",
            low=1,
            high=12,
            step=1,
            advanced=True,
            family="clip_skip",
        ),
    ] = 1
    max_tokens: Annotated[
        Literal[75, 150, 225],
        option("Caption length", "Longer captions are cut.", unit="tokens", advanced=True),
    ] = 225


class OutputConfig(Section):
    """Result"""

    name: Annotated[
        str,
        option(
            "Name of the result",
            "The file's name, by which prompts call it: <lora:name:1>, <hypernet:name:1>, or an embedding's name "
            "alone.",
            file_name=True,
            first=4,
        ),
    ] = ""
    existing: Annotated[
        Existing,
        option(
            "If the name is taken",
            "Refuse before the run, take the next free name (name-2), or replace: when the new file is written, the "
            "old one and those of its steps go into the folder .trainer-trash beside it.",
            names=EXISTING,
        ),
    ] = "refuse"
    folder: Annotated[
        str,
        option(
            "Output folder", "Empty: the host's own folder for such files.", advanced=True, place="path", width="wide"
        ),
    ] = ""
    save_every: Annotated[
        int,
        option(
            "Save every",
            "Also write a file every N steps, with -step0000000N at the end of its name. 0: at the end only.",
            low=0,
            high=10_000_000,
            unit="steps",
            step=1,
        ),
    ] = 0
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"],
        option(
            "Precision of the file",
            "fp16 is what every program reads. Embeddings and hypernetworks are always fp32.",
            advanced=True,
            group=kinds(*ADAPTERS, "checkpoint"),
        ),
    ] = "fp16"


class PreviewConfig(Section):
    """Preview"""

    prompt: Annotated[
        str,
        option(
            "Preview prompts",
            "One a line, drawn with what has been learned so far, each from its own held seed; settings of a line "
            "follow it: --n negative prompt, --w width, --h height, --s steps, --l CFG scale, --d seed, --ss sampler. "
            "Empty: no previews.",
            width="tall",
        ),
    ] = ""
    negative_prompt: Annotated[
        str, option("Preview negative prompt", "What the preview should avoid.", width="tall")
    ] = ""
    every: Annotated[
        int,
        option("Preview every", "0 draws only when you ask.", low=0, high=10_000_000, unit="steps", step=1),
    ] = 100
    at_start: Annotated[
        bool,
        option(
            "Preview before the first step",
            "Turn it on to see from the same seed what the checkpoint draws by itself, beside what it draws later.",
        ),
    ] = False
    width: Annotated[
        int, option("Preview width", "0: the training width.", low=0, high=4096, unit="px", step=64, advanced=True)
    ] = 0
    height: Annotated[
        int, option("Preview height", "0: the training height.", low=0, high=4096, unit="px", step=64, advanced=True)
    ] = 0
    steps: Annotated[
        int, option("Preview steps", "Sampling steps.", low=1, high=150, unit="steps", step=1, advanced=True)
    ] = 20
    cfg_scale: Annotated[
        float,
        option("Preview CFG scale", "How strongly the prompt is followed.", low=1, high=30, step=0.5, advanced=True),
    ] = 7.0
    sampler: Annotated[
        str, option("Preview sampler", "Empty: the host's default.", advanced=True, offers="samplers")
    ] = ""
    seed: Annotated[
        int,
        option(
            "Preview seed", "The same at every step, so that previews can be compared.", low=0, high=2**32 - 1, step=1
        ),
    ] = 1


class JobConfig(Section):
    """A whole job, as a job file holds it. `version` counts incompatible changes of this layout."""

    version: Literal[3] = 3
    model: ModelConfig = ModelConfig()
    network: NetworkConfig = NetworkConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    hypernetwork: HypernetworkConfig = HypernetworkConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    difference: DifferenceConfig = DifferenceConfig()
    dataset: DatasetConfig = DatasetConfig()
    captions: CaptionsConfig = CaptionsConfig()
    buckets: BucketsConfig = BucketsConfig()
    augment: AugmentConfig = AugmentConfig()
    masks: MasksConfig = MasksConfig()
    inpainting: InpaintingConfig = InpaintingConfig()
    prior: PriorConfig = PriorConfig()
    preserve: PreserveConfig = PreserveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    blocks: BlocksConfig = BlocksConfig()
    noise: NoiseConfig = NoiseConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    output: OutputConfig = OutputConfig()
    preview: PreviewConfig = PreviewConfig()
