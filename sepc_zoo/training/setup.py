"""From options to a run that can start."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.checkpoints.hub import LOCAL_PREFIX
from sepc_zoo.checkpoints.sources import find_model
from sepc_zoo.config import DetectorConfig, config_from_json, config_to_json, override
from sepc_zoo.data import (
    Annotations,
    DetectionDataset,
    Mixer,
    make_loader,
    read_data,
    train_transform,
)
from sepc_zoo.data.resilient_loader import ResilientLoader, shield_workers
from sepc_zoo.errors import ConfigError
from sepc_zoo.evaluation.validate import validation_loader
from sepc_zoo.factory import build, create_model, load_backbone
from sepc_zoo.files import remove_temporary, write_json
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.training.accelerator import RunAccelerator, make_accelerator, make_deterministic
from sepc_zoo.training.callbacks import (
    Callback,
    DrawBatches,
    DrawSamples,
    EarlyStopping,
    MovingAverage,
)
from sepc_zoo.training.checkpoint import Progress, ResumeError, load_state, saved_state
from sepc_zoo.training.gradients import make_scaler
from sepc_zoo.training.logging import Log, list_dropped
from sepc_zoo.training.options import TrainError, TrainOptions, write_options
from sepc_zoo.training.recipes import (
    Recipe,
    default_recipe,
    freeze_stages,
    make_optimizer,
    make_scheduler,
    scaled_lr,
)
from sepc_zoo.training.resilience.faults import SKIPPED_FOLDER, Faults
from sepc_zoo.training.resilience.signals import Interrupt
from sepc_zoo.training.run import Run

MODEL_FILE = "model.json"  # config of the run's model, so that resuming needs no other weights
MIN_NORM_IMAGES = 4  # of a process, for good statistics of its batch norms
MAX_NAMES = 8  # classes that a message lists


@dataclass(frozen=True)
class Inputs:
    """The data of a run, and the model for its classes."""

    train: Annotations
    val: Annotations
    model: Detector


def prepare(options: TrainOptions, resume: bool = False, callbacks: Sequence[Callback] = ()) -> Run:
    """Read the data, build the model and all other parts of a run; writes nothing.

    Raises:
        ConfigError, DataError, HubError, TrainError: with all that is wrong.
    """
    output = Path(options.output)
    check_output(output, resume)
    if options.deterministic:
        make_deterministic()
    accelerator = make_accelerator(options.amp, options.cpu, options.log_with, output)
    set_seed(options.seed)
    inputs = read_inputs(options, resume)
    recipe = choose_recipe(options, inputs.model.config)
    model = prepare_model(options, recipe, inputs.model, accelerator)

    loader = train_loader(options, inputs.train, model, accelerator)
    val = validation_loader(inputs.val, model, options.batch_size, options.workers)
    steps_per_epoch = math.ceil(len(loader) / options.grad_accum_steps)
    num_steps = options.max_steps or recipe.epochs * steps_per_epoch

    images = options.batch_size * options.grad_accum_steps * accelerator.num_processes
    lr = scaled_lr(recipe, images) if options.lr is None else options.lr
    own_callbacks, evaluated = make_callbacks(options, model)
    optimizer = make_optimizer(model, recipe, lr)
    scheduler = make_scheduler(optimizer, recipe, lr, num_steps)
    wrapped = DistributedDataParallel(model) if accelerator.num_processes > 1 else model
    if options.compile:
        model.compile()
    set_seed(options.seed, device_specific=True)  # processes drop different paths

    log = Log(accelerator, output)
    faults = Faults(output, options.max_faults, log)
    handlers = faults.add_dead_worker, faults.add_unreadable
    run = Run(
        options=options,
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        detector=model,
        model=wrapped,
        evaluated=evaluated,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=make_scaler(options.amp, accelerator.device),
        lr=lr,
        train_data=inputs.train,
        val_data=inputs.val,
        train_loader=ResilientLoader(loader, *handlers),
        val_loader=ResilientLoader(val, *handlers),
        images_per_step=images,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        num_epochs=math.ceil(num_steps / steps_per_epoch),
        progress=Progress(images=len(inputs.train.records), batches=len(loader)),
        log=log,
        faults=faults,
        interrupt=Interrupt(),
        callbacks=[*own_callbacks, *callbacks],
    )
    if resume:
        load_state(run.stateful_parts(), output)
        run.saved_step = run.progress.step
    return run


def check_output(output: Path, resume: bool) -> None:
    """Refuse to overwrite a run, and to resume one that does not exist."""
    state = saved_state(output)
    if resume and state is None:
        raise ResumeError(f"{output} has no state to resume from; start it anew without --resume")
    if state and not resume:
        raise TrainError(
            f"{output} holds a run: go on with --resume {output}, or choose another --output"
        )


def start(run: Run, resume: bool) -> None:
    """Write the first files of a run, remove those of steps that will be repeated."""
    if run.accelerator.is_main_process:
        remove_temporary(run.output)
        if not resume:
            write_options(run.options)
            write_json(run.output / MODEL_FILE, config_to_json(run.detector.config))
            # A run that ended before its first save may have left these.
            shutil.rmtree(run.output / SKIPPED_FOLDER, ignore_errors=True)
            for file in (run.log.steps, run.log.metrics, run.faults.file):
                file.path.unlink(missing_ok=True)
    run.faults.step = run.progress.step
    run.faults.file.keep(lambda row: int(row["step"]) <= run.progress.step)
    run.log.begin(run.progress.step, run.progress.epoch, run.num_steps)
    # TensorBoard drops the steps that will be repeated.
    purge = {"tensorboard": {"purge_step": run.progress.step + 1}}
    run.accelerator.init_trackers("tracking", init_kwargs=purge)
    news = [] if resume else class_changes(run.options, run.detector.config.label_names)
    for line in (*list_dropped(run.train_data), *list_dropped(run.val_data), *news):
        run.log.say(line)


def read_inputs(options: TrainOptions, resume: bool) -> Inputs:
    """Read both splits, and build the model for the classes of the training split.

    Raises:
        DataError, TrainError, ResumeError: with all that is wrong with a split or the run.
    """
    known = read_model_file(Path(options.output) / MODEL_FILE) if resume else None
    names = known.label_names if known else None
    how: dict[str, Any] = {"drop_bad_boxes": options.drop_bad_boxes, "format": options.format}
    train = read_data(options.data, options.train_split, names, **how)
    model = build(known) if known else build_model(options, train)
    val = read_data(options.data, options.val_split, model.config.label_names, **how)
    for split, data in ((options.train_split, train), (options.val_split, val)):
        if not data.records:
            raise TrainError(f"split {split!r} of {', '.join(options.data)} has no images")
    return Inputs(train, val, model)


def read_model_file(file: Path) -> DetectorConfig:
    """Read the config of a run's model.

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
    """Build the model for the classes of the data, with the input that the options ask for."""
    folders = [Path(folder).resolve().name for folder in options.data]
    asked = {name: getattr(options, name) for name in ("image_size", "mean", "std")}
    asked["keep_ratio"] = True  # as the images of training do
    model = create_model(
        options.model,
        options.pretrained,
        label_names=data.label_names,
        category_ids=data.category_ids,
        inclusive_boxes=False,  # the targets are continuous, so the predictions will be
        pretrained_backbone=options.pretrained_backbone,
        backbone_kwargs=options.backbone_kwargs,
        weights={name: value for name, value in asked.items() if value is not None},
        **options.model_kwargs,
    )
    model.config = override(model.config, {"weights": {"dataset": " + ".join(folders)}})
    if options.backbone_checkpoint is not None:
        load_backbone(model, options.backbone_checkpoint)
    return model


