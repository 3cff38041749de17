"""What a run needs of its machine beside the device: shared memory, descriptors, disk."""

import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.training.run import Run

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
    advice: str  # for where it is too little

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    def __str__(self) -> str:
        text = f"{self.what}: about {self.needed:.4g} of {self.available:.4g} {self.unit}"
        return text if self.fits else f"{text}: {self.advice}"


def list_needs(run: Run) -> list[Need]:
    """Estimate what a run needs, before its first step."""
    return [*shared_memory(run), *descriptors(run), disk(run)]


def shared_memory(run: Run) -> list[Need]:
    """The batches on their way from the workers of all processes of this machine."""
    options = run.options
    if not SHARED_MEMORY.is_dir() or not options.workers:
        return []
    short, long = options.augmentation.largest(*run.detector.config.weights.image_size)
    batch = options.images_per_pass * 3 * math.ceil(short) * math.ceil(long)
    batches = options.workers * BATCHES_AHEAD * run.accelerator.num_processes
    advice = "batches that do not fit are copied, which is slower; in Docker: --shm-size"
    free = shutil.disk_usage(SHARED_MEMORY).free
    return [Need("shared memory", batch * batches / 1e6, free / 1e6, "MB free", advice)]


def descriptors(run: Run) -> list[Need]:
    """The files that a process has open: each worker has pipes, each batch ahead one file."""
    if os.name == "nt":
        return []
    import resource

    needed = OWN_DESCRIPTORS + run.options.workers * (WORKER_DESCRIPTORS + BATCHES_AHEAD)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = math.inf if limit == resource.RLIM_INFINITY else limit
    return [Need("open files", needed, available, "allowed", "raise the limit: ulimit -n 4096")]


def disk(run: Run) -> Need:
    """States and model folders, and a new one beside the old ones while it is written."""
    model = sum(value.nbytes for value in run.detector.state_dict().values())
    trained = sum(p.nbytes for p in run.detector.parameters() if p.requires_grad)
    moments = trained * (1 if run.recipe.opt in ("sgd", "momentum") else 2)
    state = model * (1 + bool(run.options.model_ema)) + moments
    needed = STATES * state + MODEL_FOLDERS * model + model
    folder = next(p for p in (run.output.absolute(), *run.output.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    return Need("disk", needed / 1e6, free / 1e6, "MB free", f"free some space in {folder}")
