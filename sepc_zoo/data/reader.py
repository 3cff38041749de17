"""Reading a data set of any known layout."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.data.annotations import Annotations, DataError, Listing, build_annotations
from sepc_zoo.data.coco import coco_splits, list_coco
from sepc_zoo.data.voc import list_voc, voc_splits

SHOWN_NAMES = 20


class DataFormat(NamedTuple):
    """A layout of data sets: a folder is of this format if ``splits`` finds any in it."""

    layout: str  # what is looked for, in words
    splits: Callable[[Path], list[str]]
    list: Callable[[Path, str], Listing]


FORMATS = {
    "coco": DataFormat(
        "annotations/instances_<split>*.json beside <split>*/", coco_splits, list_coco
    ),
    "voc": DataFormat("ImageSets/Main/<split>.txt", voc_splits, list_voc),
}


def read_data(
    root: str | os.PathLike[str],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read one split of a data set; the folder's layout tells the format.

    Args:
        root: The data set's folder.
        split: For example "train" or "val".
        label_names: The classes in the order of their labels; by default the data set's own order.
        drop_bad_boxes: Leave out boxes that are empty, outside their image or not finite, rather
            than refuse the data set.

    Raises:
        DataError: an unknown layout, a missing split, or a list of all broken files and entries.
    """
    root = Path(root)
    listing = find_format(root).list(root, split)
    return build_annotations(listing, label_names, drop_bad_boxes)


def find_format(root: Path) -> DataFormat:
    """The format that a folder's layout tells.

    Raises:
        DataError: no such folder, or an unknown layout.
    """
    if not root.is_dir():
        raise DataError([f"{root}: no such folder"])
    for data_format in FORMATS.values():
        if data_format.splits(root):
            return data_format
    looked_for = "; ".join(
        f"{data_format.layout} ({name})" for name, data_format in FORMATS.items()
    )
    raise DataError([f"{root}: no known layout. Looked for {looked_for}. There is: {_names(root)}"])


def _names(root: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    more = [f"and {len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
    return ", ".join(names[:SHOWN_NAMES] + more) or "nothing"
