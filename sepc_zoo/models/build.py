"""From a config to a detector with new weights."""

from sepc_zoo.config import DetectorConfig, resolve
from sepc_zoo.models.detector import Detector


def build(config: DetectorConfig, pretrained_backbone: bool = False) -> Detector:
    """Build the detector of a config with new weights."""
    return resolve(config.method.detector)(config, pretrained_backbone)
