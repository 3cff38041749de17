"""From options to the data, the model and the recipe of a run."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec.structs import replace
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader

from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.checkpoints.sources import find_model
from sepc_zoo.config import DetectorConfig, config_from_json, override
from sepc_zoo.data import (
    Annotations,
    DetectionDataset,
    Mixer,
    make_loader,
    train_transform,
)
from sepc_zoo.data.annotations import build_annotations
from sepc_zoo.data.images import read_image
from sepc_zoo.data.listing import Listing, unique_ids
from sepc_zoo.data.resilient_loader import shield_workers
from sepc_zoo.data.sampling import repeat_factors
from sepc_zoo.data.sharing import read_once
from sepc_zoo.data.splitting import SPLIT_FILE, divide
from sepc_zoo.data.transforms.own import OwnTransform
from sepc_zoo.data.transforms.pipeline import Transform
from sepc_zoo.errors import ConfigError
from sepc_zoo.factory import build, create_model, load_backbone
from sepc_zoo.files import TEMPORARY_NAME
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.options import OptionError
from sepc_zoo.registry import LOCAL_PREFIX
from sepc_zoo.training.accelerator import RunAccelerator
from sepc_zoo.training.advice import fitted_anchors
from sepc_zoo.training.callback import Callback
from sepc_zoo.training.callbacks import (
    DrawBatches,
    DrawSamples,
    EarlyStopping,
    MovingAverage,
    WriteReport,
)
from sepc_zoo.training.checkpoint import ResumeError, is_saved
from sepc_zoo.training.logging import LOG_FILE
from sepc_zoo.training.options import OPTIONS_FILE, TrainError, TrainOptions, read_options
from sepc_zoo.training.recipes import Recipe, freeze_stages
from sepc_zoo.training.resilience.faults import FAULTS_FILE, SKIPPED_FOLDER
from sepc_zoo.training.resilience.lock import LOCK_FILE, OWNER_FILE

MODEL_FILE = "model.json"  # config of the run's model, so that resuming needs no other weights
# Files and folders that a run writes before its first state.
FIRST_FILES = {OPTIONS_FILE, MODEL_FILE, SPLIT_FILE, LOG_FILE, FAULTS_FILE}
FIRST_NAMES = FIRST_FILES | {SKIPPED_FOLDER, "batches", "tracking"}
MIN_NORM_IMAGES = 4  # images per process, below which batch norms use those of all processes
MAX_NAMES = 8  # classes that a message lists


def check_output(output: Path, resume: bool) -> None:
    """Refuse to overwrite a run or other files, and to resume a run that does not exist.

    A run that ended before its first save may be started again.
    """
    if resume:
        if not is_saved(output):
            raise ResumeError(
                f"{output} has no state to resume from; start it again without --resume"
            )
        return
    if is_saved(output):
        raise TrainError(
            f"{output} holds a run: go on with --resume {output}, or choose another --output"
        )
    if not output.is_dir():
        return
    there = {p.name for p in output.iterdir() if not TEMPORARY_NAME.fullmatch(p.name)}
    there -= {LOCK_FILE, OWNER_FILE}
    others = sorted(there - FIRST_NAMES)
    if there and not others:
        try:
            read_options(output)
        except TrainError:
            others = sorted(there)
    if others:
        raise TrainError(
            f"{output} is not empty: {shorten(others)} would be mixed with the run; choose another "
            "--output"
        )


class Inputs(NamedTuple):
    """The data and the model of a run."""

    train: Annotations
    val: Annotations
    model: Detector
    notes: list[str]  # lines about the data that the user should read
    is_divided: bool  # whether the splits are not the data set's own, and must be remembered


def read_inputs(options: TrainOptions, resume: bool) -> Inputs:
    """Read both splits, and build the model for the classes of the training split.

    Raises:
        DataError, TrainError, ResumeError: with all that is wrong with a split or the run.
    """
    output = Path(options.output)
    known = read_model_file(output / MODEL_FILE) if resume else None
    names = known.label_names if known else None
    is_remembered = resume and (output / SPLIT_FILE).is_file()
    how = options.drop_bad_boxes, options.skip_bad_images
    to_validate: list[Listing] = []  # in the process that reads

    def read_train() -> Annotations:
        division = divide(
            options.data,
            options.train_split,
            options.val_split,
            format=options.format,
            fraction=options.val_fraction,
            seed=options.split_seed,
            file=output / SPLIT_FILE if is_remembered else options.split_by,
            whole=options.split_by is not None,
        )
        to_validate.append(division.val)
        data = build_annotations(division.train, names, *how)
        return dataclasses.replace(data, note=division.note)

    train = read_once(read_train)
    model = build(known) if known else build_model(options, train)
    unseen = len(model.config.label_names) - len(train.label_names)
    train = dataclasses.replace(
        train,
        label_names=model.config.label_names,
        category_ids=(*train.category_ids, *[None] * unseen),
    )
    all_names = model.config.label_names
    val = read_once(lambda: build_annotations(to_validate.pop(), all_names, *how))
    for split, data in ((options.train_split, train), (options.val_split, val)):
        if not data.records:
            raise TrainError(f"split {split!r} of {', '.join(options.data)} has no images")
    notes = [train.note] if train.note else []
    if not count_objects(train):
        notes.append(f"warning: no box of {options.train_split!r} can be learned")
    if not count_objects(val):
        notes.append(
            f"warning: no box of {options.val_split!r} can be counted: AP is unknown (-1), the "
            "last model is taken for the best, and nothing stops early"
        )
    return Inputs(train, val, model, notes, bool(train.note))


def count_objects(data: Annotations) -> int:
    """Count the boxes that are learned and counted: all but crowds."""
    return int((data.records.iscrowd == 0).sum())


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
    asked["keep_ratio"] = True  # images of training keep theirs
    classes = (
        unite_with_old(options, data)
        if options.keep_classes
        else dict(zip(data.label_names, data.category_ids, strict=True))
    )
    model = create_model(
        options.model,
        options.pretrained,
        label_names=[*classes],
        category_ids=[*classes.values()],
        inclusive_boxes=False,  # the targets are continuous, so the predictions will be
        pretrained_backbone=options.pretrained_backbone,
        backbone_kwargs=options.backbone_kwargs,
        weights={name: value for name, value in asked.items() if value is not None},
        **options.model_kwargs,
    )
    model.config = override(model.config, {"weights": {"dataset": " + ".join(folders)}})
    if options.auto_anchors:
        model.config = replace(model.config, anchors=fitted_anchors(options, model.config, data))
    if options.backbone_checkpoint is not None:
        load_backbone(model, options.backbone_checkpoint)
    return model


def unite_with_old(options: TrainOptions, data: Annotations) -> dict[str, int]:
    """The classes of the data and behind them the others of the trained model, with unique ids.

    Raises:
        ConfigError: the model has not learned, or its classes share a softmax.
    """
    folder = find_model(options.model, options.pretrained)
    if folder is None:
        raise ConfigError("--keep-classes needs a trained model to start from: --finetune MODEL")
    old = read_config(folder)
    if old.method.head != "dense":
        raise ConfigError(
            f"--keep-classes: {old.method.name} takes what is not labelled for background; use a "
            "one-stage detector, or label the old classes too"
        )
    known = dict(zip(old.label_names, old.category_ids, strict=True))
    return unique_ids(
        {
            **dict(zip(data.label_names, data.category_ids, strict=True)),
            **{name: number for name, number in known.items() if name not in data.label_names},
        }
    )


def unseen_classes(options: TrainOptions, data: Annotations) -> list[int]:
    """Labels that are kept from the trained model, and of which the data has no class."""
    ids = data.category_ids if options.keep_classes else ()
    return [label for label, category_id in enumerate(ids) if category_id is None]


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


def prepare_model(
    options: TrainOptions, recipe: Recipe, model: Detector, accelerator: RunAccelerator
) -> None:
    """Freeze layers, choose batch norms and memory layout, and move the model to its device."""
    freeze_stages(model.backbone, recipe.freeze_stages)
    if options.freeze == "neck":
        for part in (model.backbone, model.fpn, model.neck):
            part.requires_grad_(False)
    sync_batch_norms(options, model, accelerator)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.grad_checkpointing:
        enable_grad_checkpointing(model)
    model.to(accelerator.device)


def enable_grad_checkpointing(model: Detector) -> None:
    """Store no activations inside of the model's blocks; compute them again for the gradient.

    Raises:
        ConfigError: timm cannot do it for this backbone.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        name = model.config.backbone.name
        raise ConfigError(f"--grad-checkpointing: {name} has none in timm") from error


