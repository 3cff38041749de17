"""Suggest model, image size and options for a data set, with time and memory on this machine."""

import shlex
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sepc_zoo.cli.arguments import command_line
from sepc_zoo.options import option, option_fields
from sepc_zoo.terminal import say
from sepc_zoo.training.options import (
    DeviceOptions,
    InputOptions,
    SourceOptions,
    TrainError,
    TrainOptions,
)

if TYPE_CHECKING:
    import torch

# For each type of device: minimum memory in GiB, model, and limits of the images' long side.
# With MobileNetV2 and sepc_lite GFL had the highest AP after 1,000 steps, see benchmarks/study.py.
MODELS: dict[str, list[tuple[float, str, tuple[int, int]]]] = {
    "cpu": [(0, "gfl_mnv2_sepc_lite", (256, 640))],
    "cuda": [
        (30, "gfl_convnext_tiny_sepc", (512, 1333)),
        (10, "gfl_r50_sepc", (512, 1333)),
        (0, "gfl_r18_sepc_lite", (512, 1024)),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Arguments(SourceOptions, InputOptions, DeviceOptions):
    """Data."""

    data: tuple[str, ...] = option(
        help="data set, or several to join by class name", metavar="DATA", positional=True
    )
    model: str | None = option(
        None, "name of a model (default: one that fits the device)", metavar="NAME"
    )
    json: bool = option(False, "print JSON")


def run(arguments: Arguments) -> int:
    """Read the data, run a few training steps, and print suggestions."""
    from sepc_zoo.training.summary import show

    facts = suggest(arguments)
    if arguments.json:
        import json

        say(json.dumps(facts, indent=2))
        return 0
    show(
        {
            "model": f"{facts['model']}, {facts['channels']} channels",
            "images": "sides of at most {} and {} pixels".format(*facts["image_size"]),
            "anchors": facts["anchors"],
            "recipe": f"{facts['recipe']} ({facts['reason']})",
            "length": f"{facts['steps']} steps of {facts['batch_size']} images",
            "time": f"about {timedelta(seconds=round(facts['seconds']))} on this {facts['device']}",
            "memory": f"{facts['memory_gib']:.1f} GiB of {facts['available_gib']:.1f} GiB",
        }
    )
    say("\n".join([*facts["notes"], "", facts["command"]]))
    return 0


def suggest(arguments: Arguments) -> dict[str, Any]:
    """All suggestions in plain types; time and memory are measured by a few training steps.

    These start from random weights: nothing is downloaded.
    """
    from sepc_zoo.config import override
    from sepc_zoo.data import read_data
    from sepc_zoo.registry import model_config
    from sepc_zoo.training.accelerator import make_accelerator
    from sepc_zoo.training.advice import (
        advise,
        anchors_text,
        fits_badly,
        fitting_size,
        num_channels,
        resized_boxes,
    )
    from sepc_zoo.training.dry_run import measure
    from sepc_zoo.training.inputs import check_split
    from sepc_zoo.training.recipes import choose_recipe
    from sepc_zoo.training.run import Run

    device = make_accelerator(None, arguments.device).device
    name, limits = fitting_model(device)
    data = read_data(
        arguments.data,
        arguments.train_split,
        format=arguments.format,
        drop_bad_boxes=arguments.drop_bad_boxes,
        skip_bad_images=arguments.skip_bad_images,
    )
    check_split(arguments.data, arguments.train_split, data)
    if not (data.records.iscrowd == 0).any():
        where = f"split {arguments.train_split!r} of {', '.join(arguments.data)}"
        raise TrainError(f"{where} has no box to learn; label some images first")
    given = [*option_fields(SourceOptions), *option_fields(InputOptions)]
    asked = {info.name: getattr(arguments, info.name) for info in given}
    asked |= {"model": arguments.model or name, "device": arguments.device}
    if (channels := num_channels(data)) != 3:
        asked["backbone_kwargs"] = {"in_chans": channels}
    size = asked["image_size"] = arguments.image_size or fitting_size(data, limits)
    config = override(model_config(asked["model"]), {"weights": {"image_size": size}})
    if fits_badly(resized_boxes(data, size), config):
        asked["auto_anchors"] = True
    plan = TrainOptions(**asked, pretrained_backbone=True, output="runs")
    recipe = choose_recipe(plan, config, data, num_processes=1)
    plan = replace(plan, recipe=recipe.name)
    trial = Run(TrainOptions(**asked, recipe=recipe.name, log_with=(), output="runs/suggested"))
    will = measure(trial)
    notes = advise(trial.options, trial.detector.config, trial.train_data)
    if arguments.image_size is None:
        bound = f"; the command keeps to {limits[1]} pixels, for this {device.type}"
        notes = [note + bound * note.startswith("image size") for note in notes]
    return {
        "model": asked["model"],
        "device": device.type,
        "channels": config.channels,
        "image_size": list(size),
        "recipe": recipe.name,
        "reason": recipe.reason,
        "batch_size": trial.recipe.batch_size,
        "steps": trial.num_steps,
        "seconds": will.run_seconds,
        "memory_gib": will.memory,
        "available_gib": will.available_memory,
        "anchors": anchors_text(trial.detector.config),
        "notes": notes,
        "command": shlex.join(["sepc-zoo", "train", *command_line(plan, leave_out="output")]),
    }


def fitting_model(device: "torch.device") -> tuple[str, tuple[int, int]]:
    """The model for a device, and limits of the images' long side in pixels."""
    import torch

    memory = 0.0
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    rows = MODELS.get(device.type, MODELS["cpu"])
    return next((name, limits) for least, name, limits in rows if memory >= least)
