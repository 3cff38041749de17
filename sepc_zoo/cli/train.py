"""Train a model on your own data. Without --data, a small demonstration on synthetic shapes."""

import argparse
import dataclasses
import itertools
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from sepc_zoo.checkpoints.hub import LOCAL_PREFIX
from sepc_zoo.cli.arguments import key_value, model_name, nested
from sepc_zoo.cli.push import push_or_say_how, repository
from sepc_zoo.data import write_shapes
from sepc_zoo.data.formats.reader import FORMATS
from sepc_zoo.evaluation.metrics import metrics_table
from sepc_zoo.training.accelerator import start_processes
from sepc_zoo.training.dry_run import forecast
from sepc_zoo.training.options import OPTIONS_FILE, TrainError, TrainOptions, read_options
from sepc_zoo.training.recipes import SCHEDULES
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.trainer import train

DEMO_DATA = Path("runs/shapes")
# Small enough to learn four shapes from nothing on two CPU cores in five minutes. The shapes are as
# wide as high, and smaller than most objects of COCO.
DEMO: dict[str, Any] = {
    "model": "retinanet_resnet10t_ibn_pconv",
    "model_kwargs": {"channels": 48, "anchors": {"base_scale": 2.0, "ratios": (1.0,)}},
    "image_size": (192, 192),
    "epochs": 16,
    "lr": 1e-3,
    "val_interval": 4,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}

    def add(flag: str, **kwargs: Any) -> None:
        """An option of ``TrainOptions``, absent from the arguments unless it is given."""
        default = defaults[flag.removeprefix("--").replace("-", "_")]
        shown = "" if default in (None, False, dataclasses.MISSING) else f" (default {default})"
        kwargs["help"] = kwargs["help"] + shown
        parser.add_argument(flag, default=argparse.SUPPRESS, **kwargs)

    add("--data", nargs="+", metavar="DIR", help="data set, or several to be joined by class name")
    add("--format", choices=list(FORMATS), help="of the data, where the folder does not tell")
    add("--train-split", metavar="NAME", help="split to learn from")
    add("--val-split", metavar="NAME", help="split to validate on")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        default=argparse.SUPPRESS,
        help="name of a model, or a model folder or hf-hub:org/repo to fine-tune",
    )
    source.add_argument(
        "--finetune",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="the same, but a name means its published weights",
    )
    add("--output", metavar="RUN", help="run folder, a new one in runs/ by default")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run, with its own options")
    length = parser.add_mutually_exclusive_group()
    for flag, text in (("--epochs", "passes over the data, 12"), ("--max-steps", "or steps")):
        length.add_argument(flag, type=int, metavar="N", default=argparse.SUPPRESS, help=text)
    add("--patience", type=int, metavar="N", help="validations without a better AP before the end")
    add("--batch-size", type=int, metavar="N", help="images per process and backward pass")
    add("--grad-accum-steps", type=int, metavar="N", help="backward passes per step")
    add(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("SHORT", "LONG"),
        help="sides of the resized photos in pixels, 800 1333 unless the model says otherwise",
    )
    add(
        "--model-kwargs",
        type=key_value,
        nargs="+",
        metavar="KEY=VALUE",
        help="entries of the model's config, such as channels=128 anchors.octaves=4",
    )
    add("--opt", metavar="NAME", help="sgd, adamw or another optimizer of timm")
    add("--lr", type=float, metavar="X", help="by default the recipe's, scaled to the batch")
    add("--weight-decay", type=float, metavar="X", help="by default the recipe's")
    add("--layer-decay", type=float, metavar="X", help="of the learning rate, stage by stage down")
    add("--sched", choices=SCHEDULES, help="learning rate over time")
    add("--warmup-steps", type=int, metavar="N", help="500, at most a tenth of the run")
    add("--clip-grad", type=float, metavar="X", help="largest norm of the gradient")
    add("--amp", choices=["bf16", "fp16"], help="mixed precision")
    backbone = parser.add_mutually_exclusive_group()
    backbone.add_argument(
        "--pretrained-backbone",
        action="store_true",
        default=argparse.SUPPRESS,
        help="start from timm's ImageNet weights, which are downloaded",
    )
    backbone.add_argument(
        "--backbone-checkpoint",
        "--init-from",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="or from a safetensors file of timm's",
    )
    add(
        "--backbone-kwargs",
        type=key_value,
        nargs="+",
        metavar="KEY=VALUE",
        help="for timm.create_model, such as drop_path_rate=0.1",
    )
    add("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="that the backbone expects")
    add("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="likewise")
    add("--freeze-stages", type=int, metavar="N", help="stem and first N stages do not learn")
    add(
        "--freeze-bn",
        action=argparse.BooleanOptionalAction,
        help="keep the statistics of the backbone's batch norms",
    )
    add(
        "--sync-bn",
        action=argparse.BooleanOptionalAction,
        help="batch norm over all processes; by default with fewer than 4 images in each",
    )
    add("--model-ema", action="store_true", help="validate and keep a moving average of weights")
    add("--model-ema-decay", type=float, metavar="X", help="of that average, reached step by step")
    add("--hflip", type=float, metavar="P", help="chance of a mirror image")
    add("--vflip", type=float, metavar="P", help="chance of one upside down")
    add("--color-jitter", action="store_true", help="photometric distortion")
    add("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="scale jitter")
    add("--short-sides", type=int, nargs="+", metavar="PIXELS", help="multi-scale: one is drawn")
    add("--crop", type=float, metavar="P", help="chance of a part that keeps boxes' centres")
    add("--mosaic", type=float, metavar="P", help="chance of four photos in one")
    add("--mixup", type=float, metavar="P", help="chance of two photos on top of each other")
    add("--copy-paste", type=float, metavar="P", help="chance of objects of another photo")
    add("--mix-epochs", type=int, metavar="N", help="only the first N epochs mix photos")
    add("--drop-bad-boxes", action="store_true", help="leave out boxes without area, and tell")
    add("--val-interval", type=int, metavar="EPOCHS", help="between validations")
    add("--log-interval", type=int, metavar="STEPS", help="between rows of log.csv")
    add("--save-interval", type=int, metavar="STEPS", help="between states to resume from")
    add("--max-faults", type=int, metavar="N", help="unreadable images, or dead workers, survived")
    add(
        "--draw-batches",
        type=int,
        metavar="N",
        help="first batches to draw as the network sees them",
    )
    add("--log-with", nargs="*", metavar="TRACKER", help="trackers of accelerate, such as wandb")
    add("--workers", type=int, metavar="N", help="processes that read images")
    add("--seed", type=int, metavar="N", help="of weights, order and augmentation")
    add("--channels-last", action="store_true", help="memory layout that suits tensor cores")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--deterministic", action="store_true", help="same numbers in every run, slower")
    add("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument(
        "--push-to-hub", type=repository, metavar="ORG/NAME", help="where the best model goes"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps with the largest batch: memory, time of the run; writes nothing",
    )


def run(args: argparse.Namespace) -> int:
    given = vars(args)
    resume, dry = given.pop("resume"), given.pop("dry_run")
    repo_id = given.pop("push_to_hub")
    try:
        options = resumed_options(resume, given) if resume else options_from(given)
        if dry:
            return dry_run(options)
        metrics = train(options, resume=resume is not None)
    except Interrupted as interrupted:
        if PartialState().is_main_process:
            print(interrupted, file=sys.stderr)
        return interrupted.status
    if not PartialState().is_main_process:
        return 0
    if metrics.get("per_class"):
        Console().print(metrics_table(metrics))
    print(f"models, log and pictures are in {options.output}")
    best = Path(options.output) / "best"
    print(f"use it: sepc-zoo predict PHOTO --model {best}")
    problem = None if repo_id is None else push_or_say_how(best, repo_id)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    return 0


def dry_run(options: TrainOptions) -> int:
    """Tell what a run will need."""
    will = forecast(options)
    if PartialState().is_main_process:
        count, height, width = will.images
        print(f"memory: {will.memory:.1f} GiB of {will.memory_there:.1f} GiB in each process, ")
        print(
            f"  with {count} images of {height}x{width} and {will.boxes} boxes, the largest batch"
        )
        slower = (
            "step" if will.step_seconds > will.read_seconds else "reading, so try more --workers"
        )
        print(
            f"step: {will.step_seconds:.2f} s for a usual batch, {will.read_seconds:.2f} s to read "
            f"it; the slower is the {slower}"
        )
        print(f"validation: {timedelta(seconds=round(will.validation_seconds))}")
        print(f"the whole run: about {timedelta(seconds=round(will.run_seconds))}")
    return 0


def options_from(given: dict[str, Any]) -> TrainOptions:
    """The options that the command line gives; without data those of the demonstration."""
    given = as_options(given)
    if "data" not in given:
        given = DEMO | {"data": (str(demo_data(given.get("cpu", False))),)} | given
    if "model" not in given:
        raise TrainError("--model is missing; `sepc-zoo list` names the models")
    if "output" not in given:
        name = Path(given["model"].removeprefix(LOCAL_PREFIX)).name
        start_processes(given.get("cpu", False))
        (output,) = broadcast_object_list([str(free_folder(Path("runs") / name))])
        given["output"] = output
    return TrainOptions(**given)


def free_folder(path: Path) -> Path:
    """``path``, or with ``-2``, ``-3`` … behind it where that exists."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def resumed_options(run: str, given: dict[str, Any]) -> TrainOptions:
    """The options of a run; others beside ``--resume`` may repeat, but not change them."""
    options = read_options(run)
    asked = as_options(given)
    changed = [f"--{n.replace('_', '-')}" for n in asked if asked[n] != getattr(options, n)]
    if changed:
        raise TrainError(
            f"--resume goes on with the run's own options, which {', '.join(changed)} would "
            f"change; they are in {Path(run) / OPTIONS_FILE}"
        )
    return options


def as_options(given: dict[str, Any]) -> dict[str, Any]:
    """Values from the command line as ``TrainOptions`` has them."""
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in given.items()
    }
    for name in {"model_kwargs", "backbone_kwargs"} & set(given):
        values[name] = nested(given[name])
    if "finetune" in given:
        values |= {"model": values.pop("finetune"), "pretrained": True}
    if "model" in values:
        values["model"] = model_name(values["model"])
    return values


def demo_data(cpu: bool) -> Path:
    """Synthetic shapes, written on the first call."""
    with start_processes(cpu).main_process_first():
        if not DEMO_DATA.exists():
            print(f"no --data given: writing a small data set of shapes to {DEMO_DATA}")
            write_shapes(DEMO_DATA)
    return DEMO_DATA
