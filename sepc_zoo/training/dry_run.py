"""Forecast of a run from a few steps: does it fit into the memory, how long will it take?"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from sepc_zoo.data import Batch, collate
from sepc_zoo.data.images import resized_size
from sepc_zoo.training.gradients import accumulate_gradient, clip_and_step
from sepc_zoo.training.logging import used_memory
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import set_train_mode
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import repeated_classes

NUM_READ = 16  # images that are read and augmented to measure the time


@dataclass(frozen=True)
class Forecast:
    """Memory and time that a run will need."""

    images: tuple[int, int, int]  # shape N, H, W of the largest batch
    boxes: int  # number of boxes in that batch
    memory: float  # GiB, of a GPU or of this process
    available_memory: float  # GiB
    step_seconds: float
    read_seconds: float  # per step, by all workers together
    validation_seconds: float  # per validation
    run_seconds: float
    repeated: str  # classes whose images are repeated; empty: none were asked for


def forecast(options: TrainOptions) -> Forecast:
    """Make steps with the largest and with usual images of a run; writes nothing.

    Raises:
        TrainError: the largest batch does not fit into the memory.
    """
    run = Run(options)
    try:
        return measure(run)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"{options.batch_size} images of the largest size do not fit: {error}. Try a smaller "
            "--batch-size with --grad-accum-steps, a smaller --image-size, or --amp bf16"
        ) from error
    finally:
        run.log.bar.close()


def measure(run: Run) -> Forecast:
    """Measure memory and time of the parts of a run."""
    options, device = run.options, run.accelerator.device
    dataset: Any = run.train_loader.loader.dataset
    set_train_mode(run.detector, run.recipe.freeze_bn)
    sizes = [augmented_size(run, record.size) for record in run.train_data.records]
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    middle = len(by_size) // 2
    largest_sides = [max(sides) for sides in zip(*sizes, strict=True)]
    largest = make_batch(run, by_size[-options.batch_size :], padded_to=largest_sides)
    usual = make_batch(run, by_size[middle : middle + options.batch_size])
    for _ in range(2):
        make_step(run, largest)
    memory = used_memory(device)
    make_step(run, usual)  # warms up: some work is done once for each new size
    step = seconds(lambda: make_step(run, usual), device)
    detection = seconds(lambda: detect(run, usual), device) / len(usual.images)
    first = range(min(NUM_READ, len(dataset)))
    read = seconds(lambda: [dataset[i] for i in first], device) / len(first)
    read *= options.batch_size * options.grad_accum_steps / max(1, options.workers)
    images = math.ceil(len(run.val_data.records) / run.accelerator.num_processes)
    validation = images * detection
    num_validations = max(1, run.num_epochs // options.val_interval)
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = psutil.virtual_memory().total
    return Forecast(
        images=(len(largest.images), *largest.images.shape[-2:]),
        boxes=sum(len(target["boxes"]) for target in largest.targets),
        memory=memory,
        available_memory=available / 2**30,
        step_seconds=step,
        read_seconds=read,
        validation_seconds=validation,
        run_seconds=run.num_steps * max(step, read) + num_validations * validation,
        repeated=repeated_classes(run),
    )


def augmented_size(run: Run, size: tuple[int, int]) -> tuple[int, int]:
    """The maximum height and width of an image of this size after its augmentation."""
    bounds = run.options.augmentation.largest(*run.detector.config.weights.image_size)
    return resized_size(*size, *bounds)


def make_batch(run: Run, indices: Sequence[int], padded_to: Sequence[int] = (0, 0)) -> Batch:
    """Make a batch of some images on the device of the run, padded to a height and width."""
    dataset: Any = run.train_loader.loader.dataset
    weights = run.detector.config.weights
    multiple = weights.pad_multiple
    batch = collate([dataset[i] for i in indices], multiple)
    batch = batch.normalized(weights.mean, weights.std, run.accelerator.device)
    bottom, right = (
        max(0, math.ceil(target / multiple) * multiple - side)
        for target, side in zip(padded_to, batch.images.shape[-2:], strict=True)
    )
    return batch._replace(images=F.pad(batch.images, (0, right, 0, bottom)))


def make_step(run: Run, batch: Batch) -> None:
    """Make a step of the optimizer with the same batch in all backward passes."""
    accumulate_gradient(run, [batch] * run.options.grad_accum_steps)
    amp, max_norm = run.options.amp, run.recipe.clip_grad
    clip_and_step(run.model, run.optimizer, run.scaler, max_norm, amp)
    run.optimizer.zero_grad()


@torch.no_grad()
def detect(run: Run, batch: Batch) -> None:
    """Find the objects in a batch."""
    with run.accelerator.autocast():
        run.detector.eval()
        run.detector.postprocess(run.detector(batch.images), batch.image_sizes)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, with the work that it gives to the device."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start