def class_changes(options: TrainOptions, label_names: Sequence[str]) -> list[str]:
    """Which classes of the weights to start from are kept and which are new, one line each.

    Args:
        label_names: the classes of the run.
    """
    folder = find_model(options.model, options.pretrained, local_files_only=True)
    if folder is None:
        return []
    known = {*read_config(folder).label_names}
    kept, new = ([n for n in label_names if (n in known) == is_known] for is_known in (True, False))
    source = options.model.removeprefix(LOCAL_PREFIX)
    return [
        f"classes that keep what {source} has learned: {shorten(kept)}",
        f"classes that are new to it: {shorten(new)}",
    ]


def shorten(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    if not names:
        return "none"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)} ({', '.join(names[:MAX_NAMES])}{more})"


def choose_recipe(options: TrainOptions, config: DetectorConfig) -> Recipe:
    """Apply the options to the model's recipe; a backbone with random weights is not frozen."""
    recipe = default_recipe(config, options.opt)
    if not options.has_learned:
        recipe = replace(recipe, freeze_stages=0, freeze_bn=False)
    names = {field.name for field in fields(Recipe)} - {"batch_size", "lr"}
    asked = {name: getattr(options, name) for name in names}
    return replace(recipe, **{k: v for k, v in asked.items() if v is not None})


