"""The parts of a run: its model ready to train, the weights of classes, its loader."""

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader

from sepc_zoo.data import Annotations, DetectionDataset, Mixer, make_loader, train_transform
from sepc_zoo.data.images import read_image
from sepc_zoo.data.resilient_loader import shield_workers
from sepc_zoo.data.sampling import repeat_factors
from sepc_zoo.data.transforms.own import OwnTransform
from sepc_zoo.data.transforms.pipeline import Transform
from sepc_zoo.errors import ConfigError
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.options import OptionError
from sepc_zoo.terminal import shorten
from sepc_zoo.training.accelerator import RunAccelerator
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.recipes import Recipe, freeze_stages

MIN_NORM_IMAGES = 4  # images per process, below which batch norms use those of all processes


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
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            name = model.config.backbone.name
            raise ConfigError(f"--grad-checkpointing: {name} has none in timm") from error
    model.to(accelerator.device)


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
    """
    names, given = data.label_names, options.weight_of_class()
    if not options.class_weights:
        return None
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise OptionError("class_weights", f"has {unknown}; the classes are {shorten(names)}")
    if given:
        return torch.tensor([given.get(name, 1.0) for name in names])
    labels = torch.from_numpy(data.records.labels[data.records.iscrowd == 0])
    counts = labels.bincount(minlength=len(names))
    weights = len(labels) / ((counts > 0).sum() * counts)
    return weights.where(counts > 0, 1)


def train_loader(
    options: TrainOptions,
    data: Annotations,
    model: Detector,
    accelerator: RunAccelerator,
    own: Transform | None = None,
) -> DataLoader:
    """Load this process's share of shuffled batches, augmented by a user's ``own`` transform first.

    Raises:
        TransformError: it cannot be sent to the workers.
        ImageError: the images do not have as many channels as the model takes.
    """
    weights = model.config.weights
    size, antialias = weights.image_size, weights.antialias
    first = None if own is None else OwnTransform(own, len(data.label_names))
    if first is not None and options.workers:
        first.check_workers()
    transform = train_transform(*size, antialias=antialias, augmentation=options, first=first)
    # Cropped and mixed images need each pixel, and so do a user's transform and resizing without
    # antialiasing.
    needs_pixels = options.crop or options.mixes or first is not None or not antialias
    dataset = DetectionDataset(
        data,
        transform,
        options.seed,
        Mixer(options, *size, antialias),
        largest=None if needs_pixels else options.largest(*size),
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
