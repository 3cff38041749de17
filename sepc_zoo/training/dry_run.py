"""Forecast of the memory and the time of a run, from a few steps."""

import gc
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F

from sepc_zoo.data import Batch, collate
from sepc_zoo.data.pixels import resized_size
from sepc_zoo.errors import ConfigError
from sepc_zoo.training.gradients import update_weights
from sepc_zoo.training.logging import used_memory
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import SGD, set_train_mode
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import repeated_classes

resource: ModuleType | None = None
if sys.platform != "win32":
    import resource

NUM_READ = 16  # images that are read and augmented to measure the time
# Limits of --batch-size auto
MEMORY_SHARE = 0.9  # share of the free memory that may be used
MAX_BATCH_SIZE = {"cpu": 16}  # a CPU is no faster with more
MIN_STEPS = 20  # steps in an epoch
FULL = "not fit into the memory"
SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 2  # batches that torch lets each worker prepare
OWN_DESCRIPTORS, WORKER_DESCRIPTORS = 128, 12  # open files of a process, and for each worker
MODEL_FOLDERS, STATES = 2, 2  # best and last; the last state and the one before


class Need(NamedTuple):
    """Something that a run needs, and how much there is."""

    what: str
    needed: float
    available: float
    unit: str
    advice: str  # what to do where it is too little

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    def __str__(self) -> str:
        text = f"{self.what}: about {self.needed:.4g} of {self.available:.4g} {self.unit}"
        return text if self.fits else f"{text}: {self.advice}"


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
    needs: list[Need]  # of memory shared with workers, of descriptors and of the disk


def forecast(options: TrainOptions) -> Forecast:
    """Make steps with the largest and with usual images of a run; writes nothing."""
    return measure(Run(settle_batch_size(options)))


def settle_batch_size(options: TrainOptions) -> TrainOptions:
    """The options with a number for ``batch_size="auto"``."""
    if options.batch_size != "auto":
        return options
    run = Run(replace(options, batch_size=1))
    if run.accelerator.num_processes > 1:
        raise ConfigError(
            "--batch-size auto needs a single process; find the number by --dry-run without a "
            "launcher, and give it to all"
        )
    number, reason = largest_batch_size(run)
    run.log.say(f"batch size: {number}; more would {reason}")
    del run
    release_memory()
    return replace(options, batch_size=number)


def largest_batch_size(run: Run) -> tuple[int, str]:
    """Try steps with the largest images of a run, twice as many each time.

    The next number is tried only if what the last images have added leaves room for it. At least
    ``MIN_STEPS`` steps are left in an epoch.

    Returns:
        The number, and what more images would do.
    """
    device = run.accelerator.device
    of_epoch = max(1, len(run.train_data.records) // MIN_STEPS)
    highest = min(of_epoch, MAX_BATCH_SIZE.get(device.type, of_epoch))
    reason = f"leave fewer than {MIN_STEPS} steps in an epoch"
    if highest < of_epoch:
        reason = "make a CPU no faster"
    set_train_mode(run.detector, run.recipe.freeze_bn)
    fits, before, free = 0, peak_memory(device), free_memory(device)
    while (number := 2 * fits or 1) <= highest:
        try:
            make_step(run, largest_batch(run, number))
        except torch.OutOfMemoryError as error:
            run.optimizer.zero_grad()
            if not fits:
                raise TrainError(f"not even one image fits into the memory: {error}") from error
            reason = FULL
            break
        used = peak_memory(device)
        per_image = (used - before) / (number - fits)
        fits, before = number, used
        if used + number * per_image > MEMORY_SHARE * free:
            reason = FULL
            break
    return fits, reason


def release_memory() -> None:
    """Give memory that nothing refers to back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> float:
    """The highest use of memory in GiB so far, by this process or on its GPU."""
    if device.type == "cuda" or resource is None:
        return used_memory(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def free_memory(device: torch.device) -> float:
    """Memory in GiB that this process may use, with what it holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device)) / 2**30
    return psutil.virtual_memory().available / 2**30 + used_memory(device)


def measure(run: Run) -> Forecast:
    """Measure memory and time of the parts of a run."""
    for note in run.notes:
        run.log.say(note)
    try:
        return _measure(run)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"{run.options.batch_size} images of the largest size do not fit: {error}. Try a "
            "smaller --batch-size with --grad-accum-steps, a smaller --image-size, or --amp bf16"
        ) from error


