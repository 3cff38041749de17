"""From options to a run that can start: data, model, and all in the hands of accelerate."""

import dataclasses
import json
import math
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from sepc_zoo.config import DetectorConfig, config_from_json, config_to_json
from sepc_zoo.data import (
    Annotations,
    DetectionDataset,
    Mixer,
    make_loader,
    read_data,
    train_transform,
)
from sepc_zoo.data.resilient_loader import ResilientLoader, shield_workers
from sepc_zoo.evaluation.validate import validation_loader
from sepc_zoo.factory import build, create_model, load_backbone
from sepc_zoo.files import remove_temporary, write_json
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.training.accelerator import be_deterministic, make_accelerator
from sepc_zoo.training.checkpoint import Progress, ResumeError, Stateful, load_state, saved_state
from sepc_zoo.training.logging import Log, told_dropped
from sepc_zoo.training.options import TrainError, TrainOptions, write_options
from sepc_zoo.training.recipes import (
    Recipe,
    default_recipe,
    freeze_stages,
    make_optimizer,
    make_scheduler,
    scaled_lr,
)
from sepc_zoo.training.resilience.async_scalars import Outcome
from sepc_zoo.training.resilience.faults import SKIPPED_FOLDER, Faults
from sepc_zoo.training.resilience.signals import Interrupt

MODEL_FILE = "model.json"  # the model's config, so that resuming needs no weights to start from
FEW_IMAGES = 4  # under which the statistics of one process's batch norm are too poor


@dataclass
class Run:
    """All that the loop needs."""

    options: TrainOptions
    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module  # the detector as accelerate prepared it
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    lr: float
    train_data: Annotations
    val_data: Annotations
    train_loader: ResilientLoader
    val_loader: ResilientLoader
    total_steps: int
    progress: Progress
    log: Log
    faults: Faults
    interrupt: Interrupt
    outcomes: deque[Outcome] = field(default_factory=deque)  # of steps, not looked at yet
    saved_step: int | None = None

    @property
    def output(self) -> Path:
        return Path(self.options.output)

    @property
    def detector(self) -> Detector:
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated(self) -> Detector:
        """What is validated and kept: the average of the weights over time, or the weights."""
        return self.detector if self.ema is None else self.ema.module

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_loader) / self.options.grad_accum_steps)

    @property
    def epochs(self) -> int:
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def is_stale(self) -> bool:
        """Whether AP has not become better for too long."""
        patience = self.options.patience
        if patience is None:
            return False
        epochs = self.progress.epoch - self.progress.best_epoch
        return epochs // self.options.val_interval >= patience

    @property
    def state(self) -> Mapping[str, Stateful]:
        """What must be saved for the run to go on where it was."""
        parts: dict[str, Stateful | None] = {
            "model": self.detector,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.accelerator.scaler,
            "progress": self.progress,
        }
        return {name: part for name, part in parts.items() if part is not None}


def prepare(options: TrainOptions, resume: bool = False) -> Run:
    """Read the data, build the model, and put all in the hands of accelerate; writes nothing."""
    output = Path(options.output)
    check_output(output, resume)
    if options.deterministic:
        be_deterministic()
    accelerator = make_accelerator(options.amp, options.cpu, options.log_with, output)
    set_seed(options.seed)
    train_data, val_data, model = read_inputs(options, resume)
    recipe = choose_recipe(options, default_recipe(model.config, options.opt))
    freeze_stages(model.backbone, recipe.freeze_stages)
    if should_sync(options, model, accelerator):
        sync_batch_norm(model, accelerator.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)

    loader = accelerator.prepare(
        train_loader(options, train_data, model, accelerator.num_processes),
        device_placement=[False],  # only images are needed there
    )
    val = validation_loader(val_data, model, options.batch_size, options.workers)
    total_steps = options.max_steps or recipe.epochs * math.ceil(
        len(loader) / options.grad_accum_steps
    )
    images = images_per_step(options, accelerator)
    lr = scaled_lr(recipe, images) if options.lr is None else options.lr
    ema = make_ema(options, model.to(accelerator.device))
    prepared, optimizer = accelerator.prepare(model, make_optimizer(model, recipe, lr))
    if options.compile:
        model.compile()
    set_seed(options.seed, device_specific=True)  # processes drop different paths

    log = Log(accelerator, output)
    faults = Faults(output, options.max_faults, log)
    run = Run(
        options=options,
        recipe=recipe,
        accelerator=accelerator,
        model=prepared,
        ema=ema,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, recipe, lr, total_steps),
        lr=lr,
        train_data=train_data,
        val_data=val_data,
        train_loader=ResilientLoader(loader, faults.worker_died, faults.look_at),
        val_loader=ResilientLoader(val, faults.worker_died, faults.look_at),
        total_steps=total_steps,
        progress=Progress(images=len(train_data.records), batches=len(loader)),
        log=log,
        faults=faults,
        interrupt=Interrupt(),
    )
    if resume:
        load_state(run.state, output)
        run.saved_step = run.progress.step
    return run


def check_output(output: Path, resume: bool) -> None:
    """A run that is there is not overwritten, one that is not there is not resumed."""
    state = saved_state(output)
    if resume and state is None:
        raise ResumeError(f"{output} has no state to resume from; start it anew without --resume")
    if state and not resume:
        raise TrainError(
            f"{output} holds a run: go on with --resume {output}, or choose another --output"
        )


