"""Will it fit, and how long will it take? Two steps with the largest batch, nothing written."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from sepc_zoo.data import Batch, collate
from sepc_zoo.data.images import resized_size
from sepc_zoo.training.logging import memory_held
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import set_train_mode
from sepc_zoo.training.setup import Run, prepare
from sepc_zoo.training.trainer import accumulate_gradient

READ_IMAGES = 16  # that are read and augmented for the time it takes


@dataclass(frozen=True)
class Forecast:
    """What a run will need."""

    images: tuple[int, int, int]  # of the largest batch: N, H, W
    boxes: int  # in it
    memory: float  # GiB, of a GPU or of this process
    memory_there: float  # GiB
    step_seconds: float
    read_seconds: float  # per step, by all workers together
    validation_seconds: float  # per validation
    run_seconds: float


def forecast(options: TrainOptions) -> Forecast:
    """Make two steps of a run with its largest images.

    Raises:
        TrainError: they do not fit into the memory.
    """
    run = prepare(options)
    try:
        return measure(run)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"{options.batch_size} images of the largest size do not fit: {error}. Try a smaller "
            "--batch-size with --grad-accum-steps, a smaller --image-size, or --amp bf16"
        ) from error
    finally:
        run.log.bar.close()
        run.accelerator.end_training()


def measure(run: Run) -> Forecast:
    set_train_mode(run.detector, run.recipe.freeze_bn)
    by_size = sorted(range(len(run.train_data.records)), key=lambda i: padded_size(run, [i]))
    count, middle = run.options.batch_size, len(by_size) // 2
    largest = make_batch(run, by_size[-count:], padded_size(run, by_size))
    usual = make_batch(run, by_size[middle : middle + count])
    for _ in range(2):
        step_seconds(run, largest)
    memory = memory_held(run.accelerator.device)
    step_seconds(run, usual)  # what is done once for a new size
    step = step_seconds(run, usual)
    read = read_seconds(run) * count * run.options.grad_accum_steps / max(1, run.options.workers)
    images = math.ceil(len(run.val_data.records) / run.accelerator.num_processes)
    validation = images * validation_seconds(run, usual)
    validations = max(1, run.epochs // run.options.val_interval)
    device = run.accelerator.device
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Forecast(
        images=(len(largest.images), largest.images.shape[2], largest.images.shape[3]),
        boxes=sum(len(target["boxes"]) for target in largest.targets),
        memory=memory,
        memory_there=(there or psutil.virtual_memory().total) / 2**30,
        step_seconds=step,
        read_seconds=read,
        validation_seconds=validation,
        run_seconds=run.total_steps * max(step, read) + validations * validation,
    )


def padded_size(run: Run, indices: Sequence[int]) -> tuple[int, int]:
    """The height and width that a batch of these photos can reach."""
    largest = run.options.augmentation.largest(*run.detector.config.weights.image_size)
    resized = [resized_size(*run.train_data.records[i].size, *largest) for i in indices]
    return max(height for height, _ in resized), max(width for _, width in resized)


def make_batch(run: Run, indices: Sequence[int], extent: tuple[int, int] = (0, 0)) -> Batch:
    """The batch of some photos on the device of the run, padded to ``extent`` at least."""
    dataset: Any = run.train_loader.loader.dataset
    weights = run.detector.config.weights
    multiple = weights.pad_multiple
    device = run.accelerator.device
    batch = collate([dataset[i] for i in indices], multiple)
    batch = batch.normalized(weights.mean, weights.std, device)
    height, width = batch.images.shape[-2:]
    missing = [
        math.ceil(e / multiple) * multiple - s for e, s in zip(extent, (height, width), strict=True)
    ]
    images = F.pad(batch.images, (0, max(0, missing[1]), 0, max(0, missing[0])))
    return batch._replace(images=images)


def step_seconds(run: Run, batch: Batch) -> float:
    """Of a whole step of the optimizer."""
    start = time.perf_counter()
    accumulate_gradient(run, [batch] * run.options.grad_accum_steps)
    run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.clip_grad)
    run.optimizer.step()
    run.optimizer.zero_grad()
    synchronize(run.accelerator.device)
    return time.perf_counter() - start


@torch.no_grad()
def validation_seconds(run: Run, batch: Batch) -> float:
    """Of a photo's way through the network and to its detections."""
    start = time.perf_counter()
    with run.accelerator.autocast():
        run.detector.eval()
        run.detector.postprocess(run.detector(batch.images), batch.image_sizes)
    synchronize(run.accelerator.device)
    return (time.perf_counter() - start) / len(batch.images)


def read_seconds(run: Run) -> float:
    """To read and augment an image, in this process."""
    dataset: Any = run.train_loader.loader.dataset
    count = min(READ_IMAGES, len(dataset))
    start = time.perf_counter()
    for i in range(count):
        dataset[i]
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
