import random
import shutil
from collections import Counter

import pytest
from data_files import XYWH, coco_tables, write_tree
from faulty import write_picture
from PIL import Image

from sepc_zoo.data import DataError, write_shapes
from sepc_zoo.data.listing import ListedBox, ListedImage
from sepc_zoo.data.splitting import divide, hold_out, read_assignment, write_assignment


@pytest.fixture
def root(tmp_path):
    """Twenty different images to train on, with four boxes of two classes, and no other split."""
    names = [f"{i:02}.png" for i in range(20)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1 + (i > 15), "bbox": XYWH} for i in range(1, 21)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    tables = coco_tables(*names, annotations=boxes, categories=categories)
    write_tree(tmp_path / "set", {"annotations/instances_train.json": tables})
    (tmp_path / "set" / "train").mkdir()
    for name in names:
        write_picture(tmp_path / "set" / "train" / name)
    return tmp_path / "set"


def names_of(listing):
    return [image.path.name for image in listing.images]


def test_without_a_validation_split_a_fifth_is_held_out_and_said(root):
    train, val, note = divide(root)
    assert (len(train.images), len(val.images)) == (16, 4)
    assert not {*names_of(train)} & {*names_of(val)}
    assert note == (
        "the data has no validation split: 4 of the 20 images of 'train' are held out to validate "
        "on (--val-fraction 0.2 --split-seed 0)"
    )


def test_a_validation_split_is_used_as_it_is(tmp_path):
    write_shapes(tmp_path / "shapes", train=8, val=3, size=(48, 64))
    train, val, note = divide(tmp_path / "shapes")
    assert (len(train.images), len(val.images), note) == (8, 3, "")


def test_a_share_that_is_asked_for_is_held_out_of_the_training_images(tmp_path):
    write_shapes(tmp_path / "shapes", train=8, val=3, size=(48, 64))
    train, val, note = divide(tmp_path / "shapes", fraction=0.25)
    assert (len(train.images), len(val.images)) == (6, 2)
    assert note.startswith("2 of the 8 images of 'train' are held out")
    assert note.endswith("; the split 'val' is not used")


def test_a_split_asked_for_by_another_name_must_exist(root):
    with pytest.raises(DataError, match=r"the split minival\* does not exist"):
        divide(root, val="minival")


def test_every_class_has_its_share_in_both_parts(root):
    for seed in range(5):
        labels = [
            Counter(i.boxes[0].label for i in part.images) for part in divide(root, seed=seed)[:2]
        ]
        assert labels == [{0: 12, 1: 4}, {0: 3, 1: 1}]


def test_the_choice_depends_on_seed_and_names_alone(root):
    first = divide(root)
    moved = shutil.copytree(root, root.parent / "moved")
    assert names_of(divide(moved).val) == names_of(first.val)
    images = [*first.train.images, *first.val.images]
    random.Random(0).shuffle(images)
    chosen = hold_out(images, 0.2, 0)
    assert {images[i].path.name for i in chosen} == {*names_of(first.val)}
    assert names_of(divide(root, seed=1).val) != names_of(first.val)


@pytest.mark.parametrize("seed", range(6))
def test_equal_images_stay_together(seed, root):
    folder = root / "train"
    for i in (3, 7, 11, 15):
        shutil.copyfile(folder / "00.png", folder / f"{i:02}.png")
    train, val, _ = divide(root, seed=seed)
    same = {"00.png", "03.png", "07.png", "11.png", "15.png"}
    assert same <= {*names_of(train)} or same <= {*names_of(val)}


@pytest.mark.parametrize("seed", range(6))
def test_roboflows_copies_of_an_image_stay_together(seed, tmp_path):
    images = [
        ListedImage(i, tmp_path / f"{i // 3}_jpg.rf.{i:x}af.jpg", None, []) for i in range(30)
    ]
    chosen = hold_out(images, 0.2, seed)
    assert 0 < len(chosen) <= 9
    assert all(len({j in chosen for j in range(i, i + 3)}) == 1 for i in range(0, 30, 3))