def prepare_model(
    options: TrainOptions, recipe: Recipe, model: Detector, accelerator: RunAccelerator
) -> Detector:
    """Freeze layers and choose batch norms and memory layout, on the device of the run."""
    freeze_stages(model.backbone, recipe.freeze_stages)
    if should_sync(options, model, accelerator):
        sync_batch_norm(model, accelerator.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.grad_checkpointing:
        enable_grad_checkpointing(model)
    return model.to(accelerator.device)


def enable_grad_checkpointing(model: Detector) -> None:
    """Store no activations inside of the backbone's blocks; compute them again for the gradient.

    Raises:
        ConfigError: the backbone has no way to do it.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        name = model.config.backbone.name
        raise ConfigError(f"--grad-checkpointing: {name} has none in timm") from error


def should_sync(options: TrainOptions, model: Detector, accelerator: RunAccelerator) -> bool:
    """Whether batch norms take their statistics from the images of all processes."""
    if accelerator.num_processes == 1:
        return False
    has_norm = any(isinstance(module, IntegratedBatchNorm) for module in model.modules())
    is_default = has_norm and options.batch_size < MIN_NORM_IMAGES
    return is_default if options.sync_bn is None else options.sync_bn


def sync_batch_norm(model: Detector, device: torch.device) -> None:
    """Let batch norms of the neck (and the backbone on a GPU) see the images of all processes."""
    for module in model.modules():
        if isinstance(module, IntegratedBatchNorm):
            module.sync = True
    if device.type == "cuda":  # torch has no synchronized batch norm for the CPU
        model.backbone = convert_sync_batchnorm(model.backbone)


def make_callbacks(options: TrainOptions, model: Detector) -> tuple[list[Callback], Detector]:
    """Make the callbacks that the options ask for; also return the model to validate and save."""
    callbacks: list[Callback] = [DrawSamples()]
    evaluated = model
    if options.model_ema:
        average = MovingAverage(model, options.model_ema_decay)
        callbacks.append(average)
        evaluated = average.ema.module
    if options.patience is not None:
        callbacks.append(EarlyStopping(options.patience))
    if options.draw_batches:
        callbacks.append(DrawBatches(options.draw_batches))
    return callbacks, evaluated


def train_loader(
    options: TrainOptions, data: Annotations, model: Detector, accelerator: RunAccelerator
) -> DataLoader:
    """Load this process's share of shuffled, augmented batches."""
    weights = model.config.weights
    size, antialias, augmentation = weights.image_size, weights.antialias, options.augmentation
    transform = train_transform(*size, antialias=antialias, augmentation=augmentation)
    # Cropped and mixed images need each pixel, and so does resizing without antialiasing.
    needs_pixels = augmentation.crop or augmentation.mixes or not antialias
    dataset = DetectionDataset(
        data,
        transform,
        options.seed,
        Mixer(augmentation, *size, antialias),
        largest=None if needs_pixels else augmentation.largest(*size),
    )
    loader = make_loader(
        dataset,
        options.batch_size,
        shuffle=True,
        seed=options.seed,
        workers=options.workers,
        multiple=weights.pad_multiple,
        drop_last=len(dataset) >= options.batch_size * accelerator.num_processes,
    )
    # Only images go to the device, in ``Batch.normalized``.
    return accelerator.prepare(shield_workers(loader), device_placement=[False])
