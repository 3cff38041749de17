"""Options as keyword arguments, for type checkers; made by tests/helpers/keywords.py."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from accelerate.tracking import GeneralTracker

Source = str | os.PathLike[str]

class TrainKeywords(TypedDict, total=False):
    """The options of ``TrainOptions``."""

    data: Source | Sequence[Source]
    drop_bad_boxes: bool
    skip_bad_images: bool
    val_fraction: float | None
    split_seed: int
    split_by: Source | None
    format: Literal["coco", "voc", "yolo", "hf"] | None
    train_split: str
    val_split: str
    repeat_factor: float
    image_size: Sequence[int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    model: Source
    model_kwargs: Mapping[str, Any]
    pretrained: bool
    pretrained_backbone: bool
    backbone_checkpoint: Source | None
    backbone_kwargs: Mapping[str, Any]
    freeze_stages: int | None
    freeze: Literal["neck"] | None
    keep_classes: bool
    freeze_bn: bool | None
    auto_anchors: bool
    sync_bn: bool | None
    recipe: Literal["auto", "paper", "small", "strong"]
    epochs: int | None
    max_steps: int | None
    patience: int | None
    batch_size: int | Literal["auto"]
    grad_accum_steps: int
    opt: str | None
    lr: float | None
    weight_decay: float | None
    layer_decay: float | None
    sched: Literal["multistep", "cosine"] | None
    warmup_steps: int | None
    clip_grad: float | None
    model_ema: bool | None
    model_ema_decay: float
    class_weights: str | Sequence[str] | Mapping[str, float]
    hflip: float
    vflip: float
    color_jitter: bool | None
    hue: float
    saturation: float
    brightness: float
    blur: float
    jpeg: float
    degrees: float
    shear: float
    translate: float
    perspective: float
    scale: Sequence[float] | None
    short_sides: Sequence[int]
    crop: float
    mosaic: float | None
    mixup: float
    copy_paste: float
    mix_epochs: int | None
    amp: Literal["bf16", "fp16"] | None
    device: str | None
    workers: int
    channels_last: bool
    compile: bool
    grad_checkpointing: bool
    deterministic: bool
    seed: int
    output: Source
    val_interval: int
    log_interval: int
    save_interval: int
    max_faults: int
    draw_batches: int
    log_with: str | GeneralTracker | Sequence[str | GeneralTracker]

class ValidateKeywords(TypedDict, total=False):
    """The options of ``EvaluationOptions``."""

    no_report: bool
    voc_ap: bool
    bootstrap: int
    seed: int
    frequency_split: str | None
    drop_bad_boxes: bool
    skip_bad_images: bool
    val_fraction: float | None
    split_seed: int
    split_by: Source | None
    format: Literal["coco", "voc", "yolo", "hf"] | None
    amp: Literal["bf16", "fp16"] | None
    device: str | None
    batch_size: int
    workers: int
    tta_flip: bool
    tta_scales: Sequence[float]
    tta_fusion: Literal["nms", "wbf"] | None
    tile: int | None
    overlap: float
    soft_nms: Literal["none", "linear", "gaussian"] | None
