"""Convert checkpoints of openmmlab (mmdetection 2 and 3) and UniverseNet to our models."""

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sepc_zoo.checkpoints.convert.pickles import CheckpointError
from sepc_zoo.checkpoints.folder import refuse_misfits
from sepc_zoo.config import IMAGENET_STD, DetectorConfig, override
from sepc_zoo.models.build import build
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import openmmlab
from sepc_zoo.registry import UnknownModelError, model_config

# Names of openmmlab, UniverseNet and the SEPC authors. The original's pconv.0, 1, 2 read the
# coarser, the same and the finer level.
RENAMES = [
    # PVTv2.
    (r"^backbone\.layers\.0\.0\.", "backbone.patch_embed."),
    (r"^backbone\.layers\.(\d)\.0\.", r"backbone.stages_\1.downsample."),
    (r"^backbone\.layers\.(\d)\.1\.", r"backbone.stages_\1.blocks."),
    (r"^backbone\.layers\.(\d)\.2\.", r"backbone.stages_\1.norm."),
    (r"\.projection\.", ".proj."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
    # The deep stem of a ResNet-C.
    (r"^backbone\.stem\.7\.", "backbone.bn1."),
    (r"^backbone\.stem\.", "backbone.conv1."),
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.(?:0\.)?lateral_convs\.(\d)\.conv\.", r"fpn.lateral.\1."),
    (r"^neck\.(?:0\.)?fpn_convs\.([012])\.conv\.", r"fpn.output.\1."),
    (r"^neck\.(?:0\.)?fpn_convs\.3\.conv\.", "fpn.p6."),
    (r"^neck\.(?:0\.)?fpn_convs\.4\.conv\.", "fpn.p7."),
    (r"^neck\.1\.[Pp]convs\.(\d)\.[Pp]conv\.0\.", r"neck.pconvs.\1.from_coarser."),
    (r"^neck\.1\.[Pp]convs\.(\d)\.[Pp]conv\.1\.", r"neck.pconvs.\1.from_same."),
    (r"^neck\.1\.[Pp]convs\.(\d)\.[Pp]conv\.2\.", r"neck.pconvs.\1.from_finer."),
    (r"^neck\.1\.[Pp]convs\.(\d)\.bn\.", r"neck.pconvs.\1.norm.norm."),
    (r"^neck\.1\.cconv\.", "neck.cls_branch.conv."),
    (r"^neck\.1\.lconv\.", "neck.box_branch.conv."),
    (r"^neck\.1\.(?:bn_cls|cbn)\.", "neck.cls_branch.norm.norm."),
    (r"^neck\.1\.(?:bn_loc|lbn)\.", "neck.box_branch.norm.norm."),
    (r"^bbox_head\.cls_convs\.", "head.cls_tower."),
    (r"^bbox_head\.reg_convs\.", "head.box_tower."),
    (r"^bbox_head\.(?:retina|atss|gfl|conv|fcos)_cls\.", "head.cls."),
    (r"^bbox_head\.(?:retina|atss|gfl|conv|fcos)_reg\.", "head.box."),
    (r"^bbox_head\.(?:atss|conv|fcos)_centerness\.", "head.quality."),
    (r"^bbox_head\.scales\.(\d)\.scale$", r"head.scales.\1"),
    (r"\.conv_offset\.", ".offset."),
]
# A layer of a tower is a convolution, its norm if there is one, and a ReLU.
TOWER_LAYER = re.compile(r"_tower\.(\d)\.(conv|gn)\.")
BINS = "bbox_head.integral.project"  # the constants 0, 1, 2, ... of GFL
FIRST_CONV = "backbone.body.conv1.weight"
# Convolutions before those layer norms of PVTv2 whose epsilon is 1e-6 in the original and 1e-5 in
# timm: with sqrt(10) times their output, a norm has the same effect.
BEFORE_NORM = re.compile(r"\.(?:patch_embed\.proj|downsample\.proj|attn\.sr)\.(?:weight|bias)$")
LINEAR = re.compile(r"\.mlp\.fc[12]\.weight$")  # a 1x1 convolution in the original


def from_openmmlab(state_dict: Mapping[str, Tensor], name: str) -> Detector:
    """Build a model with weights of openmmlab, in eval mode and in the precision of the weights.

    A Caffe backbone is changed to take RGB normalized as for ImageNet.

    Args:
        state_dict: their tensors, or UniverseNet's, with or without ``module.`` before the names.
        name: name of their config, such as ``"atss_r50_fpn_1x_coco"``, or of our model.

    Raises:
        UnknownModelError: there is no such model.
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    config = openmmlab_config(name)
    state_dict = split_attention(state_dict)
    names = renames(state_dict)
    state = {names[key]: fold(names[key], state_dict[key]) for key in names}
    floats = [value.dtype for value in state.values() if value.is_floating_point()]
    precision = torch.float64 if torch.float64 in floats else torch.float32
    model = build(config).to(precision)
    refuse_misfits(state, model.state_dict(), f"this is no checkpoint of {name}", CheckpointError)
    if config.backbone.stride_in_1x1:
        state[FIRST_CONV] = fold_bgr(state[FIRST_CONV])
    model.load_state_dict(state)
    return model.eval()


def openmmlab_config(name: str) -> DetectorConfig:
    """The config of a model as openmmlab trained it; ``name`` is their config's, or ours."""
    theirs = name if openmmlab.our_name(name) else openmmlab.config_name(name)
    ours = openmmlab.our_name(theirs)
    if ours is not None:
        return override(model_config(ours), openmmlab.conventions(theirs))
    if name.partition(".")[2].startswith(("mmdet", "universenet")):
        return model_config(name)
    raise UnknownModelError(f"openmmlab has no model {name!r} that can be converted")


def renames(keys: Iterable[str]) -> dict[str, str]:
    """Our names of the tensors of a checkpoint, by theirs, without GFL's constants ``BINS``."""
    keys = [key for key in keys if not key.endswith(BINS)]
    layers = 3 if any(".gn." in key for key in keys) else 2

    def layer(match: re.Match[str]) -> str:
        return f"_tower.{layers * int(match[1]) + (match[2] == 'gn')}."

    ours = {}
    for key in keys:
        new = key.removeprefix("module.")
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        ours[key] = TOWER_LAYER.sub(layer, new)
    return ours


def split_attention(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked projections of attention into queries, and keys with values, as in timm."""
    split: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        start, stacked, kind = key.partition("attn.in_proj_")
        if stacked and value.ndim:
            rows = value.shape[0] // 3
            split |= {f"{start}q.{kind}": value[:rows], f"{start}kv.{kind}": value[rows:]}
        else:
            split[key] = value
    return split


def fold(name: str, value: Tensor) -> Tensor:
    """Convert the value of a tensor to our convention, which depends on our name of it."""
    if BEFORE_NORM.search(name):
        return (value.double() * math.sqrt(10)).to(value.dtype)
    is_pointwise = LINEAR.search(name) and value.shape[2:] == (1, 1)
    return value.flatten(1) if is_pointwise else value


def fold_bgr(weight: Tensor) -> Tensor:
    """Convert a first convolution for BGR in 0..255 minus a mean to one for normalized RGB."""
    deviation = torch.tensor(IMAGENET_STD, dtype=torch.float64)[:, None, None] * 255
    return (weight.double().flip(1) * deviation).to(weight.dtype)