def many_images(tmp_path, rng, count=300):
    """Images with up to three of ten classes, of very different frequency; some without boxes."""
    for i in range(count):
        labels = {min(int(rng.expovariate(0.6)), 9) for _ in range(rng.randrange(4))}
        boxes = [ListedBox("", (0, 0, 1, 1), label, "", 0, 1.0) for label in labels]
        yield ListedImage(i, tmp_path / f"{i}.jpg", None, boxes)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_shares_of_classes_that_occur_together_are_close_to_the_fraction(fraction, tmp_path):
    images = list(many_images(tmp_path, random.Random(0)))
    chosen = hold_out(images, fraction, 0)
    total, held = (
        Counter(box.label for i in part for box in images[i].boxes) for part in (range(300), chosen)
    )
    assert len(chosen) == pytest.approx(300 * fraction, abs=6)
    for label, number in total.items():
        assert held[label] == pytest.approx(number * fraction, abs=2)
        assert held[label] < number


def test_crowds_and_empty_images_are_divided_too(tmp_path):
    images = [ListedImage(i, tmp_path / f"{i}.jpg", None, []) for i in range(10)]
    assert len(hold_out(images, 0.2, 0)) == 2


def test_a_single_image_cannot_be_divided(tmp_path):
    write_tree(
        tmp_path, {"annotations/instances_train.json": coco_tables("a.png"), "train/a.png": None}
    )
    with pytest.raises(DataError, match="1 images are too few to divide"):
        divide(tmp_path)


# --------------------------------------------------------------------------------- user's lists


LISTS = {
    "comma": "00.png,train\n01.png,val\n",
    "header": "image,split\n00.png,train\n01.png,val\n",
    "space": "00.png train\n\n01.png val",
    "tab and quotes": '"00.png"\ttrain\r\n"01.png"\tval\r\n',
    "paths": "/home/me/set/train/00.png,train\ntrain\\01.png;val",
    "stems": "00,train\n01,val",
    "other names": "00.png,training\n01.png,Validation",
}


@pytest.mark.parametrize("name", LISTS)
def test_own_lists_divide_the_images(name, root, tmp_path):
    (tmp_path / "own.csv").write_text(LISTS[name])
    train, val, note = divide(root, file=tmp_path / "own.csv")
    assert (names_of(train), names_of(val)) == (["00.png"], ["01.png"])
    assert note == (
        f"1 image and 1 image to train and validate on are those of {tmp_path / 'own.csv'}; "
        "18 images are not in it and left out"
    )


def test_own_lists_may_be_json(root, tmp_path):
    (tmp_path / "own.json").write_text('{"train": ["00.png", "02.png"], "val": ["01.png"]}')
    train, val, _ = divide(root, file=tmp_path / "own.json")
    assert (names_of(train), names_of(val)) == (["00.png", "02.png"], ["01.png"])


def test_own_lists_divide_the_images_of_all_splits(tmp_path):
    root = write_shapes(tmp_path / "shapes", train=3, val=2, size=(48, 64))
    files = sorted(root.glob("*/*.jpg")) + sorted(root.glob("*/*.png"))
    train, val = files[1:], files[:1]
    write_assignment(tmp_path / "own.csv", {"train": train, "val": val})
    parts = divide(root, file=tmp_path / "own.csv")
    assert [len(part.images) for part in parts[:2]] == [4, 1]
    assert [image.path for image in parts.val.images] == val


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("00.png,train\nno.png,val", "0 images of the data are named 'no.png'"),
        ("00.png,train\n00.png,val", "'00.png' is in train and in val"),
        ("00.png,train\n01.png", "own.csv:2: expected an image and its split"),
        ("00.png,train\n01.png,test", r"the split val\* does not exist; there are: test, train"),
    ],
)
def test_own_lists_that_do_not_fit_are_refused(text, says, root, tmp_path):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        divide(root, file=tmp_path / "own.csv")


def test_what_is_written_is_read_back_whatever_the_names(tmp_path):
    files = [
        tmp_path / name for name in ("a b.jpg", "a,b.jpg", 'a"b".jpg', "é.jpg", "caf\udce9.jpg")
    ]
    write_assignment(tmp_path / "split.csv", {"train": files[:2], "val": files[2:]})
    expected = list(zip(map(str, files), ("train", "train", *["val"] * 3), strict=True))
    assert read_assignment(tmp_path / "split.csv") == expected


def test_files_of_one_length_but_other_content_are_no_copies(tmp_path):
    images = []
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.bmp")
        images.append(ListedImage(i, tmp_path / f"{i}.bmp", None, []))
    assert len(hold_out(images, 0.5, 0)) == 2
