"""Train a model on your own data. Without --data, run a small demonstration on synthetic shapes."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from sepc_zoo.api.options import StartOptions
from sepc_zoo.cli.push import check_repository
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import make_console, say
from sepc_zoo.training.options import TrainOptions

DEMO_DATA = Path("runs/shapes")
# Small enough to learn four shapes from scratch on two CPU cores in five minutes. The shapes are
# square, and smaller than most objects of COCO.
DEMO: dict[str, Any] = {
    "model": "retinanet_resnet10t_ibn_pconv",
    "model_kwargs": {"channels": 48, "anchors": {"base_scale": 2.0, "ratios": (1.0,)}},
    "image_size": (192, 192),
    "epochs": 16,
    "recipe": "paper",
    "lr": 1e-3,
    "val_interval": 4,
}


@dataclass(frozen=True, kw_only=True)
class Arguments(StartOptions):
    """Estimate and publish."""

    passes_on: ClassVar[type[Options]] = TrainOptions

    dry_run: bool = option(
        False, "only estimate memory and time, by two steps with the largest batch; write nothing"
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
    """Train, or estimate what it takes; print where the results are."""
    from accelerate import PartialState

    from sepc_zoo.api.given import gather, options_of_run
    from sepc_zoo.training.trainer import train

    given = gather(arguments.given, arguments)
    if "data" not in given and arguments.resume is None:
        given = DEMO | {"data": str(demo_data(given.get("cpu", False)))} | given
    options = options_of_run(given, arguments.resume)
    if arguments.dry_run:
        return dry_run(options)
    metrics = train(options, resume=arguments.resume is not None)
    if not PartialState().is_main_process:
        return 0
    return finish(options, metrics, arguments.push_to_hub)


def finish(options: TrainOptions, metrics: dict[str, Any], repo_id: str | None) -> int:
    """Print the results of a run, and upload its best model where asked."""

    from sepc_zoo.evaluation.metrics import metrics_table

    if metrics.get("per_class"):
        make_console().print(metrics_table(metrics))
    say(f"models, log and pictures are in {options.output}")
    best = Path(options.output) / "best"
    say(f"use it: sepc-zoo predict IMAGE --model {best}")
    if repo_id is None:
        return 0

    from sepc_zoo.cli.publishing import push_or_say_how

    problem = push_or_say_how(best, repo_id)
    if problem is not None:
        say(problem, error=True)
    return 0 if problem is None else 1


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


def demo_data(cpu: bool) -> Path:
    """Write the synthetic data set of the demonstration on the first call; its folder."""
    from sepc_zoo.data.synthetic import write_shapes
    from sepc_zoo.training.accelerator import start_processes

    with start_processes(cpu).main_process_first():
        if not DEMO_DATA.exists():
            say(f"no --data given: writing a small data set of shapes to {DEMO_DATA}")
            write_shapes(DEMO_DATA)
    return DEMO_DATA
