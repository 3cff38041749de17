"""One-stage detectors on any timm backbone, with the scale-equalizing pyramid convolution."""

from sepc_zoo import convert
from sepc_zoo.detections import Detections
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.hub import push_to_hub
from sepc_zoo.model.detector import Detector
from sepc_zoo.model_folder import save_model
from sepc_zoo.model_info import ModelInfo, model_info
from sepc_zoo.predictions import Predictions
from sepc_zoo.version import __version__
from sepc_zoo.zoo import is_model, list_backbones, list_models, register_model

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
    "register_model",
    "save_model",
]
