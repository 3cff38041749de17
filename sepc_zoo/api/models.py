"""Loading of models by what users give: a name, a folder, an id of the hub or a file."""

import os
from pathlib import Path
from typing import Any

from sepc_zoo.api.options import DetectOptions
from sepc_zoo.config import override
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.export import SUFFIXES
from sepc_zoo.options import OptionError
from sepc_zoo.registry import LOCAL_PREFIX, hub_hint

OTHER_FILES = (".pt", ".pth", ".safetensors")


def model_with_weights(source: str | os.PathLike[str]) -> Any:
    """Load the model of a folder, a hub id, or a name with published weights, or an exported file.

    Raises:
        HubError: there are no such weights.
        ExportError: the exported file cannot be loaded.
        UnknownModelError: there is no such name.
    """
    from sepc_zoo.export.loaded import find_exported, load_exported
    from sepc_zoo.factory import create_model

    source = os.fspath(source)
    if file := find_exported(source):
        return load_exported(file)
    return create_model(model_name(source), pretrained=True)


def choose_postprocess(model: Any, options: DetectOptions) -> None:
    """Override the model's post-processing where the options ask for it."""
    from sepc_zoo.models.detector import Detector

    asked = {"soft_nms": options.soft_nms, "view_fusion": options.tta_fusion}
    changes = {name: value for name, value in asked.items() if value is not None}
    if options.soft_nms not in (None, "none") and not isinstance(model, Detector):
        raise ConfigError("--soft-nms: an exported file has hard non-maximum suppression inside")
    model.config = override(model.config, {"postprocess": changes})


def model_name(source: str | os.PathLike[str]) -> str:
    """The name by which ``create_model`` knows a model folder, a hub id or a name."""
    if not isinstance(source, str | os.PathLike):  # YAML reads the words no and 5 as other types
        raise OptionError("model", f"is {source!r:.80}; it must be str")
    source = os.fspath(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return f"{LOCAL_PREFIX}{source}"
    if path.is_file() and path.suffix in SUFFIXES:
        raise HubError(f"{source} is an exported file; give the model folder that it was made from")
    if path.is_file():
        raise HubError(f"{source} is a file, but neither a model folder nor an exported model")
    if ":" not in source and path.suffix in (*SUFFIXES, *OTHER_FILES):
        raise HubError(f"{source}: no such file; `sepc-zoo export` writes models as files")
    if ":" not in source and "/" in source:
        raise HubError(f"{source}: no such folder or file{hub_hint(source)}")
    return source
