"""Options of a training run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.errors import UserError
from sepc_zoo.options import OptionError, Options, option, option_fields

BALANCED = "balanced"
FormatName = Literal["coco", "voc", "yolo", "hf"]
Schedule = Literal["multistep", "cosine"]
RecipeName = Literal["auto", "paper", "small", "strong"]
Learned = Literal["nothing", "backbone", "detector"]
# Entries of a model's config that come from the data or have a flag of their own.
NOT_MODEL_KWARGS = {"num_classes", "label_names", "category_ids", "backbone_kwargs", "weights"}


class TrainError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says why and what may help."""


def by_recipe(help: str, **facts: Any) -> Any:
    """An option that the recipe sets where it is not given."""
    return option(None, f"{help} (default: the recipe's)", **facts)


@dataclass(frozen=True, kw_only=True)
class FormatOptions(Options):
    """Data."""

    format: FormatName | None = option(None, "format of the data (default: that of its files)")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(FormatOptions):
    """Data."""

    data: tuple[str, ...] = option(
        help="data set, or several to join by class name", metavar="DATA"
    )
    drop_bad_boxes: bool = option(False, "leave out and list boxes without area (default: refuse)")
    skip_bad_images: bool = option(
        False, "leave out and list images that cannot be decoded (default: refuse)"
    )
    val_fraction: float | None = option(
        None, "share of the images held out (default: 0.2 without a split for it)", gt=0, le=0.9
    )
    split_seed: int = option(0, "seed of the choice of the images to hold out", ge=0)
    split_by: str | None = option(
        None, "file with a line for each image, its name and its split", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Data."""

    train_split: str = option("train", "name of the training split", metavar="NAME")
    val_split: str = option("val", "name of the validation split", metavar="NAME")
    repeat_factor: float = option(
        0.0, "repeat images of classes on less than this share of them (LVIS: 0.001)", ge=0, le=1
    )
    image_size: tuple[int, int] | None = option(
        None,
        "short side and maximum long side of images in pixels (default: the model's)",
        ge=1,
        metavar=("SHORT", "LONG"),
    )
    mean: tuple[float, ...] | None = option(
        None, "mean of RGB, or of each channel, in 0..1 (default: the backbone's)"
    )
    std: tuple[float, ...] | None = option(
        None, "standard deviation of RGB, or of each channel (default: the backbone's)", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size[0] > self.image_size[1]:
            raise OptionError("image_size", f"is {self.image_size}; the short side comes first")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Model and initial weights."""

    model: str = option(
        help="name of a model, or a model folder or hf-hub:org/repo to fine-tune",
        metavar="NAME_OR_DIR",
        exclusive="model",
    )
    model_kwargs: dict[str, Any] = option(
        factory=dict,
        help="entries of the model's config, such as channels=128 anchors.octaves=4",
        metavar="KEY=VALUE",
    )
    pretrained: bool = option(False, "start from the published weights of the model's name")
    pretrained_backbone: bool = option(
        False, "start from timm's ImageNet weights (downloaded)", exclusive="backbone"
    )
    backbone_checkpoint: str | None = option(
        None,
        "start the backbone from this safetensors file of timm's",
        metavar="FILE",
        aliases=("--init-from",),
        exclusive="backbone",
    )
    backbone_kwargs: dict[str, Any] = option(
        factory=dict,
        help="arguments of timm.create_model, such as in_chans=5 for images of five channels",
        metavar="KEY=VALUE",
    )
    freeze_stages: int | None = by_recipe(
        "freeze the stem and the first N stages of the backbone", ge=0, le=4
    )
    freeze: Literal["neck"] | None = option(
        None, "freeze backbone, FPN and neck, so that only the head learns (default: nothing)"
    )
    keep_classes: bool = option(
        False, "keep the trained model's classes, also those of which the data has no boxes"
    )
    freeze_bn: bool | None = option(
        None, "freeze the backbone's batch norm statistics (default: if it is pretrained)"
    )
    auto_anchors: bool = option(
        False, "fit sizes and ratios of the anchors of a new model to the training boxes"
    )
    sync_bn: bool | None = option(
        None, "synchronize batch norms over all processes (default: below 4 images per process)"
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options):
    """Optimizer and schedule."""

    recipe: RecipeName = option(
        "auto",
        "defaults of optimizer, schedule, freezing and augmentation: paper (the SEPC authors'), "
        "small (short training on few images), strong (long training); auto chooses by the data",
    )
    epochs: int | None = by_recipe("number of epochs", ge=1, exclusive="length")
    max_steps: int | None = option(
        None, "number of optimizer steps, instead of --epochs", ge=1, exclusive="length"
    )
    patience: int | None = option(
        None, "stop early after N validations without a better AP (default: never)", ge=1
    )
    batch_size: int | Literal["auto"] = option(
        4,
        "images per process and backward pass; auto: the largest power of two that fits and leaves "
        "20 steps in an epoch",
        ge=1,
        metavar="N",
    )
    grad_accum_steps: int = option(
        1,
        "backward passes per optimizer step; the gradient is that of one large batch where the "
        "counts of the loss terms are known beforehand or all the same, else the mean over batches",
        ge=1,
    )
    opt: str | None = by_recipe("sgd, adamw or another optimizer of timm", metavar="NAME")
    lr: float | None = by_recipe("learning rate; the recipe's is scaled to the batch size", gt=0)
    weight_decay: float | None = by_recipe("weight decay", ge=0)
    layer_decay: float | None = option(
        None, "factor on the learning rate per stage, from the head down (default 1)", ge=0, le=1
    )
    sched: Schedule | None = by_recipe("learning rate schedule")
    warmup_steps: int | None = option(
        None, "steps of linear warm-up (default 500, at most a tenth of the run)", ge=0
    )
    clip_grad: float | None = by_recipe("maximum gradient norm", gt=0)
    model_ema: bool | None = by_recipe("keep and validate a moving average of the weights")
    model_ema_decay: float = option(0.9998, "final decay of the moving average", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """Loss."""

    class_weights: tuple[str, ...] = option(
        (),
        "weights of classes in the loss, such as cat=2 dog=0.5 (others 1); or balanced: by the "
        "inverse frequency",
        metavar="CLASS=X",
    )

    def __post_init__(self) -> None:
        given: Any = self.class_weights
        if isinstance(given, Mapping):  # in Python, or in a file of options
            given = tuple(f"{name}={weight}" for name, weight in given.items())
            object.__setattr__(self, "class_weights", given)
        super().__post_init__()
        self.weight_of_class()

    def weight_of_class(self) -> dict[str, float]:
        """The weights that are given by name."""
        weights: dict[str, float] = {}
        for text in self.class_weights if self.class_weights != (BALANCED,) else ():
            name, _, weight = text.rpartition("=")
            problem = f"; {name!r:.80} has a weight already" if name in weights else ""
            try:
                weights[name] = float(weight if name else "")
                if not 0 < weights[name] < math.inf:
                    problem = "; a weight must be above 0 and finite"
            except ValueError:
                problem = "; it must be a class=weight"
            if problem:
                raise OptionError("class_weights", f"has {text!r:.80}{problem}")
        return weights


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Hardware and speed."""

    device: str | None = option(None, "cuda, mps or cpu (default: a GPU where there is one)")


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(DeviceOptions):
    """Hardware and speed."""

    amp: Literal["bf16", "fp16"] | None = option(None, "mixed precision (default: float32)")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(Options):
    """Hardware and speed."""

    workers: int = option(2, "processes that read images", ge=0)


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Options):
    """Hardware and speed."""

    channels_last: bool = option(False, "channels-last memory format, often faster with --amp")
    compile: bool = option(False, "compile the model with torch.compile")
    grad_checkpointing: bool = option(False, "recompute activations, to save memory")
    deterministic: bool = option(False, "use deterministic algorithms: repeatable runs, slower")
    seed: int = option(0, "seed of weights, order and augmentation", ge=0, le=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Run folder, validation and logging."""

    output: str = option(help="run folder to write (default: a new folder in runs/)", metavar="DIR")
    val_interval: int = option(1, "epochs between validations", ge=1)
    log_interval: int = option(10, "steps between rows of log.csv", ge=1)
    save_interval: int = option(500, "steps between saved states to resume from", ge=1)
    max_faults: int = option(10, "unreadable images, or dead workers, that a run survives", ge=0)
    draw_batches: int = option(0, "number of first batches to draw as the network sees them", ge=0)
    log_with: tuple[str, ...] = option(
        ("tensorboard",),
        "trackers of accelerate, such as wandb; without a name, none",
        metavar="TRACKER",
        may_be_empty=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(
    SourceOptions,
    InputOptions,
    ModelOptions,
    ScheduleOptions,
    LossOptions,
    Augmentation,
    PrecisionOptions,
    WorkerOptions,
    SpeedOptions,
    RunOptions,
):
    """Options of a training run.

    None leaves an option to the model and its recipe.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        entries = set(DetectorConfig.__annotations__) - NOT_MODEL_KWARGS
        unknown = sorted(set(self.model_kwargs) - entries)
        if unknown:
            raise OptionError(
                "model_kwargs",
                f"has {', '.join(map(str, unknown))}; it may have {', '.join(sorted(entries))}",
            )
        if self.freeze is not None and self.learned != "detector":
            raise OptionError("freeze", "would freeze random weights; give --finetune MODEL")
        if self.freeze_stages and self.learned == "nothing":
            ways = "--finetune MODEL, --pretrained-backbone or --backbone-checkpoint FILE"
            raise OptionError("freeze_stages", f"would freeze random weights; give {ways}")

    @property
    def augmentation(self) -> dict[str, Any]:
        """The options of the augmentation that do something."""
        values = {entry.name: getattr(self, entry.name) for entry in option_fields(Augmentation)}
        return {name: value for name, value in values.items() if value and value != (1.0, 1.0)}

    @property
    def images_per_pass(self) -> int:
        """The batch size once it is a number, see ``dry_run.settle_batch_size``."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    @property
    def learned(self) -> Learned:
        """The part of the model that starts from trained weights."""
        if self.pretrained or ":" in self.model:  # local-dir:… or hf-hub:…
            return "detector"
        has_file = self.backbone_checkpoint is not None
        return "backbone" if self.pretrained_backbone or has_file else "nothing"
