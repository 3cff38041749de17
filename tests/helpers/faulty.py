"""A small data set in the COCO layout, and ways to break it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

WIDTH, HEIGHT = 64, 48
CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
ORIENTATION = 0x0112


def write_good_data(root: Path) -> Path:
    """Three images to train on and two to validate on, with two boxes each, all different."""
    for split, count in (("train", 3), ("val", 2)):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for i in range(1, count + 1):
            write_picture(root / split / f"{split}{i}.jpg")
            images.append(image_entry(i, f"{split}{i}.jpg"))
            for category in (1, 2):
                boxes.append(box_entry(len(boxes) + 1, i, category, [10 * category, 5, 20, 30]))
        write_tables(root, split, {"images": images, "annotations": boxes, "categories": CLASSES})
    return root


def write_picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.effect_noise(size, 60).convert("RGB").save(path, exif=exif)


def image_entry(image_id: int, name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict:
    return {"id": image_id, "file_name": name, "width": size[0], "height": size[1]}


def box_entry(i: int, image_id: int, category_id: int, bbox: list[float]) -> dict:
    return {"id": i, "image_id": image_id, "category_id": category_id, "bbox": bbox}


def json_path(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def read_tables(root: Path, split: str) -> dict:
    return json.loads(json_path(root, split).read_text())


def write_tables(root: Path, split: str, tables: dict) -> None:
    json_path(root, split).parent.mkdir(exist_ok=True)
    json_path(root, split).write_text(json.dumps(tables))


def editing(change: Callable[[dict], object], split: str = "train") -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        tables = read_tables(root, split)
        change(tables)
        write_tables(root, split, tables)

    return edit


def adding_box(bbox: list, image_id: int = 1, category_id: int = 1) -> Callable[[Path], None]:
    return editing(lambda t: t["annotations"].append(box_entry(99, image_id, category_id, bbox)))


class Fault(NamedTuple):
    """A way to break data, the finding that names it, and the change of a clean copy."""

    break_data: Callable[[Path], object]
    severity: str
    where: str  # part of the finding's place
    text: str  # part of the finding's text
    fixed: str  # part of a change of the clean copy; "": no change
    splits: str = "train val"  # splits of the copy


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_pixels(root: Path) -> None:
    """Break a PNG inside; its ends stay whole."""
    path = root / "train" / "train1.png"
    Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    editing(lambda t: t["images"][0].update(file_name="train1.png"))(root)


def turn_picture(root: Path) -> None:
    write_picture(root / "train" / "train1.jpg", orientation=6)


def share_picture(root: Path) -> None:
    """Copy the first picture of val to train, under another name."""
    shutil.copyfile(root / "val" / "val1.jpg", root / "train" / "train1.jpg")


def drop_class(root: Path) -> None:
    def drop(tables):
        tables["categories"].pop()
        tables["annotations"] = [a for a in tables["annotations"] if a["category_id"] == 1]

    editing(drop)(root)


def add_alike(tables: dict) -> None:
    tables["categories"].append({"id": 7, "name": "Cat"})
    tables["annotations"].append(box_entry(99, 1, 7, [1, 2, 9, 8]))


def give_two_files_one_id(tables: dict) -> None:
    tables["images"][1]["id"] = 1
    tables["annotations"] = [a for a in tables["annotations"] if a["image_id"] != 2]


def name_by_text(tables: dict) -> None:
    tables["images"][2]["id"] = "x"
    for box in tables["annotations"]:
        box["image_id"] = "x" if box["image_id"] == 3 else box["image_id"]


def darken(path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


FAULTS = {
    "unreadable annotations": Fault(
        lambda root: json_path(root, "val").write_text("{"),
        *("error", "instances_val.json", "not JSON", "split left out", "train"),
    ),
    "broken entry": Fault(
        editing(lambda t: t["annotations"].append(box_entry(99, 77, 1, [1, 2, 3, 4]))),
        *("error", "instances_train.json: annotations[6] (id 99)", "no image with the id 77"),
        "not taken over: there is no image with the id 77",
    ),
    "duplicate id": Fault(
        editing(lambda t: t["images"].append(image_entry(1, "train1.jpg"))),
        *("error", "instances_train.json: images", "the id 1 is there twice"),
        "the ids were given anew",
    ),
    "no images": Fault(
        lambda root: (
            write_tables(root, "test", {"images": [], "annotations": [], "categories": CLASSES})
            or (root / "test").mkdir()
        ),
        *("error", "instances_test.json", "split 'test' has no images", "no image is left"),
    ),
    "missing image": Fault(
        lambda root: (root / "train" / "train1.jpg").unlink(),
        *("error", "train/train1.jpg", "No such file", "image with 2 boxes left out"),
    ),
    "broken image": Fault(
        damage_pixels,
        *("error", "train/train1.png", "", "image with 2 boxes left out"),
    ),
    "size before EXIF rotation": Fault(
        turn_picture,
        *("error", "train/train1.jpg", "annotated as 64x48", "2 boxes turned with it"),
    ),
    "wrong size": Fault(
        editing(lambda t: t["images"][0].update(width=100)),
        *("error", "train/train1.jpg", "annotated as 100x48", "image with 2 boxes left out"),
    ),
    "two classes of one name": Fault(
        editing(lambda t: t["categories"].append({"id": 7, "name": "cat"})),
        *("error", "instances_train.json", "two classes are named 'cat'", "id 7 ('cat') became 1"),
    ),
    "unknown category": Fault(
        adding_box([1, 2, 30, 20], category_id=9),
        *("error", "annotations[6] (id 99)", "category 9", "there is no category 9"),
    ),
    "class unknown to train": Fault(
        drop_class,
        *("error", "instances_val.json", "2 boxes are of class 'dog'", "class 'dog' added"),
    ),
    "box not finite": Fault(
        adding_box([1, 2, float("nan"), 20]),
        *("error", "annotations[6] (id 99)", "not finite", "box left out"),
    ),
    "box without area": Fault(
        adding_box([1, 2, 30, -4]),
        *("error", "annotations[6] (id 99)", "no positive width and height", "box left out"),
    ),
    "box outside the image": Fault(
        adding_box([70, 2, 30, 20]),
        *("error", "annotations[6] (id 99)", "outside the 64x48 image", "box left out"),
    ),
    "annotation id twice": Fault(
        editing(lambda t: t["annotations"][1].update(id=1)),
        *("warning", "instances_train.json: annotations", "the id 1 is there twice"),
        "the ids were given anew",
    ),
    "ids given anew": Fault(
        editing(
            lambda t: (t["images"][2].update(id="x"), t["annotations"].__delitem__(slice(4, 6)))
        ),
        *("warning", "instances_train.json: images", "an id is 'x', no whole number"),
        "the ids were given anew",
    ),
    "size swapped": Fault(
        editing(lambda t: t["images"][0].update(width=HEIGHT, height=WIDTH)),
        *("warning", "train/train1.jpg", "annotated as 48x64", "size corrected"),
    ),
    "box missing": Fault(
        adding_box([]),
        *("error", "annotations[6] (id 99)", "'bbox' is []", "not taken over"),
    ),
    "dark image": Fault(
        lambda root: darken(root / "train" / "train1.jpg"),
        *("warning", "train/train1.jpg", "no pixel is brighter than 0 of 255", ""),
    ),
    "no boxes": Fault(
        editing(lambda t: t["annotations"].clear(), "val"),
        *("warning", "instances_val.json", "no box of 'val' is learned or counted", ""),
    ),
    "image listed twice": Fault(
        editing(lambda t: t["images"].append(image_entry(9, "train1.jpg"))),
        *("warning", "train/train1.jpg", "listed more than once", "joined those of the first time"),
    ),
    "picture in two splits": Fault(
        share_picture,
        *("warning", "train/train1.jpg", "is in val too, as", "left out: it is in val too"),
    ),
    "picture twice in a split": Fault(
        lambda root: shutil.copyfile(root / "train" / "train1.jpg", root / "train" / "train2.jpg"),
        *("warning", "train/train2.jpg", "the same pixels as", ""),
    ),
    "class names alike": Fault(
        editing(add_alike),
        *("warning", "instances_train.json and instances_val.json", "'cat' (5 boxes), 'Cat' (1"),
        "class 'Cat' of 1 boxes became 'cat'",
    ),
    "box over the border": Fault(
        adding_box([40, 2, 30, 20]),
        *("warning", "annotations[6] (id 99)", "by 6 pixels", "clipped to its image"),
    ),
    "box of a pixel or less": Fault(
        adding_box([40, 2, 0.5, 20]),
        *("warning", "annotations[6] (id 99)", "covers 0.5x20 pixels", "box left out"),
    ),
    "box twice": Fault(
        adding_box([10, 5, 20, 30]),
        *("warning", "annotations[6] (id 99)", "annotations[0] (id 1)", "the same as"),
    ),
    "elongated box": Fault(
        adding_box([1, 2, 60, 2]),
        *("note", "annotations[6] (id 99)", "60 pixels wide and 2 high", ""),
    ),
    "class without boxes": Fault(
        editing(lambda t: t["categories"].append({"id": 3, "name": "owl"})),
        *("note", "instances_train.json", "class 'owl' has no boxes in train", "'owl' added"),
    ),
    "image without boxes": Fault(
        editing(lambda t: t["annotations"].__delitem__(slice(0, 2))),
        *("note", "train/train1.jpg", "no boxes", ""),
    ),
    "unused image": Fault(
        lambda root: write_picture(root / "train" / "more.jpg"),
        *("note", "train/more.jpg", "no split lists this file", "file not taken over"),
    ),
}


def break_everything(root: Path) -> None:
    """Break data in all ways at once; faults that would hide others get images of their own."""
    names = ("missing", "truncated", "turned", "resized", "leak", "copy", "swapped", "dark")
    for i, name in enumerate(names, start=10):
        write_picture(root / "train" / f"{name}.jpg", orientation=6 if name == "turned" else 1)
        sizes = {"resized": (100, HEIGHT), "swapped": (HEIGHT, WIDTH)}
        size = sizes.get(name, (WIDTH, HEIGHT))
        entry = image_entry(i, f"{name}.jpg", size)
        editing(lambda t, entry=entry: t["images"].append(entry))(root)
        adding_box([5, 6, 30, 20], image_id=i)(root)
    (root / "train" / "missing.jpg").unlink()
    truncate(root / "train" / "truncated.jpg")
    darken(root / "train" / "dark.jpg")
    shutil.copyfile(root / "val" / "val1.jpg", root / "train" / "leak.jpg")
    shutil.copyfile(root / "train" / "train1.jpg", root / "train" / "copy.jpg")
    editing(lambda t: t["categories"].append({"id": 4, "name": "yak"}), "val")(root)
    editing(lambda t: t["annotations"].append(box_entry(9, 1, 4, [1, 2, 9, 9])), "val")(root)
    write_picture(root / "val" / "empty.jpg")
    editing(lambda t: t["images"].append(image_entry(9, "empty.jpg")), "val")(root)
    above = ("unreadable", "missing", "broken image", "size", "wrong", "picture", "image without")
    above += ("dark", "no boxes")
    for kind, fault in FAULTS.items():
        if not kind.startswith((*above, "class unknown")):
            fault.break_data(root)
    (root / "minival").mkdir()
    json_path(root, "minival").write_text("{")
