"""What a run is asked for, and the file that keeps it."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sepc_zoo.checkpoints.hub import HUB_PREFIX, LOCAL_PREFIX
from sepc_zoo.config import ConfigError, DetectorConfig, from_plain
from sepc_zoo.data import Augmentation
from sepc_zoo.errors import UserError
from sepc_zoo.files import write_atomically

OPTIONS_FILE = "config.yaml"
# Least and largest value of an option that is a number.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "max_steps", "batch_size", "grad_accum_steps"), (1, math.inf)),
    **dict.fromkeys(("val_interval", "log_interval", "save_interval", "patience"), (1, math.inf)),
    **dict.fromkeys(("lr", "weight_decay", "warmup_steps", "workers"), (0, math.inf)),
    **dict.fromkeys(("max_faults", "draw_batches"), (0, math.inf)),
    **dict.fromkeys(("layer_decay", "model_ema_decay"), (0, 1)),
    "clip_grad": (1e-6, math.inf),
    "freeze_stages": (0, 4),
    "seed": (0, 2**32 - 1),
}
# Entries of a model's config that come from the data or have a flag of their own.
NOT_MODEL_KWARGS = {"num_classes", "label_names", "category_ids", "backbone_kwargs", "weights"}


class TrainError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says why and what may help."""


@dataclass(frozen=True)
class TrainOptions:
    """What a run is asked for; None leaves it to the model and its recipe."""

    data: tuple[str, ...]  # folders, joined by class name; one may stand alone
    model: str
    output: str
    train_split: str = "train"
    val_split: str = "val"
    format: str | None = None  # of the data; None: as the folders tell
    drop_bad_boxes: bool = False

    epochs: int | None = None
    max_steps: int | None = None
    patience: int | None = None  # validations without a better AP
    batch_size: int = 4  # images per process and backward pass
    grad_accum_steps: int = 1  # backward passes per step
    image_size: tuple[int, int] | None = None

    model_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # start from the published weights of the model's name
    pretrained_backbone: bool = False
    backbone_checkpoint: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    opt: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    sched: str | None = None
    warmup_steps: int | None = None
    clip_grad: float | None = None
    freeze_stages: int | None = None
    freeze_bn: bool | None = None
    sync_bn: bool | None = None  # None: where a process holds fewer than 4 images
    model_ema: bool = False
    model_ema_decay: float = 0.9998

    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    short_sides: tuple[int, ...] = ()
    crop: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    mix_epochs: int | None = None

    amp: str | None = None  # bf16 or fp16
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    cpu: bool = False
    workers: int = 2
    seed: int = 0

    val_interval: int = 1  # epochs
    log_interval: int = 10  # steps
    save_interval: int = 500  # steps
    max_faults: int = 10  # unreadable images, and workers that die, that a run survives
    draw_batches: int = 0  # batches that are drawn as the network sees them
    log_with: tuple[str, ...] = ("tensorboard",)  # trackers of accelerate

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", (self.data,))
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} is {value}, but must lie in {least}..{most}")
        _ = self.augmentation  # which checks its entries
        entries = {entry.name for entry in dataclasses.fields(DetectorConfig)} - NOT_MODEL_KWARGS
        unknown = sorted(set(self.model_kwargs) - entries)
        if unknown:
            raise ConfigError(f"model_kwargs has {unknown}; it may have {sorted(entries)}")

    @property
    def augmentation(self) -> Augmentation:
        names = [entry.name for entry in dataclasses.fields(Augmentation)]
        return Augmentation(**{name: getattr(self, name) for name in names})

    @property
    def has_learned(self) -> bool:
        """Whether the backbone starts from weights that have learned."""
        return (
            self.pretrained
            or self.pretrained_backbone
            or self.backbone_checkpoint is not None
            or self.model.startswith((HUB_PREFIX, LOCAL_PREFIX))
        )


def write_options(options: TrainOptions) -> None:
    text = yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)
    path = Path(options.output) / OPTIONS_FILE
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_options(run: str | Path) -> TrainOptions:
    """The options that a run was started with; its folder may have moved since.

    Raises:
        TrainError: the folder holds no run.
    """
    path = Path(run) / OPTIONS_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = from_plain(TrainOptions, content, str(path))
    except (OSError, yaml.YAMLError, ConfigError) as error:
        raise TrainError(f"{run} is no run folder to resume: {error}") from error
    return dataclasses.replace(options, output=str(run))
