"""The files of a model folder."""

from pathlib import Path

from sepc_zoo.errors import HubError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"


def check_folder(folder: Path) -> None:
    """Check that a folder has the files of a model.

    Raises:
        HubError: it lacks one.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            hint = "; did you mean its folder best?" * (folder / "best" / file).is_file()
            raise HubError(f"{folder} is no model folder: it has no {file}{hint}")
