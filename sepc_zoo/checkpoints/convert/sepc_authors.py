"""Convert checkpoints of the SEPC authors (mmdetection 1.1, mmcv 0.4) to our models."""

import re
from collections.abc import Mapping

from torch import Tensor

from sepc_zoo.checkpoints.convert.pickles import CheckpointError
from sepc_zoo.checkpoints.folder import misfits
from sepc_zoo.models.build import build
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import authors_config

# The original's Pconv.0, 1, 2 read the coarser, the same and the finer level.
RENAMES = [
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.(?:0\.)?lateral_convs\.(\d)\.conv\.", r"fpn.lateral.\1."),
    (r"^neck\.(?:0\.)?fpn_convs\.([012])\.conv\.", r"fpn.output.\1."),
    (r"^neck\.(?:0\.)?fpn_convs\.3\.conv\.", "fpn.p6."),
    (r"^neck\.(?:0\.)?fpn_convs\.4\.conv\.", "fpn.p7."),
    (r"^neck\.1\.Pconvs\.(\d)\.Pconv\.0\.", r"neck.pconvs.\1.from_coarser."),
    (r"^neck\.1\.Pconvs\.(\d)\.Pconv\.1\.", r"neck.pconvs.\1.from_same."),
    (r"^neck\.1\.Pconvs\.(\d)\.Pconv\.2\.", r"neck.pconvs.\1.from_finer."),
    (r"^neck\.1\.Pconvs\.(\d)\.bn\.", r"neck.pconvs.\1.norm.norm."),
    (r"^neck\.1\.cconv\.", "neck.cls_branch.conv."),
    (r"^neck\.1\.lconv\.", "neck.box_branch.conv."),
    (r"^neck\.1\.cbn\.", "neck.cls_branch.norm.norm."),
    (r"^neck\.1\.lbn\.", "neck.box_branch.norm.norm."),
    (r"^bbox_head\.cls_convs\.(\d)\.conv\.", r"head.cls_tower.\1."),
    (r"^bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1."),
    (r"^bbox_head\.retina_cls\.", "head.cls."),
    (r"^bbox_head\.retina_reg\.", "head.box."),
    (r"\.conv_offset\.", ".offset."),
]
# A tower alternates convolutions and ReLUs.
TOWER_INDEX = re.compile(r"_tower\.(\d)\.")
# Our channels of the box convolution, as indices of theirs.
BOX_CHANNELS = {"fsaf": [1, 0, 2, 3]}  # theirs are bottom, top, left, right


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
    state = {rename(key): value for key, value in state_dict.items()}
    order = BOX_CHANNELS.get(model.config.method.name)
    if order is not None:
        for key in ("head.box.weight", "head.box.bias"):
            if key in state and len(state[key]) == len(order):
                state[key] = state[key][order]
    problems = misfits(state, model.state_dict())
    if problems:
        raise CheckpointError(f"this is no checkpoint of {name}:\n" + "\n".join(problems))
    model.load_state_dict(state, strict=True)
    return model.eval()


def rename(key: str) -> str:
    """Our name of one of their tensors."""
    key = key.removeprefix("module.")
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return TOWER_INDEX.sub(lambda match: f"_tower.{2 * int(match[1])}.", key)
