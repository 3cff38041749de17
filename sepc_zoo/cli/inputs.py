"""Check paths and names on a command line before PyTorch is imported and work begins."""

import glob
import os
from collections.abc import Callable
from pathlib import Path

from sepc_zoo.api.models import model_name
from sepc_zoo.checkpoints.layout import check_folder
from sepc_zoo.cli.arguments import classes_of
from sepc_zoo.data.problems import unreadable
from sepc_zoo.errors import ConfigError
from sepc_zoo.export import SUFFIXES
from sepc_zoo.options import Options, option_fields
from sepc_zoo.registry import HUB_PREFIX, check_name


def check_inputs(options: Options) -> None:
    """Check the files, folders and models that options name, by the metavars of their values.

    Raises:
        UserError: there is no such file, folder or model, or a place cannot be written to.
    """
    values = vars(options) | getattr(options, "given", {})
    for cls in classes_of(type(options)):
        for info in option_fields(cls):
            if check := CHECKS.get(info.metavar):
                value = values.get(info.name) or ()
                for text in (value,) if isinstance(value, str) else value:
                    check(os.path.expanduser(text))


def check_data(text: str) -> None:
    """Check that a data set is there, or on the hub."""
    if not text.startswith(HUB_PREFIX) and not os.path.exists(text):
        raise unreadable(text, "no such folder")


def check_file(text: str) -> None:
    """Check that a file is there."""
    if not os.path.exists(text) or os.path.isdir(text):
        raise ConfigError(f"{text}: no such file")


def check_images(text: str) -> None:
    """Check that a folder is there."""
    if not os.path.isdir(text):
        raise ConfigError(f"{text}: no such folder")


def check_output_folder(text: str) -> None:
    """Check that a folder can be written to, or made."""
    path = Path(text).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"{text}: cannot be written: {there} is no folder to write to")


def check_output(text: str) -> None:
    """Check that the folder of a file can be written to, or made."""
    check_output_folder(os.path.dirname(text))


def check_model(text: str) -> None:
    """Check that a folder or file is there, or a name possible; files are checked when read."""
    if os.path.isdir(text):
        if not any(name.endswith(tuple(SUFFIXES)) for name in os.listdir(text)):
            check_folder(Path(text), needs_weights=False)  # info does without
    elif not os.path.isfile(text) and ":" not in model_name(text):
        check_name(text)


def check_compared(text: str) -> None:
    """Check that a model or a file of detections is there."""
    (check_file if text.endswith(".json") else check_model)(text)


def check_run(text: str) -> None:
    """Check that a folder holds a run to resume."""
    from sepc_zoo.training.config_file import read_options

    read_options(text)


def check_source(text: str) -> None:
    """Check that images are there; a camera or an address is not checked."""
    is_elsewhere = text.isdecimal() or "://" in text or text.startswith("/dev/")
    if not (is_elsewhere or os.path.lexists(text) or any(glob.iglob(text, recursive=True))):
        raise ConfigError(f"{text}: no such file or folder")


CHECKS: dict[object, Callable[[str], None]] = {
    "A": check_compared,
    "B": check_compared,
    "CHECKPOINT": check_file,
    "DATA": check_data,
    "DIR": check_output_folder,
    "FILE": check_file,
    "FILE.csv": check_output,
    "IMAGES": check_images,
    "MODEL": check_model,
    "NAME_OR_DIR": check_model,
    "OUT": check_output,
    "RUN": check_run,
    "SOURCE": check_source,
}
