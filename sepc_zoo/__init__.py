"""One-stage detectors on any timm backbone, with the scale-equalizing pyramid convolution."""

__version__ = "0.1.0"  # before the imports, which read it

from sepc_zoo.checkpoints import convert
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import push_to_hub
from sepc_zoo.errors import HubError
from sepc_zoo.factory import ModelInfo, create_model, load_model, model_info
from sepc_zoo.inference.detections import Detections
from sepc_zoo.models.detector import Detector
from sepc_zoo.outputs import Predictions
from sepc_zoo.registry import (
    is_model,
    list_backbones,
    list_models,
    register_method,
    register_model,
    register_neck,
)

__all__ = [
    "Detections",
    "Detector",
    "HubError",
    "ModelInfo",
    "Predictions",
    "__version__",
    "convert",
    "create_model",
    "is_model",
    "list_backbones",
    "list_models",
    "load_model",
    "model_info",
    "push_to_hub",
    "register_method",
    "register_model",
    "register_neck",
    "save_model",
]