def sync_batch_norms(options: TrainOptions, model: Detector, accelerator: RunAccelerator) -> None:
    """Let batch norms see the images of all processes, where that is asked for or needed."""
    norms = [module for module in model.modules() if isinstance(module, IntegratedBatchNorm)]
    is_needed = bool(norms) and options.images_per_pass < MIN_NORM_IMAGES
    is_wanted = is_needed if options.sync_bn is None else options.sync_bn
    if accelerator.num_processes == 1 or not is_wanted:
        return
    for norm in norms:
        norm.sync = True
    if accelerator.device.type == "cuda":  # torch has no synchronized batch norm for the CPU
        model.backbone = convert_sync_batchnorm(model.backbone)


def class_weights(options: TrainOptions, data: Annotations) -> Tensor | None:
    """The weight ``(K,)`` of each class in the loss; None: all are 1.

    Balanced weights are boxes over (classes x boxes of the class), as scikit-learn has them.

    Raises:
        OptionError: a class is not among those of the data.
    """
    names, given = data.label_names, options.weight_of_class()
    if not options.class_weights:
        return None
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise OptionError("class_weights", f"has {unknown}; the classes are {shorten(names)}")
    if given:
        return torch.tensor([given.get(name, 1.0) for name in names])
    labels = torch.cat([record.labels[~record.iscrowd.bool()] for record in data.records])
    counts = labels.bincount(minlength=len(names))
    weights = len(labels) / ((counts > 0).sum() * counts)
    return weights.where(counts > 0, 1)


