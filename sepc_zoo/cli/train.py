"""Train a model on your own data, as in: sepc-zoo train --data FOLDER --model retinanet_r50_sepc.

Without --data, run a small demonstration on synthetic shapes.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from sepc_zoo.api.options import StartOptions
from sepc_zoo.cli.push import check_repository
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import make_console, quoted, say
from sepc_zoo.training.options import TrainOptions

# Shapes that a small detector learns from scratch in about three minutes on a CPU.
DEMO_SHAPES: dict[str, Any] = {
    "train": 600,
    "val": 100,
    "size": (128, 128),
    "sides": (16.0, 64.0),
    "texture": 6.0,
    "contrast": 100.0,
}
DEMO_DATA = Path("runs") / f"shapes-{zlib.crc32(repr(DEMO_SHAPES).encode()):08x}"
DEMO: dict[str, Any] = {
    "data": str(DEMO_DATA),
    "model": "gfl_resnet10t_sepc",
    "model_kwargs": {"channels": 48, "neck": {"blocks": 2}},
    "backbone_kwargs": {"channels": (32, 64, 128, 256), "stem_width": 16},
    "image_size": (128, 128),
    "recipe": "small",
    "batch_size": 8,
    "lr": 2e-3,
    "epochs": 12,
    "scale": (1.0, 1.0),
    "val_interval": 3,
}
NEXT_STEPS = """\
next, your own images: sepc-zoo suggest FOLDER names a model and options that suit them"""


@dataclass(frozen=True, kw_only=True)
class Arguments(StartOptions):
    """Estimate and publish."""

    passes_on: ClassVar[type[Options]] = TrainOptions

    dry_run: bool = option(
        False, "only estimate memory and time, by two steps with the largest batch; start no run"
    )
    push_to_hub: str | None = option(
        None, "repository on the hub for the best model", metavar="ORG/NAME"
    )
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub is not None:
            check_repository("push_to_hub", self.push_to_hub)


def run(arguments: Arguments) -> int:
    """Train, or estimate memory and time; print where the results are."""
    from accelerate import PartialState

    from sepc_zoo.api.given import gather, options_of_run
    from sepc_zoo.training.trainer import train

    given = gather(arguments.given, arguments)
    is_demo = "data" not in given and arguments.resume is None
    if is_demo:
        draw_demo_data(given.get("device"))
        given = demo_options(given)
    options = options_of_run(given, arguments.resume)
    if arguments.dry_run:
        return dry_run(options)
    metrics = train(options, resume=arguments.resume is not None)
    if not PartialState().is_main_process:
        return 0
    return finish(options, metrics, arguments.push_to_hub, is_demo)


def finish(
    options: TrainOptions, metrics: dict[str, Any], repo_id: str | None, is_demo: bool
) -> int:
    """Print the results of a run, and upload its best model if asked."""
    from sepc_zoo.evaluation.metrics import metrics_table
    from sepc_zoo.training.callbacks import REPORT_FILE

    if metrics.get("per_class"):
        make_console().print(metrics_table(metrics))
    say(f"models, log and pictures are in {options.output}")
    best = Path(options.output) / "best"
    images = DEMO_DATA / "val" if is_demo else "IMAGE"
    say(f"use it: sepc-zoo predict {quoted(images)} --model {quoted(best)} --output predictions")
    if is_demo:
        say(NEXT_STEPS)
    problem = None
    if repo_id is not None:
        from sepc_zoo.cli.publishing import push_or_say_how

        if problem := push_or_say_how(best, repo_id):
            say(problem, error=True)
    report = Path(options.output, REPORT_FILE).absolute()
    if report.exists():
        say(f"report: {report.as_uri()}")  # terminals open an address on a click
    return 1 if problem else 0


def dry_run(options: TrainOptions) -> int:
    """Print what a run will need."""
    from accelerate import PartialState

    from sepc_zoo.training.dry_run import forecast

    will = forecast(options)
    if not PartialState().is_main_process:
        return 0
    count, height, width = will.images
    slower = "the step is slower"
    if will.read_seconds > will.step_seconds:
        slower = "reading is slower; try more --workers"
    if will.repeated:
        say(f"repeated: {will.repeated}")
    say(
        f"memory: {will.memory:.1f} GiB of {will.available_memory:.1f} GiB in each process,\n"
        f"  with {count} images of {height}x{width} and {will.boxes} boxes, the largest batch\n"
        f"step: {will.step_seconds:.2f} s for an average batch, {will.read_seconds:.2f} s to read "
        f"it; {slower}\n"
        f"validation: {timedelta(seconds=round(will.validation_seconds))}\n"
        f"the whole run: about {timedelta(seconds=round(will.run_seconds))}"
    )
    for need in will.needs:
        say(need)
    return 0


def demo_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the demonstration, overridden by those that are given."""
    from sepc_zoo.api.given import GROUPS

    taken = {GROUPS[name] for name in given}
    if "model" in taken:
        taken |= {"model_kwargs", "backbone_kwargs"}
    return {name: value for name, value in DEMO.items() if GROUPS[name] not in taken} | dict(given)


def draw_demo_data(device: str | None) -> None:
    """Write the synthetic data set of the demonstration unless it exists."""
    from sepc_zoo.data.synthetic import write_shapes
    from sepc_zoo.training.accelerator import start_processes

    with start_processes(device).main_process_first():
        if not DEMO_DATA.exists():
            say(f"no --data given: writing a small data set of shapes to {DEMO_DATA}")
            write_shapes(DEMO_DATA, **DEMO_SHAPES)
