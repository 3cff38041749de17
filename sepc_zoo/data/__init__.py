"""Data sets: reading, augmenting, batching."""

from sepc_zoo.data.annotations import Annotations, DataError, Record
from sepc_zoo.data.dataset import Batch, DetectionDataset, collate, make_loader, make_target
from sepc_zoo.data.formats.coco import read_coco, read_coco_file, write_coco
from sepc_zoo.data.formats.huggingface import read_huggingface
from sepc_zoo.data.formats.reader import data_splits, list_data, read_data
from sepc_zoo.data.formats.voc import read_voc
from sepc_zoo.data.formats.yolo import read_yolo
from sepc_zoo.data.synthetic import write_shapes
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.mixing import Mixer, Target
from sepc_zoo.data.transforms.pipeline import Transform, train_transform

__all__ = [
    "Annotations",
    "Augmentation",
    "Batch",
    "DataError",
    "DetectionDataset",
    "Mixer",
    "Record",
    "Target",
    "Transform",
    "collate",
    "data_splits",
    "list_data",
    "make_loader",
    "make_target",
    "read_coco",
    "read_coco_file",
    "read_data",
    "read_huggingface",
    "read_voc",
    "read_yolo",
    "train_transform",
    "write_coco",
    "write_shapes",
]
