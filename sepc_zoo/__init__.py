"""Object detectors on any timm backbone, with the scale-equalizing pyramid convolution (SEPC).

Names are imported when they are used, so that ``import sepc_zoo`` takes no time.
"""

from typing import TYPE_CHECKING

from sepc_zoo.lazy import lazy_names

if TYPE_CHECKING:
    from sepc_zoo.api.train import TrainResult, train
    from sepc_zoo.api.validate import validate
    from sepc_zoo.checkpoints import convert
    from sepc_zoo.checkpoints.folder import save_model
    from sepc_zoo.checkpoints.push import push_to_hub
    from sepc_zoo.errors import HubError
    from sepc_zoo.export import export, load_exported
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
    from sepc_zoo.training.callback import Callback, Stop

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "Detections",
    "Detector",
    "HubError",
    "ModelInfo",
    "Predictions",
    "Stop",
    "TrainResult",
    "__version__",
    "convert",
    "create_model",
    "export",
    "is_model",
    "list_backbones",
    "list_models",
    "load_exported",
    "load_model",
    "model_info",
    "push_to_hub",
    "register_method",
    "register_model",
    "register_neck",
    "save_model",
    "train",
    "validate",
]
_HOMES = {
    "Callback": "sepc_zoo.training.callback",
    "Detections": "sepc_zoo.inference.detections",
    "Detector": "sepc_zoo.models.detector",
    "HubError": "sepc_zoo.errors",
    "ModelInfo": "sepc_zoo.factory",
    "Predictions": "sepc_zoo.outputs",
    "Stop": "sepc_zoo.training.callback",
    "TrainResult": "sepc_zoo.api.train",
    "convert": "sepc_zoo.checkpoints",
    "create_model": "sepc_zoo.factory",
    "export": "sepc_zoo.export",
    "is_model": "sepc_zoo.registry",
    "list_backbones": "sepc_zoo.registry",
    "list_models": "sepc_zoo.registry",
    "load_exported": "sepc_zoo.export",
    "load_model": "sepc_zoo.factory",
    "model_info": "sepc_zoo.factory",
    "push_to_hub": "sepc_zoo.checkpoints.push",
    "register_method": "sepc_zoo.registry",
    "register_model": "sepc_zoo.registry",
    "register_neck": "sepc_zoo.registry",
    "save_model": "sepc_zoo.checkpoints.folder",
    "train": "sepc_zoo.api.train",
    "validate": "sepc_zoo.api.validate",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
