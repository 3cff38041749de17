"""From the options that a user gives, on the command line or in Python, to those of a run."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sepc_zoo.api.models import model_name
from sepc_zoo.api.options import StartOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import check_names, option_fields
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainError, TrainOptions

# The group of options that exclude each other, or the option itself where it is alone.
GROUPS = {info.name: info.exclusive or info.name for info in option_fields(TrainOptions)}


def gather(given: Mapping[str, Any], start: StartOptions) -> dict[str, Any]:
    """The options that are given by name, and others from the file of options, if there is one."""
    options, groups = dict(given), {name: GROUPS[name] for name in given}
    if start.finetune is not None:
        options |= {"model": start.finetune, "pretrained": True}
        groups["finetune"] = GROUPS["model"]
    for group in groups.values():
        rivals = [name for name in groups if groups[name] == group]
        if len(rivals) > 1:
            raise ConfigError(f"give only one of the options {', '.join(rivals)}")
    return options if start.config is None else read_config(Path(start.config), options) | options


def read_config(file: Path, given: Collection[str]) -> dict[str, Any]:
    """The options in a YAML file, but for those that exclude one whose name is given."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"--config {file} cannot be read: {error}") from error
    check_names(TrainOptions, content, str(file))
    taken = {GROUPS[name] for name in given}
    return {name: value for name, value in content.items() if GROUPS[name] not in taken}


def options_of_run(given: Mapping[str, Any], resume: str | None = None) -> TrainOptions:
    """The options of a new run, with a free folder where none is given, or of one to resume."""
    options = dict(given)
    if "model" in options:
        options["model"] = model_name(options["model"])
    if resume is not None:
        return resumed_options(options, resume)
    for name, hint in (
        ("data", ""),
        ("model", "; `sepc-zoo suggest` proposes one, `sepc-zoo list` names all"),
    ):
        if name not in options:
            raise TrainError(f"--{name} is missing{hint}")
    if "output" not in options:
        from accelerate.utils import broadcast_object_list

        from sepc_zoo.training.accelerator import start_processes

        folder = Path(given["model"])
        name = folder.parent.name if folder.name in ("best", "last") else folder.name
        TrainOptions(**options, output=name)  # a wrong option is reported before processes start
        start_processes(options.get("device"))
        (options["output"],) = broadcast_object_list([str(free_folder(Path("runs") / name))])
    return TrainOptions(**options)


def free_folder(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3`` … that does not exist."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def resumed_options(given: Mapping[str, Any], run: str) -> TrainOptions:
    """The options of a run to resume, with those that are given."""
    # "auto" was settled when the run started.
    changes = {name: value for name, value in given.items() if value != "auto"}
    for name, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if name in given:
            changes.setdefault(other, None)
    options = replace(read_options(run), **changes)
    if Path(options.output).absolute() != Path(run).absolute():
        other = options.output
        raise TrainError(f"--resume writes to {run}, not to {other}; copy the run and resume that")
    return replace(options, output=run)
