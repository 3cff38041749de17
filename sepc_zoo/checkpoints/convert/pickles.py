"""Read untrusted PyTorch checkpoints without running code that their pickles name."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepc_zoo.errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, unsafe or of another model; the message names what is wrong."""


class StandIn:
    """Stands for an object of a class that a checkpoint names; keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class StandInDict(StandIn):
    """Stands for a dict of such a class: PyTorch fills only dicts of its own list of types."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


def stand_in(path: str, base: type) -> type:
    """Make a class that PyTorch takes for the one at ``path``."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module})


# Classes of what mmcv, mmengine and training scripts save beside tensors, such as configs.
STAND_INS: list[Any] = [
    *(stand_in(path, StandIn) for path in (
        "builtins.getattr",  # names a method of HistoryBuffer; the stand-in looks nothing up
        "mmengine.logging.history_buffer.HistoryBuffer",
        "mmengine.config.config.Config",
        "mmcv.utils.config.Config",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "builtins.dict",  # factories of the values of a defaultdict, as the next three
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "argparse.Namespace",
        "datetime.datetime",
        "pathlib.PosixPath",
    )),
    *(stand_in(path, StandInDict) for path in (
        "addict.addict.Dict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "collections.defaultdict",
    )),
]  # fmt: skip


def read_checkpoint(path: str | Path) -> Any:
    """The content of a checkpoint: tensors, plain data, and stand-ins for known classes.

    A file that is missing or damaged, or names other code, raises a CheckpointError.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file raises whatever the unpickler runs into
        raise CheckpointError(
            f"{path}: not a checkpoint that is safe to read: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The reason for refusing a file, without PyTorch's advice to load it nevertheless."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"its pickle names {named[1]:.100}, and so holds more than tensors and plain data"
    details = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    reason = details.strip().splitlines()[0] if details.strip() else type(error).__name__
    return f"it is damaged, or its pickle holds more than tensors and plain data ({reason:.300})"


def read_state_dict(path: str | Path, name: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint, at its top level or under ``"state_dict"``.

    Args:
        path: the file.
        name: name of the model that the checkpoint should be of, if known.

    Raises:
        CheckpointError: the file cannot be read, has no state dict of tensors, or its config names
            another method (RetinaNet and FreeAnchor have tensors of the same shapes).
    """
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: has no state_dict of tensors")
    method = method_of(content)
    named = None if name is None else name.partition("_")[0]
    if named in HEADS.values() and method not in (None, named):
        raise CheckpointError(f"{path}: is a checkpoint of {method}, not of {name}")
    return dict(state)


HEADS = {"FreeAnchor": "freeanchor", "FSAF": "fsaf", "Retina": "retinanet"}


def method_of(content: Mapping[str, Any]) -> str | None:
    """The method that the training config in a checkpoint names, if it is one of ``HEADS``."""
    meta = content.get("meta")
    config = meta.get("config") if isinstance(meta, Mapping) else None
    if not isinstance(config, str):
        return None
    return next((method for head, method in HEADS.items() if head in config), None)