def make_callbacks(options: TrainOptions, model: Detector) -> tuple[list[Callback], Detector]:
    """Make the callbacks that the options ask for; also return the model to validate and save."""
    callbacks: list[Callback] = [DrawSamples(), DrawBatches(options.draw_batches), WriteReport()]
    if options.patience is not None:
        callbacks.append(EarlyStopping(options.patience))
    if not options.model_ema:
        return callbacks, model
    average = MovingAverage(model, options.model_ema_decay)
    return [*callbacks, average], average.ema.module


def train_loader(
    options: TrainOptions,
    data: Annotations,
    model: Detector,
    accelerator: RunAccelerator,
    own: Transform | None = None,
) -> DataLoader:
    """Load this process's share of shuffled, augmented batches.

    Args:
        own: a user's transform.

    Raises:
        TransformError: it cannot be sent to the workers.
        ImageError: the images do not have as many channels as the model takes.
    """
    weights = model.config.weights
    size, antialias, augmentation = weights.image_size, weights.antialias, options.augmentation
    first = None if own is None else OwnTransform(own, len(data.label_names))
    if first is not None and options.workers:
        first.check_workers()
    transform = train_transform(*size, antialias=antialias, augmentation=augmentation, first=first)
    # Cropped and mixed images need each pixel, and so do a user's transform and resizing without
    # antialiasing.
    needs_pixels = augmentation.crop or augmentation.mixes or first is not None or not antialias
    dataset = DetectionDataset(
        data,
        transform,
        options.seed,
        Mixer(augmentation, *size, antialias),
        largest=None if needs_pixels else augmentation.largest(*size),
        channels=len(weights.mean),
        factors=repeat_factors(data, options.repeat_factor)[1] if options.repeat_factor else None,
    )
    file = data.records[0].path
    if dataset.channels != 3 or file.suffix.lower() in (".tif", ".tiff"):
        read_image(file, channels=dataset.channels)
    loader = make_loader(
        dataset,
        options.images_per_pass,
        shuffle=True,
        seed=options.seed,
        workers=options.workers,
        multiple=weights.pad_multiple,
        drop_last=len(dataset) >= options.images_per_pass * accelerator.num_processes,
    )
    # Only images go to the device, in ``Batch.normalized``.
    return accelerator.prepare(shield_workers(loader), device_placement=[False])
