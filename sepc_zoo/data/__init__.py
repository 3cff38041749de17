"""Data sets: reading, augmenting, batching."""

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
