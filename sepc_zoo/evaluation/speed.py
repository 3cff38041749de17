"""Speed and memory of models, measured side by side."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from sepc_zoo.errors import ConfigError
from sepc_zoo.export.loaded import ExportedModel, find_exported, load_exported
from sepc_zoo.factory import create_model
from sepc_zoo.inference.preprocess import plan_resize
from sepc_zoo.models.dense import DenseDetector
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import LevelConv2d
from sepc_zoo.registry import HUB_PREFIX, LOCAL_PREFIX

WHOLE = ("forward", "detect", "step")
MODULES = ("backbone", "fpn", "neck", "head")
PARTS = ("preprocess", *MODULES, "postprocess", "loss")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_WARM_UPS = 2
BOXES_PER_IMAGE = 20  # number of boxes in a synthetic target
MEMORY_INTERVAL = 0.005  # seconds between two readings of a process's memory
# Speed depends on values that training brings; new models get them instead.
LOGIT_STD = 0.7  # a few thousand scores of an image are over the threshold
OFFSET_STD = 1.0  # pixels


@dataclass(frozen=True)
class Setting:
    """Conditions of a comparison, the same for all models."""

    batch_size: int = 1
    height: int = 640  # pixels
    width: int = 640
    precision: str = "float32"  # one of PRECISIONS
    compile: str = ""  # mode of torch.compile; empty: eager
    channels_last: bool = False
    device: str = "cpu"

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        return [(self.height, self.width)] * self.batch_size

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device, dtype, enabled=dtype is not None)


# Builds a model with ``forward``, ``postprocess``, ``loss`` and ``config`` as our detectors have.
Builder = Callable[[str, Setting], nn.Module]
BUILDERS: dict[str, Builder] = {}  # keyed by the prefix of the models' names


class Timing(NamedTuple):
    """Times of one part of one model over all rounds."""

    median: float  # seconds
    low: float  # first quartile
    high: float  # third quartile
    ratio: float  # time over that of the first model; median over the rounds


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    model: str
    part: str
    setting: Setting
    timing: Timing
    peak_mib: float | None  # None: not measured


def build(name: str, setting: Setting) -> Any:
    """Build a model to measure, or load an exported file."""
    if find_exported(name):
        return load_exported(name)
    model = BUILDERS.get(name.partition(":")[0], new_detector)(name, setting)
    if setting.channels_last:
        model.to(memory_format=torch.channels_last)
    if setting.compile:
        model.compile(mode=setting.compile)
    return model


def new_detector(name: str, setting: Setting) -> Detector:
    """Build a detector with random weights that compute as much as trained ones, or load one.

    Raises:
        ConfigError: the name is unknown.
    """
    torch.manual_seed(0)
    detector = create_model(name).to(setting.device)
    if name.startswith((LOCAL_PREFIX, HUB_PREFIX)):
        return detector
    for module in detector.modules():
        if isinstance(module, LevelConv2d) and module.offset is not None:
            nn.init.normal_(module.offset.bias, std=OFFSET_STD)  # type: ignore[arg-type]
    if isinstance(detector, DenseDetector):
        scale_logits(detector.head.cls, detector, detector.config.backbone.in_chans)
    return detector


def compare(
    names: Sequence[str], setting: Setting, parts: Sequence[str], rounds: int, memory: bool
) -> list[Result]:
    """Time parts of models, one model after the other in each round.

    Args:
        names: names of models; ``BUILDERS`` adds others than ``create_model``'s.
        parts: of ``WHOLE`` and ``PARTS``. ``forward`` is the network, ``detect`` the network and
            its post-processing, ``step`` a training step with SGD, ``loss`` the loss of given
            predictions and its gradient.
        memory: measure the peak memory of ``detect`` and ``step`` too, on the CPU in a new process.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in filter(find_exported, names):
        if "step" in parts:
            raise ConfigError(f"{name}: an exported file cannot be trained")
    models = {name: build(name, setting) for name in names}
    results = []
    for part in sorted(parts, key=lambda part: part == "step"):  # last, as it changes the models
        able = {n: m for n, m in models.items() if part in WHOLE or isinstance(m, DenseDetector)}
        calls = {name: prepare(model, part, setting) for name, model in able.items()}
        timings = alternate(calls, rounds, setting.device)
        calls.clear()
        for name, timing in timings.items():
            with_memory = memory and part in ("detect", "step")
            peak = peak_memory(name, part, setting) if with_memory else None
            results.append(Result(name, part, setting, timing, peak))
    return results


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, Timing]:
    """Time functions in turn, so that other load on the machine affects all of them."""
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for i in range(NUM_WARM_UPS + rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if i >= NUM_WARM_UPS:
                seconds[key].append(time.perf_counter() - start)
    timings, first = {}, next(iter(seconds.values()), [])
    for key, own in seconds.items():
        low, median, high = torch.tensor(own).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        ratio = statistics.median(s / f for s, f in zip(own, first, strict=True))
        timings[key] = Timing(median, low, high, ratio)
    return timings


def prepare(model: Any, part: str, setting: Setting) -> Callable[[], object]:
    """Return the function to time, with its inputs bound."""
    shape = (setting.batch_size, model.config.backbone.in_chans, setting.height, setting.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(setting.device)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if part == "step":
        return _training_step(model, images, setting)
    model.eval()
    if part == "loss":
        return _loss_and_gradient(model, images, setting)
    if part == "preprocess":
        return _preprocess(model, setting)
    return _inference(model, part, images, setting)


def _inference(model: Any, part: str, images: Tensor, setting: Setting) -> Callable[[], object]:
    def under_autocast(function: Callable[..., Any], *inputs: Any) -> Any:
        with torch.inference_mode(), setting.autocast():
            return function(*inputs)

    def postprocess(outputs: Any) -> Any:
        return model.postprocess(outputs, setting.image_sizes)

    if part == "forward" or isinstance(model, ExportedModel):  # whose outputs are detections
        return partial(under_autocast, model, images)
    if part == "detect":
        return partial(under_autocast, lambda: postprocess(model(images)))
    inputs: Any = (images,)
    for name in MODULES:
        module = getattr(model, name)
        if name == part:
            return partial(under_autocast, module, *inputs)
        output = under_autocast(module, *inputs)
        inputs = output if name == "neck" else (output,)
    return partial(under_autocast, postprocess, *inputs)


def _preprocess(model: Any, setting: Setting) -> Callable[[], object]:
    """Resize and normalise decoded images of twice the side lengths."""
    height, width = 2 * setting.height, 2 * setting.width
    pixels = torch.full((model.config.backbone.in_chans, height, width), 99, dtype=torch.uint8)
    bounds = (min(setting.image_sizes[0]), max(setting.image_sizes[0]))

    def resize() -> None:
        for _ in range(setting.batch_size):
            plan_resize((height, width), model.config, bounds).to_input(pixels)

    return resize


def _loss_and_gradient(model: Any, images: Tensor, setting: Setting) -> Callable[[], object]:
    with torch.no_grad(), setting.autocast():
        predictions = model(images)
    inputs = [predictions.logits.requires_grad_(), predictions.deltas.requires_grad_()]
    targets = make_targets(setting, model.config.num_classes)
    return lambda: torch.autograd.grad(sum_terms(model.loss(predictions, targets)), inputs)


def _training_step(model: Any, images: Tensor, setting: Setting) -> Callable[[], object]:
    targets = make_targets(setting, model.config.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == "fp16")

    def step() -> None:
        model.train()
        with setting.autocast():
            samples = isinstance(model, Detector)  # two stages do, in their forward pass
            outputs = model(images, targets) if samples else model(images)
            loss = sum_terms(model.loss(outputs, targets))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def make_targets(setting: Setting, num_classes: int) -> list[dict[str, Tensor]]:
    """Make random boxes of a tenth to a half of the image's sides."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([setting.width, setting.height])
    targets = []
    for _ in range(setting.batch_size):
        side = (0.1 + 0.4 * torch.rand(BOXES_PER_IMAGE, 2, generator=generator)) * size
        corner = torch.rand(BOXES_PER_IMAGE, 2, generator=generator) * (size - side)
        labels = torch.randint(num_classes, (BOXES_PER_IMAGE,), generator=generator)
        boxes = torch.cat([corner, corner + side], dim=1).to(setting.device)
        targets.append({"boxes": boxes, "labels": labels.to(setting.device)})
    return targets


@torch.no_grad()
def scale_logits(last: nn.Conv2d, network: nn.Module, channels: int = 3) -> None:
    """Scale the last convolution to a standard deviation of ``LOGIT_STD`` of the logits."""
    outputs: list[Tensor] = []
    hook = last.register_forward_hook(lambda *call: outputs.append(call[-1].flatten()))
    network.eval()(torch.randn(1, channels, 320, 320, device=last.weight.device))
    hook.remove()
    last.weight.mul_(LOGIT_STD / torch.cat(outputs).std())


def peak_memory(name: str, part: str, setting: Setting) -> float:
    """Measure the peak memory of a new model in MiB, weights included."""
    if setting.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _run(name, part, setting)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        known = torch.get_num_threads(), {**BUILDERS}
        return pool.submit(_peak_of_process, *known, name, part, setting).result()


def _run(name: str, part: str, setting: Setting) -> None:
    call = prepare(build(name, setting), part, setting)
    for _ in range(NUM_WARM_UPS):
        call()


def _peak_of_process(threads: int, builders: Mapping[str, Builder], *run: Any) -> float:
    torch.set_num_threads(threads)
    BUILDERS.update(builders)
    process, done = psutil.Process(), Event()
    libraries = process.memory_info().rss
    readings = [libraries]

    def watch() -> None:
        while not done.wait(MEMORY_INTERVAL):
            readings.append(process.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        _run(*run)
    finally:
        done.set()
        watcher.join()
    return (max(readings) - libraries) / 2**20
