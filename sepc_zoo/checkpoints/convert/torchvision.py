"""Convert checkpoints of torchvision's detectors."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sepc_zoo.checkpoints.convert.pickles import CheckpointError
from sepc_zoo.checkpoints.folder import refuse_misfits
from sepc_zoo.config import DetectorConfig
from sepc_zoo.models.build import build
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import UnknownModelError, model_config

# Names in older files, which torchvision itself renames when it loads them.
OLD_NAMES = [
    (r"^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^module\.", ""),
]
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"fpn.lateral.\1."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"fpn.lateral_norms.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"fpn.output.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"fpn.output_norms.\1."),
    (r"^backbone\.fpn\.extra_blocks\.", "fpn."),
    # Layers of a tower in groups, as in RetinaNet, or one after the other.
    (r"^head\.classification_head\.conv\.", "head.cls_tower."),
    (r"^head\.regression_head\.conv\.", "head.box_tower."),
    (r"^head\.classification_head\.cls_logits\.", "head.cls."),
    (r"^head\.regression_head\.bbox_reg\.", "head.box."),
    (r"^head\.regression_head\.bbox_ctrness\.", "head.quality."),
    (r"^rpn\.head\.conv\.(\d)\.0\.", lambda m: f"rpn.convs.{2 * int(m[1])}."),
    (r"^rpn\.head\.cls_logits\.", "rpn.cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.box."),
    (
        r"^roi_heads\.box_head\.(\d)\.([01])\.",
        lambda m: f"roi_head.convs.{3 * int(m[1]) + int(m[2])}.",
    ),
    (r"^roi_heads\.box_head\.(?:fc6|5)\.", "roi_head.linears.0."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_head.linears.2."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.box."),
]
TOWER_LAYER = re.compile(r"_tower\.(\d)\.(\d)\.")
TOWER_NORM = re.compile(r"_tower\.\d\.1\.")
LAST_LAYERS = ("roi_head.cls", "roi_head.box", "head.cls")
NUM_COLUMNS = 91  # a class's column is its id in COCO; 0 is the background


def from_torchvision(state_dict: Mapping[str, Tensor], name: str) -> Detector:
    """Build a model with weights of torchvision, in eval mode.

    Their conventions become entries of its config: anchors, coder, sizes of inputs, epsilon of
    norms. Of 91 classes the 80 of COCO remain; a softmax keeps the others, which nothing reports.

    Args:
        state_dict: their tensors, under the names of today or older ones; the model gets their
            floating type.
        name: of the model, ``"fasterrcnn_r50_fpn.tv_coco_v2"`` (without a tag the first that
            torchvision published), or torchvision's, ``"fasterrcnn_resnet50_fpn_v2"``.

    Raises:
        UnknownModelError: torchvision published no such model.
        CheckpointError: a tensor is missing, left over or misshapen.
    """
    return with_weights(model_config(our_name(name)), state_dict)


def with_weights(config: DetectorConfig, state_dict: Mapping[str, Tensor]) -> Detector:
    """Build a model with the weights; the category ids of its config are torchvision's columns."""
    model = build(config)
    wanted = model.state_dict()
    ids = list(config.category_ids)
    ours = renames(state_dict)
    state = {ours[k]: select_classes(ours[k], value, ids) for k, value in state_dict.items()}
    for key, value in wanted.items():  # frozen norms do not count batches, but old files may
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    text = f"this is no checkpoint of {config.architecture}"
    refuse_misfits(state, wanted, text, CheckpointError)
    floats = next(value.dtype for value in state.values() if value.is_floating_point())
    model.to(torch.promote_types(floats, torch.float32)).load_state_dict(state)
    return model.eval()


def renames(keys: Iterable[str]) -> dict[str, str]:
    """Our names of the tensors of a checkpoint, by theirs."""
    ours = {}
    for key in keys:
        ours[key] = key
        for pattern, replacement in [*OLD_NAMES, *RENAMES]:
            ours[key] = re.sub(pattern, replacement, ours[key])
    # A layer of a tower is a convolution, its norm if there is one, and a ReLU.
    layers = 3 if any(TOWER_NORM.search(name) for name in ours.values()) else 2

    def layer(match: re.Match[str]) -> str:
        return f"_tower.{layers * int(match[1]) + int(match[2])}."

    return {key: TOWER_LAYER.sub(layer, name) for key, name in ours.items()}


def select_classes(key: str, value: Tensor, ids: list[int]) -> Tensor:
    """Select the rows of a last layer for these category ids; return other tensors unchanged."""
    layer = key.rpartition(".")[0]
    if layer not in LAST_LAYERS or len(value) % NUM_COLUMNS:
        return value
    if layer == "roi_head.cls":
        return value[[0, *ids, *(i for i in range(1, NUM_COLUMNS) if i not in ids)]]
    if layer == "roi_head.box":
        return value.unflatten(0, (NUM_COLUMNS, 4))[ids].flatten(0, 1)
    return value.unflatten(0, (-1, NUM_COLUMNS))[:, ids].flatten(0, 1)


def our_name(name: str) -> str:
    """Our name with its tag for torchvision's name or ours; else an UnknownModelError."""
    rows = [row for row in PUBLISHED.values() if row.publisher == "torchvision"]
    for row in sorted(rows, key=lambda row: row.name):  # version 1 before version 2
        theirs = row.url.rpartition("/")[2].rpartition("_coco")[0]
        if name in (row.name, row.architecture, theirs):
            return row.name
    raise UnknownModelError(
        f"torchvision published no {name!r}; it published {', '.join(row.name for row in rows)}"
    )
