"""From the options that a user gives, on the command line or in Python, to those of a run."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sepc_zoo.api.models import model_name
from sepc_zoo.api.options import StartOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import check_names, option_fields
from sepc_zoo.training.options import TrainError, TrainOptions, read_options

# The group of options that exclude each other, or the option itself where it is alone.
GROUPS = {e.name: e.metadata["option"].exclusive or e.name for e in option_fields(TrainOptions)}


def gather(given: Mapping[str, Any], start: StartOptions) -> dict[str, Any]:
    """The options that are given, and where they are silent, those of a file.

    Args:
        given: options by name.
        start: the file, and the model whose trained weights the run starts from.

    Raises:
        TrainError: the file cannot be read.
        ConfigError: an entry of it is no option, or options exclude each other.
    """
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
    """The options in a YAML file, but for those that exclude a given one.

    Args:
        given: names of the options that are given.

    Raises:
        TrainError: the file cannot be read.
        ConfigError: an entry is no option.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"--config {file} cannot be read: {error}") from error
    check_names(TrainOptions, content, str(file))
    taken = {GROUPS[name] for name in given}
    return {name: value for name, value in content.items() if GROUPS[name] not in taken}


def options_of_run(given: Mapping[str, Any], resume: str | None = None) -> TrainOptions:
    """The options of a run, with a free folder where none is given.

    Args:
        given: what ``gather`` returned.
        resume: folder of a run to go on with; what is given changes its options.

    Raises:
        ConfigError, TrainError: an option is missing or does not fit.
    """
    return new_options(given) if resume is None else resumed_options(resume, given)


def new_options(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a new run."""
    from accelerate.utils import broadcast_object_list

    from sepc_zoo.training.accelerator import start_processes

    for name, hint in (("data", ""), ("model", "; `sepc-zoo list` names the models")):
        if name not in given:
            raise TrainError(f"--{name} is missing{hint}")
    folder = Path(given["model"])
    name = folder.parent.name if folder.name in ("best", "last") else folder.name
    options = {**given, "model": model_name(given["model"])}
    if "output" not in options:
        TrainOptions(**options, output=name)  # a wrong option is reported before processes start
        start_processes(options.get("cpu", False))
        (options["output"],) = broadcast_object_list([str(free_folder(Path("runs") / name))])
    return TrainOptions(**options)


def free_folder(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3`` … that does not exist."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def resumed_options(run: str, given: Mapping[str, Any]) -> TrainOptions:
    """The options of a run to resume, with those that are given."""

    options = dict(given)
    for name, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if name in options:
            options = {other: None} | options
    if "model" in options:
        options["model"] = model_name(options["model"])
    # "auto" was settled when the run started.
    changes = {name: value for name, value in options.items() if value != "auto"}
    return dataclasses.replace(read_options(run), **changes | {"output": run})
