"""Data sets: reading, augmentation, batching."""

from typing import TYPE_CHECKING

from sepc_zoo.lazy import lazy_names

if TYPE_CHECKING:
    from sepc_zoo.data.annotations import Annotations, Record
    from sepc_zoo.data.dataset import Batch, DetectionDataset, collate, make_loader
    from sepc_zoo.data.formats.reader import FORMATS, read_data
    from sepc_zoo.data.problems import DataError
    from sepc_zoo.data.synthetic import write_shapes
    from sepc_zoo.data.transforms.augmentation import Augmentation
    from sepc_zoo.data.transforms.mixing import Mixer
    from sepc_zoo.data.transforms.pipeline import train_transform

__all__ = [
    "FORMATS",
    "Annotations",
    "Augmentation",
    "Batch",
    "DataError",
    "DetectionDataset",
    "Mixer",
    "Record",
    "collate",
    "make_loader",
    "read_data",
    "train_transform",
    "write_shapes",
]
_HOMES = {
    "Annotations": "sepc_zoo.data.annotations",
    "Augmentation": "sepc_zoo.data.transforms.augmentation",
    "Batch": "sepc_zoo.data.dataset",
    "DataError": "sepc_zoo.data.problems",
    "DetectionDataset": "sepc_zoo.data.dataset",
    "FORMATS": "sepc_zoo.data.formats.reader",
    "Mixer": "sepc_zoo.data.transforms.mixing",
    "Record": "sepc_zoo.data.annotations",
    "collate": "sepc_zoo.data.dataset",
    "make_loader": "sepc_zoo.data.dataset",
    "read_data": "sepc_zoo.data.formats.reader",
    "train_transform": "sepc_zoo.data.transforms.pipeline",
    "write_shapes": "sepc_zoo.data.synthetic",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