def start(run: Run, resume: bool) -> None:
    """Write what a run folder begins with, and what the readers left out."""
    if run.accelerator.is_main_process:
        remove_temporary(run.output)
        if not resume:
            write_options(run.options)
            write_json(run.output / MODEL_FILE, config_to_json(run.detector.config))
            # What a run left that ended before its first save.
            shutil.rmtree(run.output / SKIPPED_FOLDER, ignore_errors=True)
            for file in (run.log.steps, run.log.metrics, run.faults.file):
                file.path.unlink(missing_ok=True)
    run.faults.step = run.progress.step
    run.faults.file.keep(lambda row: int(row["step"]) <= run.progress.step)
    run.log.begin(run.progress.step, run.progress.epoch, run.total_steps)
    # A tracker forgets what it was told of steps that are made again.
    purge = {"tensorboard": {"purge_step": run.progress.step + 1}}
    run.accelerator.init_trackers("tracking", init_kwargs=purge)
    for line in (*told_dropped(run.train_data), *told_dropped(run.val_data)):
        run.log.say(line)


def images_per_step(options: TrainOptions, accelerator: Accelerator) -> int:
    """Of all processes and accumulated batches."""
    return options.batch_size * options.grad_accum_steps * accelerator.num_processes


def read_inputs(options: TrainOptions, resume: bool) -> tuple[Annotations, Annotations, Detector]:
    """The data to train and to validate on, and the model for its classes.

    Raises:
        DataError, TrainError, ResumeError: with all that is wrong with a split or the run.
    """
    known = read_model_file(Path(options.output) / MODEL_FILE) if resume else None
    names = known.label_names if known else None
    how: dict[str, Any] = {"drop_bad_boxes": options.drop_bad_boxes, "format": options.format}
    train_data = read_data(options.data, options.train_split, names, **how)
    model = build(known) if known else build_model(options, train_data)
    names = model.config.label_names
    val_data = read_data(options.data, options.val_split, names, **how)
    for split, data in ((options.train_split, train_data), (options.val_split, val_data)):
        if not data.records:
            raise TrainError(f"split {split!r} of {', '.join(options.data)} has no images")
    return train_data, val_data, model


def read_model_file(file: Path) -> DetectorConfig:
    """The config of a run's model.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return config_from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ConfigError is a ValueError
        raise ResumeError(
            f"{file} is needed to resume the run, but is no config of a model: {error}. Start a "
            f"new run, perhaps from --model {file.parent / 'last'}"
        ) from error


def build_model(options: TrainOptions, data: Annotations) -> Detector:
    """The model for the classes of the data, with the input that the options ask for."""
    names = [Path(folder).resolve().name for folder in options.data]
    weights: dict[str, Any] = {"dataset": " + ".join(names)}
    for name in ("image_size", "mean", "std"):
        if getattr(options, name) is not None:
            weights[name] = getattr(options, name)
    model = create_model(
        options.model,
        options.pretrained,
        label_names=data.label_names,
        category_ids=data.category_ids,
        inclusive_boxes=False,  # targets are continuous, and so the model learns
        pretrained_backbone=options.pretrained_backbone,
        backbone_kwargs=options.backbone_kwargs,
        weights=weights,
        **options.model_kwargs,
    )
    if options.backbone_checkpoint is not None:
        load_backbone(model, options.backbone_checkpoint)
    return model


def choose_recipe(options: TrainOptions, recipe: Recipe) -> Recipe:
    """The model's recipe with the options' changes; a backbone that knows nothing is not frozen."""
    if not options.has_learned:
        recipe = dataclasses.replace(recipe, freeze_stages=0, freeze_bn=False)
    names = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("batch_size", "lr")]
    asked = {name: getattr(options, name) for name in names}
    return dataclasses.replace(recipe, **{k: v for k, v in asked.items() if v is not None})


def should_sync(options: TrainOptions, model: Detector, accelerator: Accelerator) -> bool:
    """Whether batch norms take their statistics from all processes."""
    if accelerator.num_processes == 1:
        return False
    has_norm = any(isinstance(module, IntegratedBatchNorm) for module in model.modules())
    is_wanted = has_norm and options.batch_size < FEW_IMAGES
    return is_wanted if options.sync_bn is None else options.sync_bn


def sync_batch_norm(model: Detector, device: torch.device) -> None:
    """Let the neck's batch norms, and on a GPU the backbone's, see the images of all processes."""
    for module in model.modules():
        if isinstance(module, IntegratedBatchNorm):
            module.sync = True
    if device.type == "cuda":  # torch has no other for layers that are not ours
        model.backbone = convert_sync_batchnorm(model.backbone)


def make_ema(options: TrainOptions, model: Detector) -> ModelEmaV3 | None:
    """The moving average of the weights; its memory grows with the run at first."""
    if not options.model_ema:
        return None
    return ModelEmaV3(model, options.model_ema_decay, use_warmup=True)


def train_loader(
    options: TrainOptions, data: Annotations, model: Detector, processes: int
) -> DataLoader:
    """Shuffled, augmented batches."""
    weights = model.config.weights
    size, antialias, augmentation = weights.image_size, weights.antialias, options.augmentation
    transform = train_transform(*size, antialias=antialias, augmentation=augmentation)
    mix = Mixer(augmentation, *size, antialias)
    # Parts of a photo are cut out to the pixel, and without antialiasing each pixel counts.
    is_whole = augmentation.crop or augmentation.mixes or not antialias
    largest = None if is_whole else augmentation.largest(*size)
    loader = make_loader(
        DetectionDataset(data, transform, options.seed, mix, largest),
        options.batch_size,
        shuffle=True,
        seed=options.seed,
        workers=options.workers,
        multiple=weights.pad_multiple,
        drop_last=len(data.records) >= options.batch_size * processes,
    )
    return shield_workers(loader)
