"""What is known of a model without running it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sepc_zoo.checkpoints.folder import read_config
from sepc_zoo.checkpoints.hub import find_model
from sepc_zoo.factory import build
from sepc_zoo.registry import AUTHORS_WEIGHTS, is_model, model_config, neck_name


@dataclass(frozen=True)
class ModelInfo:
    """A row of the table of models."""

    name: str
    method: str
    backbone: str  # timm's name
    neck: str
    num_classes: int
    parameters: int
    gmacs: float  # billions of multiplications with addition for one image of the reference size
    reference_size: tuple[int, int]  # height and width, pixels
    authors_ap: float | None  # COCO val2017, published by the authors of SEPC, not measured by us


def model_info(name: str) -> ModelInfo:
    """Parameters, operations and published results of a model, by its name or folder.

    Raises:
        UnknownModelError: the name builds no model.
        HubError: the folder is no model folder.
    """
    if is_model(name):
        config = model_config(name)
        authors_ap = AUTHORS_WEIGHTS.get(config.architecture, (None,))[0]
    else:
        folder = Path(name) if Path(name).is_dir() else find_model(name, pretrained=False)
        config = model_config(name) if folder is None else read_config(folder)
        authors_ap = config.weights.authors_ap
    height, width = (-(-side // 32) * 32 for side in config.weights.image_size)
    model = build(config).to("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, 3, height, width, device="meta"))
    return ModelInfo(
        name=config.architecture,
        method=config.method,
        backbone=config.backbone,
        neck=neck_name(config.neck),
        num_classes=config.num_classes,
        parameters=sum(p.numel() for p in model.parameters()),
        gmacs=counter.get_total_flops() / 2 / 1e9,
        reference_size=(height, width),
        authors_ap=authors_ap,
    )
