"""Arguments that commands share."""

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sepc_zoo.config import ConfigError
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.inference.tta import Views
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.accelerator import start_processes


def key_value(text: str) -> tuple[str, Any]:
    """``key=value``, the value read as Python where it can be: ``bn_eps=1e-3 pad_type=same``."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an argument that counts something."""

    def count(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return int(text)

    return count


def nested(pairs: list[tuple[str, Any]] | None) -> dict[str, Any]:
    """A dict of ``key=value`` pairs; ``neck.padding=0`` goes into a dict of its own."""
    result: dict[str, Any] = {}
    for key, value in pairs or []:
        *groups, name = key.split(".")
        inner = result
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}={value}: {group} has a value already")
        inner[name] = value
    return result


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_DIR",
        help="model folder, hf-hub:org/repo, or the name of a model with published weights",
    )
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is by default")


def add_loader_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=at_least(1), default=4, metavar="N", help="per process, %(default)s"
    )
    parser.add_argument(
        "--workers", type=at_least(0), default=2, metavar="N", help="that read photos, %(default)s"
    )


def add_views_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta-flip", action="store_true", help="look at the mirror image of each photo too"
    )
    parser.add_argument(
        "--tta-scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="X",
        help="look at each photo in these sizes, as factors of the model's own: 0.8 1.0 1.25",
    )


def views_of(args: argparse.Namespace) -> Views:
    """The views that the command line asks for."""
    return Views(args.tta_flip, tuple(args.tta_scales))


def model_with_weights(source: str) -> Detector:
    """The model of a folder, a hub id, or a name whose published weights are loaded."""
    if Path(source).expanduser().is_dir() or ":" in source:
        return load_model(source)
    if "/" in source:
        raise HubError(f"{source}: no such folder; a model on the hub is hf-hub:org/name")
    return create_model(source, pretrained=True)


def model_name(source: str) -> str:
    """The name that ``create_model`` knows a model folder or name by."""
    return f"local-dir:{source}" if Path(source).expanduser().is_dir() else source


def start_on_device(asked: str | None) -> tuple[PartialState, torch.device]:
    """Join the processes that a launcher has started, if any; with the device of this one."""
    processes = start_processes(cpu=asked == "cpu")
    if processes.num_processes == 1:
        return processes, best_device(asked)
    if asked not in (None, processes.device.type):
        raise ConfigError(
            f"--device {asked}: the {processes.num_processes} processes have one device each, of "
            f"type {processes.device.type}"
        )
    return processes, processes.device


def best_device(asked: str | None) -> torch.device:
    """The device asked for, or the best there is."""
    if asked:
        try:
            return torch.empty(0, device=asked).device
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"no device {asked!r} here: {error}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
