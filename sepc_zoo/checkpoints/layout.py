"""The files of a model folder."""

import json
from pathlib import Path
from typing import Any

from sepc_zoo.errors import HubError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"


def check_folder(folder: Path, needs_weights: bool = True) -> None:
    """Raise a HubError unless a folder has the files of a model, or its config alone."""
    for file in (CONFIG_FILE, WEIGHTS_FILE) if needs_weights else (CONFIG_FILE,):
        if not (folder / file).is_file():
            hint = "; did you mean its folder best?" * (folder / "best" / file).is_file()
            raise HubError(f"{folder} is no model folder: it has no {file}{hint}")


def metrics_of(folder: Path) -> dict[str, Any] | None:
    """The metrics of a model folder from its training or validation, if it has any."""
    file = folder / METRICS_FILE
    return read_metrics(file) if file.is_file() else None


def read_metrics(file: Path) -> dict[str, Any]:
    """Read a ``metrics.json`` of ``validate``; a HubError says that it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected figures by name, got {content!r:.80}")
        return content
    except (OSError, ValueError) as error:
        raise HubError(
            f"{file} has no metrics: {error}; `sepc-zoo validate` writes them"
        ) from error