def _measure(run: Run) -> Forecast:
    options, device = run.options, run.accelerator.device
    dataset: Any = run.train_loader.loader.dataset
    set_train_mode(run.detector, run.recipe.freeze_bn)
    largest = largest_batch(run, options.images_per_pass)
    for _ in range(2):
        make_step(run, largest)
    memory = peak_memory(device)
    middle = len(dataset) // 2
    usual = make_batch(run, images_by_size(run)[middle : middle + options.images_per_pass])
    make_step(run, usual)  # warms up: some work is done once for each new size
    step = seconds(lambda: make_step(run, usual), device)
    detection = seconds(lambda: detect(run, usual), device) / len(usual.images)
    first = range(min(NUM_READ, len(dataset)))
    read = seconds(lambda: [dataset[i] for i in first], device) / len(first)
    read *= options.images_per_pass * options.grad_accum_steps / max(1, options.workers)
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
        needs=list_needs(run),
    )


def augmented_sizes(run: Run) -> list[tuple[int, int]]:
    """The maximum height and width of each image after its augmentation."""
    bounds = run.options.largest(*run.detector.config.weights.image_size)
    return [resized_size(h, w, *bounds) for h, w in run.train_data.records.sizes.tolist()]


def images_by_size(run: Run) -> list[int]:
    sizes = augmented_sizes(run)
    return sorted(range(len(sizes)), key=sizes.__getitem__)


def largest_batch(run: Run, number: int) -> Batch:
    """A batch of the largest images, padded to the largest height and width of any."""
    height, width = (max(sides) for sides in zip(*augmented_sizes(run), strict=True))
    return make_batch(run, images_by_size(run)[-number:], (height, width))


def make_batch(run: Run, indices: Sequence[int], min_size: tuple[int, int] = (0, 0)) -> Batch:
    """Make a batch of some images on the device of the run, of at least a height and width."""
    dataset: Any = run.train_loader.loader.dataset
    weights = run.detector.config.weights
    batch = collate([dataset[i] for i in indices], weights.pad_multiple)
    batch = batch.normalized(weights.mean, weights.std, run.accelerator.device)
    bottom, right = (
        max(0, math.ceil(side / weights.pad_multiple) * weights.pad_multiple - own)
        for side, own in zip(min_size, batch.images.shape[-2:], strict=True)
    )
    return batch._replace(images=F.pad(batch.images, (0, right, 0, bottom)))


def make_step(run: Run, batch: Batch) -> None:
    """Make a step of the optimizer with the same batch in all backward passes."""
    update_weights(run, [batch] * run.options.grad_accum_steps)


@torch.no_grad()
def detect(run: Run, batch: Batch) -> None:
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


def list_needs(run: Run) -> list[Need]:
    """Estimate what a run needs, before its first step."""
    return [*shared_memory(run), *descriptors(run), disk(run)]


def shared_memory(run: Run) -> list[Need]:
    """The batches on their way from the workers of all processes of this machine."""
    options = run.options
    if not SHARED_MEMORY.is_dir() or not options.workers:
        return []
    config = run.detector.config
    short, long = options.largest(*config.weights.image_size)
    image = config.backbone.in_chans * math.ceil(short) * math.ceil(long)
    batch = options.images_per_pass * image
    batches = options.workers * BATCHES_AHEAD * run.accelerator.num_processes
    advice = "batches that do not fit are copied, which is slower; in Docker: --shm-size"
    free = shutil.disk_usage(SHARED_MEMORY).free
    return [Need("shared memory", batch * batches / 1e6, free / 1e6, "MB free", advice)]


def descriptors(run: Run) -> list[Need]:
    """The files that a process has open: each worker has pipes, each batch ahead one file."""
    if resource is None:
        return []
    needed = OWN_DESCRIPTORS + run.options.workers * (WORKER_DESCRIPTORS + BATCHES_AHEAD)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = math.inf if limit == resource.RLIM_INFINITY else limit
    return [Need("open files", needed, available, "allowed", "raise the limit: ulimit -n 4096")]


def disk(run: Run) -> Need:
    """States and model folders, and a new one beside the old ones while it is written."""
    model = sum(value.nbytes for value in run.detector.state_dict().values())
    trained = sum(p.nbytes for p in run.detector.parameters() if p.requires_grad)
    moments = trained * (1 if run.recipe.opt in SGD else 2)
    state = model * (1 + bool(run.options.model_ema)) + moments
    needed = STATES * state + MODEL_FOLDERS * model + model
    folder = next(p for p in (run.output.absolute(), *run.output.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    return Need("disk", needed / 1e6, free / 1e6, "MB free", f"free some space in {folder}")
