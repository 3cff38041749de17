"""Speed and memory of models, measured side by side."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor, nn

from sepc_zoo.errors import ConfigError
from sepc_zoo.export.loaded import find_exported, load_exported
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

Key = TypeVar("Key", bound=Hashable)


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


class BenchmarkModel(NamedTuple):
    """A model to measure."""

    network: nn.Module  # images (N, C, H, W) -> predictions, as the two functions take them
    postprocess: Callable[[Any], Any]
    loss: Callable[[Any, list[dict[str, Tensor]]], Tensor]
    num_classes: int
    detector: DenseDetector | None = None  # the model whose parts are measured, if any
    channels: int = 3  # of its images


Builder = Callable[[str, Setting], BenchmarkModel]
BUILDERS: dict[str, Builder] = {}  # builders of models, keyed by the prefix of their names


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


def builder_of(name: str) -> Builder:
    if find_exported(name):
        return load_to_measure
    prefix, colon, _ = name.partition(":")
    return BUILDERS.get(prefix, build_model) if colon else build_model


def build_model(name: str, setting: Setting) -> BenchmarkModel:
    return wrap(new_detector(name, setting), setting)


def load_to_measure(path: str, setting: Setting) -> BenchmarkModel:  # noqa: ARG001
    """Load an exported file; its forward pass is all that it does, from normalisation to NMS."""

    def refuse(*_: Any) -> Tensor:
        raise ConfigError(f"{path}: an exported file cannot be trained")

    exported = load_exported(path)
    config = exported.config
    return BenchmarkModel(
        exported,
        lambda outputs: outputs,
        refuse,
        config.num_classes,
        channels=config.backbone.in_chans,
    )


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


def wrap(detector: Detector, setting: Setting) -> BenchmarkModel:
    model = BenchmarkModel(
        detector,
        lambda predictions: detector.postprocess(predictions, setting.image_sizes),
        lambda predictions, targets: sum_terms(detector.loss(predictions, targets)),
        detector.config.num_classes,
        detector if isinstance(detector, DenseDetector) else None,
        detector.config.backbone.in_chans,
    )
    return finish(model, setting)


def finish(model: BenchmarkModel, setting: Setting) -> BenchmarkModel:
    """Apply memory format and compilation."""
    if setting.channels_last:
        model.network.to(memory_format=torch.channels_last)
    if setting.compile:
        model.network.compile(mode=setting.compile)
    return model


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


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
    models = {name: builder_of(name)(name, setting) for name in names}
    results = []
    for part in sorted(parts, key=lambda part: part == "step"):  # last, as it changes the models
        able = {n: m for n, m in models.items() if part in WHOLE or m.detector is not None}
        calls = {name: prepare(model, part, setting) for name, model in able.items()}
        timings = alternate(calls, rounds, setting.device)
        calls.clear()
        for name, timing in timings.items():
            with_memory = memory and part in ("detect", "step")
            peak = peak_memory(name, part, setting) if with_memory else None
            results.append(Result(name, part, setting, timing, peak))
    return results


def alternate(
    calls: Mapping[Key, Callable[[], object]], rounds: int, device: str
) -> dict[Key, Timing]:
    """Time functions in turn, so that other load on the machine affects all of them."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
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


def prepare(model: BenchmarkModel, part: str, setting: Setting) -> Callable[[], object]:
    """Return the function to time, with its inputs bound."""
    shape = (setting.batch_size, model.channels, setting.height, setting.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(setting.device)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if part == "step":
        return _training_step(model, images, setting)
    model.network.eval()
    if part == "loss":
        return _loss_and_gradient(model, images, setting)
    if part == "preprocess":
        return _preprocess(model, setting)
    return _inference(model, part, images, setting)


def _inference(
    model: BenchmarkModel, part: str, images: Tensor, setting: Setting
) -> Callable[[], object]:
    def under_autocast(function: Callable[..., Any], *inputs: Any) -> Any:
        with torch.inference_mode(), setting.autocast():
            return function(*inputs)

    if part == "forward":
        return partial(under_autocast, model.network, images)
    if part == "detect":
        return partial(under_autocast, lambda: model.postprocess(model.network(images)))
    inputs: Any = (images,)
    for name in MODULES:
        module = getattr(model.detector, name)
        if name == part:
            return partial(under_autocast, module, *inputs)
        output = under_autocast(module, *inputs)
        inputs = output if name == "neck" else (output,)
    return partial(under_autocast, model.postprocess, *inputs)


def _preprocess(model: BenchmarkModel, setting: Setting) -> Callable[[], object]:
    """Resize and normalise decoded images of twice the side lengths."""
    height, width = 2 * setting.height, 2 * setting.width
    pixels = torch.full((model.channels, height, width), 99, dtype=torch.uint8)
    bounds = (min(setting.image_sizes[0]), max(setting.image_sizes[0]))
    config = model.detector.config  # type: ignore[union-attr]

    def resize() -> None:
        for _ in range(setting.batch_size):
            plan_resize((height, width), config, bounds).to_input(pixels)

    return resize


def _loss_and_gradient(
    model: BenchmarkModel, images: Tensor, setting: Setting
) -> Callable[[], object]:
    with torch.no_grad(), setting.autocast():
        predictions = model.network(images)
    inputs = [predictions.logits.requires_grad_(), predictions.deltas.requires_grad_()]
    targets = make_targets(setting, model.num_classes)
    return lambda: torch.autograd.grad(model.loss(predictions, targets), inputs)


def _training_step(model: BenchmarkModel, images: Tensor, setting: Setting) -> Callable[[], object]:
    targets = make_targets(setting, model.num_classes)
    if not [*model.network.parameters()]:
        model.loss(None, targets)  # an exported file refuses
    optimizer = torch.optim.SGD(model.network.parameters(), lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == "fp16")

    def step() -> None:
        model.network.train()
        with setting.autocast():
            samples = isinstance(model.network, Detector)  # two stages do, in their forward pass
            outputs = model.network(images, targets) if samples else model.network(images)
            loss = model.loss(outputs, targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


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
        _run(builder_of(name), name, part, setting)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        arguments = torch.get_num_threads(), builder_of(name), name, part, setting
        return pool.submit(_peak_of_process, *arguments).result()


def _run(builder: Builder, name: str, part: str, setting: Setting) -> None:
    call = prepare(builder(name, setting), part, setting)
    for _ in range(NUM_WARM_UPS):
        call()


def _peak_of_process(threads: int, *run: Any) -> float:
    torch.set_num_threads(threads)
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
