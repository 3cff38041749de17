"""Entry points of torch.hub: a function for each curated model."""

from collections.abc import Callable
from typing import Any

from sepc_zoo.factory import create_model
from sepc_zoo.models.detector import Detector
from sepc_zoo.published import find_row
from sepc_zoo.registry import list_models, model_config, neck_name

DOC = """Build a detector: method {method}, timm backbone {backbone}, neck {neck}; {weights}.

Args:
    pretrained: load the published weights; classes of ``label_names`` with a published name keep
        their weights.
    num_classes, label_names: number and names of your classes; COCO's 80 by default.
    kwargs: further arguments of ``sepc_zoo.create_model``, such as ``pretrained_backbone=True``,
        ``checkpoint="model.safetensors"``, ``backbone_kwargs`` or ``channels=128``.

Returns:
    A ``sepc_zoo.Detector`` in eval mode: ``model.predict("image.jpg")``.
"""


def make_entry_points() -> dict[str, Callable[..., Detector]]:
    """Make the entry points, by the name of the model that each of them builds."""
    return {name: _entry_point(name) for name in list_models()}


def _entry_point(name: str) -> Callable[..., Detector]:
    def build(pretrained: bool = False, **kwargs: Any) -> Detector:
        return create_model(name, pretrained, **kwargs)

    config = model_config(name)
    row = find_row(name)
    weights = f"published weights, AP {row.ap} by their authors" if row else "no weights"
    build.__name__ = build.__qualname__ = name
    build.__doc__ = DOC.format(
        method=config.method.name,
        backbone=config.backbone.name,
        neck=neck_name(config.neck),
        weights=weights,
    )
    return build
