"""From a config to a detector with new weights."""

from pathlib import Path

from sepc_zoo.config import DetectorConfig, resolve
from sepc_zoo.models.detector import Detector


def build(config: DetectorConfig, pretrained_backbone: bool | Path = False) -> Detector:
    """Build a detector with new weights, or with timm's (or a file's) weights in the backbone."""
    return resolve(config.method.detector)(config, pretrained_backbone)
