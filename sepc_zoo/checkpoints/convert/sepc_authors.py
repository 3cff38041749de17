"""Convert checkpoints of the SEPC authors (mmdetection 1.1, mmcv 0.4) to our models."""

from collections.abc import Mapping

from torch import Tensor

from sepc_zoo.checkpoints.convert.openmmlab import renames
from sepc_zoo.checkpoints.convert.pickles import CheckpointError
from sepc_zoo.checkpoints.folder import refuse_misfits
from sepc_zoo.models.build import build
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import authors_config

# Index in the authors' box convolution of each of our channels, where their order is another.
BOX_CHANNELS = {"fsaf": [1, 0, 2, 3]}  # theirs: bottom, top, left, right


def from_authors(state_dict: Mapping[str, Tensor], name: str) -> Detector:
    """Build a model with weights of the SEPC authors, in eval mode.

    Two conventions of their training become entries of its config: no padding in the neck's last
    convolutions, and boxes that include their last pixel.

    Args:
        state_dict: their tensors, with or without ``module.`` before the names.
        name: of the model, ``"fsaf_r50_sepc"``.

    Raises:
        UnknownModelError: the authors published no such model.
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    model = build(authors_config(name))
    state = {ours: state_dict[theirs] for theirs, ours in renames(state_dict).items()}
    order = BOX_CHANNELS.get(model.config.method.name)
    if order is not None:
        for key in ("head.box.weight", "head.box.bias"):
            if key in state and len(state[key]) == len(order):
                state[key] = state[key][order]
    refuse_misfits(state, model.state_dict(), f"this is no checkpoint of {name}", CheckpointError)
    model.load_state_dict(state)
    return model.eval()
