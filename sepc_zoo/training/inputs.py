"""The data and the model of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace as replace_entries

from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.checkpoints.sources import find_model
from sepc_zoo.config import DetectorConfig, config_from_json, override
from sepc_zoo.data import Annotations
from sepc_zoo.data.annotations import build_annotations
from sepc_zoo.data.listing import Listing, unique_ids
from sepc_zoo.data.sharing import read_once
from sepc_zoo.data.splitting import SPLIT_FILE, divide
from sepc_zoo.errors import ConfigError
from sepc_zoo.factory import build, create_model, load_backbone
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import LOCAL_PREFIX
from sepc_zoo.terminal import quoted, shorten
from sepc_zoo.training.advice import fitted_anchors
from sepc_zoo.training.checkpoint import ResumeError
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.run_folder import MODEL_FILE


class Inputs(NamedTuple):
    """The data and the model of a run."""

    train: Annotations
    val: Annotations
    model: Detector
    notes: list[str]  # lines about the data that the user should read


def read_inputs(options: TrainOptions, resume: bool) -> Inputs:
    """Read both splits, and build the model for the classes of the training split.

    Raises:
        DataError, TrainError, ResumeError: with all that is wrong with a split or the run.
    """
    output = Path(options.output)
    known = read_model_file(output / MODEL_FILE) if resume else None
    is_remembered = resume and (output / SPLIT_FILE).is_file()
    how = options.drop_bad_boxes, options.skip_bad_images
    to_validate: list[Listing] = []  # filled by ``read_train``, in the process that reads

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
        data = build_annotations(division.train, known.label_names if known else None, *how)
        return replace(data, note=division.note)

    train = read_once(read_train)
    check_split(options.data, options.train_split, train)
    model = build(known) if known else build_model(options, train)
    names = model.config.label_names
    unseen = [None] * (len(names) - len(train.label_names))
    train = replace(train, label_names=names, category_ids=(*train.category_ids, *unseen))
    val = read_once(lambda: build_annotations(to_validate.pop(), names, *how))
    check_split(options.data, options.val_split, val)
    notes = [train.note] if train.note else []
    if not (train.records.iscrowd == 0).any():
        notes.append(f"warning: no box of {options.train_split!r} can be learned")
    if not (val.records.iscrowd == 0).any():
        notes.append(
            f"warning: no box of {options.val_split!r} can be counted: AP is unknown (-1), the "
            "last model is taken for the best, and nothing stops early"
        )
    return Inputs(train, val, model, notes)


def check_split(folders: Sequence[str], split: str, data: Annotations) -> None:
    """Refuse a split without images or classes."""
    lacks = "images" if not data.records else "classes" if not data.label_names else None
    if lacks is not None:
        hint = "; label some images first, or name the classes" * (lacks == "classes")
        raise TrainError(f"split {split!r} of {', '.join(folders)} has no {lacks}{hint}")


def read_model_file(file: Path) -> DetectorConfig:
    """Read the config of a run's model."""
    try:
        return config_from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ConfigError is a ValueError
        raise ResumeError(
            f"{file} is needed to resume the run, but is no config of a model: {error}. Start a "
            f"new run, perhaps from --model {quoted(file.parent / 'last')}"
        ) from error


def build_model(options: TrainOptions, data: Annotations) -> Detector:
    """Build the model for the classes of the data, with the input that the options ask for."""
    classes: Mapping[str, int | None]
    classes = dict(zip(data.label_names, data.category_ids, strict=True))
    if options.keep_classes:
        classes = with_old_classes(options, classes)
    asked = {name: getattr(options, name) for name in ("image_size", "mean", "std")}
    asked["keep_ratio"] = True  # as training resizes images
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
    dataset = " + ".join(Path(folder).resolve().name for folder in options.data)
    model.config = override(model.config, {"weights": {"dataset": dataset}})
    if options.auto_anchors:
        anchors = fitted_anchors(options, model.config, data)
        model.config = replace_entries(model.config, anchors=anchors)
    if options.backbone_checkpoint is not None:
        load_backbone(model, options.backbone_checkpoint)
    return model


def with_old_classes(options: TrainOptions, classes: Mapping[str, int | None]) -> dict[str, int]:
    """The classes of the data and behind them the others of the trained model, with unique ids."""
    folder = find_model(options.model, options.pretrained)
    if folder is None:
        raise ConfigError("--keep-classes needs a trained model to start from: --finetune MODEL")
    old = read_config(folder)
    if old.method.head != "dense":
        raise ConfigError(
            f"--keep-classes: {old.method.name} takes what is not labelled for background; use a "
            "one-stage detector, or label the old classes too"
        )
    others = dict(zip(old.label_names, old.category_ids, strict=True))
    return unique_ids({**classes, **others, **classes})  # the ids of the data stay


def class_changes(options: TrainOptions, label_names: Sequence[str]) -> list[str]:
    """Lines on the classes that the weights to start from know, and on those new to them."""
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
