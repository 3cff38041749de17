"""How fast models are and how much memory they need, each beside the others."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor

from sepc_zoo.evaluation.speed_subjects import Setting, Subject, build_subject
from sepc_zoo.inference.preprocess import plan_resize
from sepc_zoo.training.dry_run import synchronize

WHOLE = ("forward", "detect", "step")
PARTS = ("preprocess", "backbone", "fpn", "neck", "head", "postprocess", "loss")
WARM_UPS = 2
BOXES = 20  # of each made-up image to learn from
WATCH_SECONDS = 0.005  # between two looks at the memory of a process

Key = TypeVar("Key", bound=Hashable)


class Timing(NamedTuple):
    """Of one part of one model, over all rounds."""

    median: float  # seconds
    low: float  # quartiles
    high: float
    ratio: float  # to the first model: the median of the rounds' ratios


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    model: str
    part: str
    setting: Setting
    timing: Timing
    peak_mib: float | None  # None where it was not measured


def compare(
    names: Sequence[str], setting: Setting, parts: Sequence[str], rounds: int, memory: bool
) -> list[Result]:
    """Time parts of some models, one after the other in each round.

    Args:
        names: of models; see ``build_subject``.
        parts: of ``WHOLE`` and ``PARTS``. ``forward`` is the network, ``detect`` the network and
            the way to detections, ``step`` a training step with SGD, ``loss`` that of given
            predictions and its gradient.
        memory: the peak of ``detect`` and ``step``, on the CPU in a process of its own.

    Raises:
        ConfigError: a name means nothing that can be measured.
    """
    subjects = {name: build_subject(name, setting) for name in names}
    results = []
    for part in sorted(parts, key=lambda part: part == "step"):  # which changes the models
        able = {n: s for n, s in subjects.items() if part in WHOLE or s.detector is not None}
        calls = {name: prepare(subject, part, setting) for name, subject in able.items()}
        timings = alternate(calls, rounds, setting.device)
        calls.clear()
        for name, timing in timings.items():
            peak = None
            if memory and part in ("detect", "step"):
                peak = peak_memory(name, part, setting)
            results.append(Result(name, part, setting, timing, peak))
    return results


def alternate(
    calls: Mapping[Key, Callable[[], object]], rounds: int, device: str
) -> dict[Key, Timing]:
    """Time functions in turn, so that whatever else goes on meets all of them alike."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(WARM_UPS + rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            synchronize(torch.device(device))
            if turn >= WARM_UPS:
                seconds[key].append(time.perf_counter() - start)
    first = next(iter(seconds.values()), [])
    return {key: _timing(taken, first) for key, taken in seconds.items()}


def _timing(seconds: Sequence[float], first: Sequence[float]) -> Timing:
    low, median, high = torch.tensor(seconds).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    ratio = statistics.median(s / f for s, f in zip(seconds, first, strict=True))
    return Timing(median, low, high, ratio)


def prepare(subject: Subject, part: str, setting: Setting) -> Callable[[], object]:
    """The function whose calls are timed."""
    images = make_images(setting)
    if part == "step":
        return _training_step(subject, images, setting)
    subject.network.eval()
    if part == "loss":
        return _loss_and_gradient(subject, images, setting)
    if part == "preprocess":
        return _preprocess(subject, setting)
    return _inference(subject, part, images, setting)


def _inference(
    subject: Subject, part: str, images: Tensor, setting: Setting
) -> Callable[[], object]:
    def under_autocast(module: Callable[..., Any], *inputs: Any) -> Any:
        with torch.inference_mode(), setting.autocast():
            return module(*inputs)

    def detect(images: Tensor) -> Any:
        return subject.postprocess(subject.network(images))

    if part in WHOLE:
        return partial(under_autocast, detect if part == "detect" else subject.network, images)
    given: Any = (images,)
    for name in ("backbone", "fpn", "neck", "head"):
        module = getattr(subject.detector, name)
        if name == part:
            return partial(under_autocast, module, *given)
        result = under_autocast(module, *given)
        given = result if name == "neck" else (result,)
    return partial(under_autocast, subject.postprocess, *given)


def _preprocess(subject: Subject, setting: Setting) -> Callable[[], object]:
    """Photos of twice the sides, already decoded, become the network's input."""
    height, width = 2 * setting.height, 2 * setting.width
    pixels = torch.full((3, height, width), 99, dtype=torch.uint8)
    bounds = (min(setting.image_sizes[0]), max(setting.image_sizes[0]))
    config = subject.detector.config  # type: ignore[union-attr]

    def resize() -> None:
        for _ in range(setting.batch_size):
            plan_resize((height, width), config, bounds).to_input(pixels)

    return resize


def _loss_and_gradient(subject: Subject, images: Tensor, setting: Setting) -> Callable[[], object]:
    with torch.no_grad(), setting.autocast():
        predictions = subject.network(images)
    inputs = [predictions.logits.requires_grad_(), predictions.deltas.requires_grad_()]
    targets = make_targets(setting, subject.num_classes)
    return lambda: torch.autograd.grad(subject.loss(predictions, targets), inputs)


def _training_step(subject: Subject, images: Tensor, setting: Setting) -> Callable[[], object]:
    targets = make_targets(setting, subject.num_classes)
    optimizer = torch.optim.SGD(subject.network.parameters(), lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == "fp16")

    def step() -> None:
        subject.network.train()
        with setting.autocast():
            loss = subject.loss(subject.network(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def make_images(setting: Setting) -> Tensor:
    shape = (setting.batch_size, 3, setting.height, setting.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(setting.device)
    memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
    return images.contiguous(memory_format=memory_format)


def make_targets(setting: Setting, num_classes: int) -> list[dict[str, Tensor]]:
    """Boxes of a tenth to a half of the image's sides."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([setting.width, setting.height])
    targets = []
    for _ in range(setting.batch_size):
        side = (0.1 + 0.4 * torch.rand(BOXES, 2, generator=generator)) * size
        corner = torch.rand(BOXES, 2, generator=generator) * (size - side)
        labels = torch.randint(num_classes, (BOXES,), generator=generator)
        boxes = torch.cat([corner, corner + side], dim=1).to(setting.device)
        targets.append({"boxes": boxes, "labels": labels.to(setting.device)})
    return targets


def peak_memory(name: str, part: str, setting: Setting) -> float:
    """MiB that a model of its own takes at most, weights included."""
    if setting.device == "cuda":
        return _peak_on_gpu(name, part, setting)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_process, name, part, setting, torch.get_num_threads()).result()


def _peak_on_gpu(name: str, part: str, setting: Setting) -> float:
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call = prepare(build_subject(name, setting), part, setting)
    for _ in range(WARM_UPS):
        call()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def _peak_of_process(name: str, part: str, setting: Setting, threads: int) -> float:
    torch.set_num_threads(threads)
    process, done, seen = psutil.Process(), Event(), [0]
    libraries = process.memory_info().rss

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            seen.append(process.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        call = prepare(build_subject(name, setting), part, setting)
        for _ in range(WARM_UPS):
            call()
    finally:
        done.set()
        watcher.join()
    return (max(seen) - libraries) / 2**20
