"""Checkpoints with the names that the SEPC authors gave to their tensors."""

import re

import torch

from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import authors_config

META = {"epoch": 12, "iter": 87960, "mmcv_version": "0.4.3", "CLASSES": ("person",), "config": "x"}


def _tiny(row):
    name = row.name.replace("_r50_", "_test_efficientnet_")
    url = f"https://drive.google.com/uc?id={name.partition('.')[0]}"
    return row._replace(name=name, url=url, conventions={**row.conventions, "channels": 8})


# The rows of the authors with another backbone and few channels.
TINY_ROWS = [_tiny(row) for row in PUBLISHED.values() if row.publisher == "sepc"]

# From our names back to theirs: the inverse of RENAMES.
BACK = [
    (r"^backbone\.body\.", "backbone."),
    (r"^fpn\.lateral\.(\d)\.", r"neck.0.lateral_convs.\1.conv."),
    (r"^fpn\.output\.(\d)\.", r"neck.0.fpn_convs.\1.conv."),
    (r"^fpn\.p6\.", "neck.0.fpn_convs.3.conv."),
    (r"^fpn\.p7\.", "neck.0.fpn_convs.4.conv."),
    (r"^neck\.pconvs\.(\d)\.from_coarser\.", r"neck.1.Pconvs.\1.Pconv.0."),
    (r"^neck\.pconvs\.(\d)\.from_same\.", r"neck.1.Pconvs.\1.Pconv.1."),
    (r"^neck\.pconvs\.(\d)\.from_finer\.", r"neck.1.Pconvs.\1.Pconv.2."),
    (r"^neck\.pconvs\.(\d)\.norm\.norm\.", r"neck.1.Pconvs.\1.bn."),
    (r"^neck\.cls_branch\.conv\.", "neck.1.cconv."),
    (r"^neck\.box_branch\.conv\.", "neck.1.lconv."),
    (r"^neck\.cls_branch\.norm\.norm\.", "neck.1.cbn."),
    (r"^neck\.box_branch\.norm\.norm\.", "neck.1.lbn."),
    (r"^head\.cls\.", "bbox_head.retina_cls."),
    (r"^head\.box\.", "bbox_head.retina_reg."),
    (r"\.offset\.", ".conv_offset."),
]


def their_name(key):
    tower = re.fullmatch(r"head\.(cls|box)_tower\.(\d)\.(\w+)", key)
    if tower:
        kind, index = {"cls": "cls", "box": "reg"}[tower[1]], int(tower[2]) // 2
        return f"bbox_head.{kind}_convs.{index}.conv.{tower[3]}"
    for pattern, replacement in BACK:
        key = re.sub(pattern, replacement, key)
    return key


def their_state(name, **changes):
    """Random weights with the authors' names and order of channels."""
    model = build(authors_config(name))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value = torch.rand(value.shape, generator=generator)
        state[their_name(key)] = value
    if name.endswith("_fpn"):
        state = {key.replace("neck.0.", "neck."): value for key, value in state.items()}
    return state | changes


def write_checkpoint(path, name, state=None, zipped=True, **meta):
    """A file as mmcv writes it, with random weights by default."""
    content = {"meta": META | meta, "state_dict": their_state(name) if state is None else state}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path
