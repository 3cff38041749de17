"""The tables of a COCO instances file: images and categories as dicts, boxes as columns."""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from sepc_zoo.data.formats.coco_windows import read_in_windows
from sepc_zoo.data.formats.layout import report_duplicates
from sepc_zoo.data.formats.parsing import parse_box, parse_id
from sepc_zoo.data.listing import BoxColumns, ListedImage, ListedImages
from sepc_zoo.data.problems import Kind, Problem, unreadable

Id = int | str  # as ``parse_id`` returns it
NO_ID = -(2**63)
Int64 = Annotated[int, msgspec.Meta(gt=NO_ID, le=2**63 - 1)]
WRITTEN_ID = int | float | str
KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": WRITTEN_ID, "file_name": str},
    "categories": {"id": WRITTEN_ID, "name": str},
    "annotations": {"image_id": WRITTEN_ID, "category_id": WRITTEN_ID},
}

Entry = tuple[str, dict[str, Any]]  # place, for messages, and content


class Annotation(msgspec.Struct, gc=False):
    """An annotation in its usual form, which is decoded many times faster than into a dict."""

    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = 0
    id: Int64 = NO_ID


class CocoFile:
    """The content of a COCO instances file; its ``problems`` are listed by table.

    Raises:
        DataError: the file cannot be read, or is not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clear()
        try:
            with path.open("rb") as file:
                self.tables: dict[str, Any] = read_in_windows(file, self._read)
        except OSError as error:
            raise unreadable(path, error.strerror) from error
        except (ValueError, RecursionError, msgspec.MsgspecError):
            # The standard library reads more, and its errors say what is wrong.
            self._clear()
            self.tables = self._load(path.read_bytes())
            if not isinstance(self.tables, dict):
                text = "not a COCO instances file, which is a JSON object"
                raise unreadable(path, text) from None
            self._read(self._take("annotations"))

    def _clear(self) -> None:
        self.problems: dict[str, list[Problem]] = {table: [] for table in KEYS}
        self.integers = array("q")  # a box has five: entry, id, image, category, iscrowd
        self.floats = array("d")  # a box has five: x, y, width, height, area
        self.image_ids: dict[Id, int] = {}  # numbers of the ids, in order of appearance
        self.category_ids: dict[Id, int] = {}
        self.odd_ids: dict[int, Id] = {}  # ids of annotations that are no int64, by entry
        self.num_entries = 0

    def _read(self, entries: Iterable[Any]) -> None:
        """Add annotations to the columns, from their JSON text or from objects."""
        decode = msgspec.json.Decoder(Annotation).decode
        images, categories = self.image_ids, self.category_ids
        for i, raw in enumerate(entries, start=self.num_entries):
            self.num_entries += 1
            a: Annotation | None
            try:
                a = decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
                a = self._parse(raw, i)
            if a is None:
                continue
            x, y, width, height = a.bbox
            area = width * height if a.area is None else a.area
            image = images.setdefault(a.image_id, len(images))
            category = categories.setdefault(a.category_id, len(categories))
            self.integers.extend((i, a.id, image, category, bool(a.iscrowd)))
            self.floats.extend((x, y, width, height, area))

    def _parse(self, raw: Any, index: int) -> Annotation | None:
        """Parse an annotation in any other form; None where it is broken."""
        entry = self._check(raw, "annotations", index)
        if not entry or not (box := parse_box(*entry, self.problems["annotations"])):
            return None
        annotation = entry[1]
        own_id = NO_ID if annotation.get("id") is None else parse_id(annotation["id"])
        if not isinstance(own_id, int) or not NO_ID <= own_id < 2**63:
            self.odd_ids[index], own_id = own_id, NO_ID
        ids = annotation["image_id"], annotation["category_id"]
        return Annotation(*ids, box.bbox, box.area, box.iscrowd, own_id)  # type: ignore[arg-type]

    def entries(self, table: str) -> Iterator[Entry]:
        """List the well-formed entries of a table with their places; report the others."""
        ids = []
        for i, raw in enumerate(self._take(table)):
            if entry := self._check(raw, table, i):
                ids.append(entry[1]["id"])
                yield entry
        self._report_duplicates(ids, "duplicate id", table)

    def give_boxes(
        self,
        ids: Iterable[Id],
        images: Sequence[ListedImage],
        categories: Sequence[Mapping[str, Any]],
    ) -> ListedImages:
        """Assign the boxes to their images, and the categories to their labels.

        If images share an id and it has boxes, these images are left out, as the image of each box
        is unknown. Boxes whose category id has several names have no class.

        Args:
            ids: The id of each image.
            categories: In the order of their labels.
        """
        by_id: dict[Id, list[int]] = defaultdict(list)
        for i, image_id in enumerate(ids):
            by_id[image_id].append(i)
        first = [by_id[i][0] if i in by_id else -1 for i in self.image_ids]
        names: dict[Id, set[str]] = defaultdict(set)
        for category in categories:
            names[category["id"]].add(category["name"])
        label_of = {c["id"]: i for i, c in enumerate(categories) if len(names[c["id"]]) == 1}
        texts = [
            f"{i} ({' or '.join(map(repr, sorted(names[i])))})" if i in names else str(i)
            for i in self.category_ids
        ]

        integers = np.frombuffer(self.integers, dtype=np.int64).reshape(-1, 5)
        floats = np.frombuffer(self.floats, dtype=np.float64).reshape(-1, 5)
        image = np.array(first, dtype=np.int64)[integers[:, 2]]
        known_ids = list(self.image_ids)
        for i, known, number, *_ in integers[image < 0].tolist():
            text = f"there is no image with the id {known_ids[number]}"
            place = _place(self.path, i, self.odd_ids.get(i, known))
            self._report("annotations", place, text)
        own_ids, odd_ids = integers[integers[:, 1] != NO_ID, 1], self.odd_ids.values()
        if len(np.unique(own_ids)) < len(own_ids) or len({*odd_ids}) < len(odd_ids):
            ids = [*own_ids.tolist(), *odd_ids]
            self._report_duplicates(ids, "annotation id twice", "annotations")

        rows = np.flatnonzero(image >= 0)
        counts = np.bincount(image[rows], minlength=len(images))
        is_clear = np.ones(len(images), dtype=bool)
        for image_id, same in by_id.items():
            if len(same) > 1 and (number := int(counts[same].sum())):
                is_clear[same] = False
                text = (
                    f"{' and '.join(images[i].path.name for i in same)} share the id {image_id}, "
                    f"and which of them its {number} boxes belong to is unknown"
                )
                self._report("images", f"{self.path.name}: images", text)
        rows = rows[is_clear[image[rows]]]
        rows = rows[np.argsort(image[rows], kind="stable")]
        entry, own_id, _, category, iscrowd = integers[rows].T
        bbox, area = floats[rows, :4], floats[rows, 4]
        xyxy = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
        labels = np.array([label_of.get(i, -1) for i in self.category_ids], dtype=np.int64)
        columns = BoxColumns(xyxy, labels[category], iscrowd, area, bbox)
        path, odd = self.path, self.odd_ids  # a reference to ``self`` would keep its columns

        def describe(row: int) -> tuple[str, str]:
            i = int(entry[row])
            return _place(path, i, odd.get(i, int(own_id[row]))), texts[category[row]]

        return ListedImages([*compress(images, is_clear)], counts[is_clear], columns, describe)

    def _take(self, table: str) -> list[Any]:
        entries = self.tables.pop(table, None)
        if isinstance(entries, list):
            return entries
        self._report(table, str(self.path), f"has no list {table!r}")
        return []

    def _check(self, raw: Any, table: str, index: int) -> Entry | None:
        """Decode an entry, check its keys, and bring its ids into one form."""
        entry = self._load(raw) if isinstance(raw, msgspec.Raw) else raw
        where = f"{self.path.name}: {table}[{index}]"
        if not isinstance(entry, dict):
            self._report(table, where, "is not an object")
            return None
        if "id" in entry:
            where += f" (id {entry['id']})"
        keys = KEYS[table]
        wrong = [key for key, kind in keys.items() if not isinstance(entry.get(key), kind)]
        for key in wrong:
            what = "text" if keys[key] is str else "number or text"
            self._report(table, where, f"{key!r} is missing or no {what}")
        if wrong:
            return None
        return where, entry | {key: parse_id(entry[key]) for key in keys if keys[key] is not str}

    def _load(self, text: Any) -> Any:
        try:
            return json.loads(bytes(text))
        except (ValueError, RecursionError) as error:
            raise unreadable(self.path, f"not JSON: {error}") from error

    def _report(self, table: str, where: str, text: str) -> None:
        self.problems[table].append(Problem("broken entry", where, text))

    def _report_duplicates(self, ids: Sequence[Id], kind: Kind, table: str) -> None:
        where, text = f"{self.path.name}: {table}", "the id {} is there twice"
        self.problems[table] += report_duplicates(ids, kind, where, text)


def _place(path: Path, entry: int, own_id: Id) -> str:
    where = f"{path.name}: annotations[{entry}]"
    return where if own_id == NO_ID else f"{where} (id {own_id})"
