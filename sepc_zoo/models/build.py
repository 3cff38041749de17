"""From a config to a detector with new weights."""

from pathlib import Path

from sepc_zoo.config import DetectorConfig, resolve
from sepc_zoo.models.detector import Detector


def build(config: DetectorConfig, pretrained_backbone: bool | Path = False) -> Detector:
    """Build the detector of a config with new weights.

    Args:
        pretrained_backbone: load timm's ImageNet weights, or this safetensors file of timm's.
    """
    return resolve(config.method.detector)(config, pretrained_backbone)
