import os

import pytest
import torch
from data_files import problems_of, write_image
from PIL import Image

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.formats.yolo import yolo_splits

HALF = "0 0.5 0.5 0.5 0.5"  # the middle of an image of 64 x 48
MIDDLE = [16, 12, 48, 36]
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_split(root, labels, images="images/train", texts="labels/train"):
    """An image for each stem of ``labels``, and a label file where the text is not None."""
    for stem, text in labels.items():
        write_image(root / images / f"{stem}.png")
        if text is not None:
            write_text(root / texts / f"{stem}.txt", text)


def boxes_of(root, split="train", **kwargs):
    records = read_data(root, split, **kwargs).records
    return [(record.path.name, record.boxes.tolist(), record.labels.tolist()) for record in records]


@pytest.fixture
def root(tmp_path):
    write_text(tmp_path / "data.yaml", YAML)
    return tmp_path


# ------------------------------------------------------------------------------------ layouts

ONE = [("a.png", [MIDDLE], [0])]


@pytest.mark.parametrize(
    ("text", "images", "texts"),
    [
        ("train: images/train\nnames: [cat]", "images/train", "labels/train"),
        ("train: images/train/\nnames: {0: cat}", "images/train", "labels/train"),
        ("train: [images/train]\nnames: {'0': cat}", "images/train", "labels/train"),
        ("path: .\ntrain: images/train\nnames: [cat]", "images/train", "labels/train"),
        ("path: ../datasets/x\ntrain: images/train\nnames: [cat]", "images/train", "labels/train"),
        ("path: inner\ntrain: images\nnames: [cat]", "inner/images", "inner/labels"),
        ("train: ../train/images\nnc: 1\nnames: ['cat']", "train/images", "train/labels"),
        ("train: train\nnames: [cat]", "train/images", "train/labels"),
        ("train: train\nnames: [cat]", "train", "train"),
        ("train: images\nnames: [cat]", "images/deep/er", "labels/deep/er"),
        ("train: images/train\ntest:\nnames:\n  0: cat", "images/train", "images/train"),
        ("train: images\\train\nnames: [cat]", "images/train", "labels/train"),
        ("\ufefftrain: images/train\r\nnames: [cat]\r\n", "images/train", "labels/train"),
    ],
)
def test_data_yaml_is_read_in_all_its_variants(text, images, texts, tmp_path):
    root = tmp_path / "set"
    write_text(root / "data.yaml", text)
    write_split(root, {"a": HALF}, images, texts)
    assert boxes_of(root) == ONE
    assert [*yolo_splits(root)] == ["train"]


def test_an_absolute_path_is_followed(tmp_path):
    write_split(tmp_path / "far", {"a": HALF})
    text = f"path: {tmp_path / 'far'}\ntrain: images/train\nnames: [cat]"
    write_text(tmp_path / "near" / "data.yaml", text)
    assert boxes_of(tmp_path / "near") == ONE


def test_the_yaml_file_itself_may_be_given(tmp_path):
    write_split(tmp_path, {"a": HALF})
    write_text(tmp_path / "cats.yaml", "train: images/train\nnames: [cat]")
    assert len(read_data(tmp_path / "cats.yaml", "train").records) == 1


def test_several_folders_are_read_in_order(root):
    write_text(root / "data.yaml", "train: [images/b, images/a]\nnames: [cat]")
    write_split(root, {"2": HALF, "1": HALF}, "images/a", "labels/a")
    write_split(root, {"3": None}, "images/b", "labels/b")
    assert [name for name, _, _ in boxes_of(root)] == ["3.png", "1.png", "2.png"]


@pytest.mark.parametrize("prefix", ["./", "", "images/../", "..\\", "data/", "{root}/"])
def test_a_list_of_images_is_read_in_order(prefix, tmp_path):
    root = tmp_path / "set"
    write_text(root / "data.yaml", "train: train.txt\nnames: [cat]")
    write_split(root, {"a": HALF, "b": None, "unlisted": HALF})
    prefix = prefix.format(root=root)
    lines = [f"{prefix}images/train/b.png", "", f"{prefix}images\\train\\a.png "]
    write_text(root / "train.txt", "\ufeff" + "\r\n".join(lines))
    assert boxes_of(root) == [("b.png", [], []), *ONE]
    assert [record.image_id for record in read_data(root, "train").records] == [1, 2]


FOLDERS = [
    ("classes.txt", "images/train", "labels/train"),
    ("labels/classes.txt", "images/train", "labels/train"),
    ("labels/train/classes.txt", "images/train", "labels/train"),
    ("classes.txt", "train/images", "train/labels"),
    ("train/labels/classes.txt", "train/images", "train/labels"),
    ("train/_darknet.labels", "train", "train"),
    ("classes.txt", "train", "train"),
    ("classes.txt", "images", "labels"),
    ("labels/classes.txt", "images", "labels"),
    ("classes.txt", ".", "."),
]


@pytest.mark.parametrize(("classes", "images", "texts"), FOLDERS)
def test_a_folder_with_classes_txt_needs_no_yaml(classes, images, texts, tmp_path):
    write_text(tmp_path / classes, "cat\r\ndog\r\n\r\n")
    write_split(tmp_path, {"a": HALF}, images, texts)
    assert boxes_of(tmp_path) == ONE
    annotations = read_data(tmp_path, "train")
    assert (annotations.label_names, annotations.category_ids) == (("cat", "dog"), (0, 1))


def test_all_splits_of_a_folder_with_classes_txt_are_found(tmp_path):
    write_text(tmp_path / "classes.txt", "cat")
    for split in ("train", "valid", "test"):
        write_split(tmp_path, {"a": HALF}, f"{split}/images", f"{split}/labels")
    write_image(tmp_path / "unlabelled" / "a.png")
    assert sorted(yolo_splits(tmp_path)) == ["test", "train", "valid"]
    assert boxes_of(tmp_path, "val") == ONE


def test_contradicting_class_files_are_both_named(tmp_path):
    for split, text in (("train", "cat\ndog"), ("valid", "dog\ncat")):
        write_split(tmp_path, {"a": HALF}, split, split)
        write_text(tmp_path / split / "_darknet.labels", text)
    (problem,) = problems_of(tmp_path)
    assert "valid/_darknet.labels: has other classes than" in problem
    assert "train/_darknet.labels" in problem


def test_images_and_label_files_may_be_links(root):
    write_split(root / "store", {"x": HALF}, "pictures", "texts")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    (root / "images" / "train").mkdir()
    (root / "images" / "train" / "a.png").symlink_to(root / "store" / "pictures" / "x.png")
    (root / "labels" / "train").symlink_to(root / "store" / "texts", target_is_directory=True)
    (root / "store" / "texts" / "x.txt").rename(root / "store" / "texts" / "a.txt")
    assert boxes_of(root) == ONE


def test_a_folder_that_links_to_itself_is_read_once(root):
    write_split(root, {"a": HALF})
    (root / "images" / "train" / "again").symlink_to(root / "images" / "train")
    assert boxes_of(root) == ONE


def test_suffixes_may_be_upper_case(root):
    write_split(root, {"a": HALF})
    (root / "images" / "train" / "a.png").rename(root / "images" / "train" / "a.PNG")
    assert boxes_of(root) == [("a.PNG", [MIDDLE], [0])]


def test_a_file_name_need_not_be_utf8(root):
    write_split(root, {"a": HALF})
    for folder, suffix in ((b"images", b".png"), (b"labels", b".txt")):
        place = os.path.join(os.fsencode(root), folder, b"train")
        try:
            os.rename(os.path.join(place, b"a" + suffix), os.path.join(place, b"\xe9" + suffix))
        except OSError:
            pytest.skip("this file system has UTF-8 names only")
    assert [boxes for _, boxes, _ in boxes_of(root)] == [[MIDDLE]]


# -------------------------------------------------------------------------------------- lines


def test_boxes_are_in_the_pixels_of_the_upright_image(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images" / "train" / "a.jpg", (64, 48), exif=exif)
    write_text(root / "labels" / "train" / "a.txt", HALF)
    (record,) = read_data(root, "train").records
    assert record.size == (64, 48)
    assert record.boxes.tolist() == [[12, 16, 36, 48]]


def test_pixels_survive_the_text(root):
    boxes = torch.randint(0, 24, (500, 4), generator=torch.Generator().manual_seed(0))
    boxes[:, 2:] += boxes[:, :2] + 1
    lines = [
        f"0 {(x1 + x2) / 2 / 64!r} {(y1 + y2) / 2 / 48!r} {(x2 - x1) / 64!r} {(y2 - y1) / 48!r}"
        for x1, y1, x2, y2 in boxes.unique(dim=0).tolist()
    ]
    write_split(root, {"a": "\n".join(lines)})
    assert read_data(root, "train").records[0].boxes.tolist() == boxes.unique(dim=0).tolist()


def test_an_image_without_a_label_file_or_with_an_empty_one_has_no_boxes(root):
    write_split(root, {"a": None, "b": "", "c": "\r\n \n", "d": HALF})
    assert [len(boxes) for _, boxes, _ in boxes_of(root)] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{HALF}\r\n\r\n",
        "0\t0.5\t0.5\t0.5\t0.5",
        "  0   .5 5e-1 0.50000 0.5  ",
        "0.0 0.5 0.5 0.5 0.5",
        "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75",  # a polygon
        "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75",
        "0 0.25 0.25 0.75 0.5 0.5 0.75",
    ],
)
def test_a_line_may_be_written_in_many_ways(text, root):
    write_split(root, {"a": text})
    assert boxes_of(root) == ONE


def test_keypoints_declared_in_the_yaml_are_ignored(root):
    write_text(root / "data.yaml", YAML + "kpt_shape: [1, 2]")
    write_split(root, {"a": f"{HALF} 0.1 0.9"})
    assert boxes_of(root) == ONE


def test_a_value_is_rounded_into_the_image(root):
    write_split(root, {"a": "1 0.5 0.5 1.000001 1.0"})
    assert boxes_of(root) == [("a.png", [[0, 0, 64, 48]], [1])]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0,5 0,5 0,5 0,5", "'0 0,5 0,5 0,5 0,5' is not numbers"),
        ("cat 0.5 0.5 0.5 0.5", "is not numbers"),
        ("0 0.5 0.5 0.5", "4 columns"),
        ("0", "1 columns"),
        (f"{HALF} 0.93", "predictions with their confidence"),
        (f"{HALF} 0.1 0.2 0.3", "8 columns"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is no whole number"),
        ("nan 0.5 0.5 0.5 0.5", "class nan is no whole number"),
        ("2 0.5 0.5 0.5 0.5", "category 2 is not among the 2 classes"),
        ("-1 0.5 0.5 0.5 0.5", "category -1 is not among the 2 classes"),
        (b"\xff\xfe0\x00", "not UTF-8"),
    ],
)
def test_a_broken_line_is_named_and_never_dropped(line, says, root):
    first = f"{HALF}\n\n".encode()
    write_split(root, {"a": first + (line if isinstance(line, bytes) else line.encode())})
    (problem,) = problems_of(root, drop_bad_boxes=True)
    assert "labels/train/a.txt:3: " in problem
    assert says in problem


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 32 24 32 24", "goes beyond 0 ... 1"),
        ("0 0.5 2.1 0.5 0.5", "goes beyond 0 ... 1"),
        ("0 1.3 0.5 0.5 0.5", "lies outside the 64x48 image"),
        ("0 inf 0.5 0.5 0.5", "goes beyond 0 ... 1"),
        ("0 nan 0.5 0.5 0.5", "not finite"),
        ("0 0.5 0.5 0 0.5", "no positive width"),
        (HALF.replace("0.5", "0.50", 1), "the same as line 1"),
    ],
)
def test_a_bad_box_is_named_and_can_be_dropped(line, says, root):
    write_split(root, {"a": f"{HALF}\n{line}\n1 0.5 0.5 0.5 0.5"})
    (problem,) = problems_of(root)
    assert problem.startswith("labels/train/a.txt:2: ")
    assert says in problem
    annotations = read_data(root, "train", drop_bad_boxes=True)
    assert annotations.records[0].labels.tolist() == [0, 1]
    assert tuple(map(str, annotations.dropped)) == (problem,)


# ----------------------------------------------------------------------------- broken data sets


def test_class_numbers_may_have_gaps(root):
    write_text(root / "data.yaml", "train: images/train\nnames: {7: dog, 2: cat}")
    write_split(root, {"a": HALF.replace("0", "7", 1)})
    annotations = read_data(root, "train")
    assert (annotations.label_names, annotations.category_ids) == (("cat", "dog"), (2, 7))
    assert annotations.records[0].labels.tolist() == [1]


def test_classes_without_names_are_called_by_their_numbers(root):
    write_text(root / "data.yaml", "train: images/train\nnc: 2")
    write_split(root, {"a": HALF})
    assert read_data(root, "train").label_names == ("0", "1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\nnc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names"),
        ("train: images/train\nnames: [cat, no]", "names: 1: False is no text"),
        ("train: images/train\nnames: [cat, ]\n  - dog", "not YAML"),
        ("train: images/train\nnames: {cat: 0}", "names: 'cat' is no class number"),
        ("train: images/train\nnames: coco.names", "there is no file 'coco.names'"),
        ("train: images/train", "names: expected a list"),
        ("train: images/train\nnames: []", "names: expected a list"),
        ("train: elsewhere/images\nnames: [cat]", "there is no 'elsewhere/images'"),
        ("- train", "expected keys like 'train'"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [cat]", "not YAML"),
        (b"train: images/train\nnames: [caf\xe9]", "data.yaml:2: not UTF-8"),
    ],
)
def test_a_broken_yaml_is_named_with_the_entry(text, says, root):
    write_split(root, {"a": HALF})
    write_text(root / "data.yaml", text)
    (problem,) = problems_of(root)
    assert str(root / "data.yaml") in problem
    assert says in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat\n\ndog", "classes.txt:2: a class without a name"),
        ("\n \n", "classes.txt: has no classes"),
        (b"cat\nch\xe2t", "classes.txt:2: not UTF-8"),
        ("cat\ndog\ncat", "classes.txt: two classes are named 'cat'"),
    ],
)
def test_a_broken_class_file_is_named_with_the_line(text, says, tmp_path):
    write_split(tmp_path, {"a": HALF}, "images", "labels")
    write_text(tmp_path / "classes.txt", text)
    (problem,) = problems_of(tmp_path)
    assert says in problem


def test_labels_without_an_image_are_a_problem_but_notes_are_not(root):
    write_split(root, {"a": HALF})
    for stem, text in {"b": f"\n{HALF}", "notes": "by me", "empty": "", "classes": "c"}.items():
        write_text(root / "labels" / "train" / f"{stem}.txt", text)
    (problem,) = problems_of(root)
    assert problem.endswith("labels/train/b.txt: has labels, but there is no image of this name")


def test_two_images_of_one_stem_are_both_named(root):
    write_split(root, {"a": HALF})
    write_image(root / "images" / "train" / "a.bmp")
    (problem,) = problems_of(root)
    for text in ("a.png", "a.bmp", "labels/train/a.txt"):
        assert text in problem


def test_a_split_without_any_label_file_is_a_problem(root):
    write_split(root, {"a": None, "b": None})
    (problem,) = problems_of(root)
    assert "no label file of any of the 2 images" in problem


def test_a_split_without_images_is_a_problem(root):
    (root / "images" / "train").mkdir(parents=True)
    (problem,) = problems_of(root)
    assert "images/train: no images inside" in problem


def test_a_broken_list_of_images_is_named_by_line(root):
    write_text(root / "data.yaml", "train: train.txt\nnames: [cat]")
    write_split(root, {"a": HALF})
    write_text(root / "train.txt", "images/train/a.png\nimages/train/z.png\n./images/train/a.png")
    problems = problems_of(root)
    assert len(problems) == 2
    assert "train.txt:2: there is no image 'images/train/z.png'" in problems[0]
    assert "a.png is there twice" in problems[1]


def test_every_broken_file_and_line_is_listed_at_once(root):
    write_split(root, {"a": "0 1", "b": f"{HALF}\n9 0.5 0.5 0.5 0.5", "c": "x", "d": HALF})
    write_text(root / "images" / "train" / "d.png", b"no image")
    expected = ["a.txt:1: ", "b.txt:2: category 9", "c.txt:1: ", "d.png: not an image"]
    problems = problems_of(root)
    assert len(problems) == len(expected)
    for text in expected:
        assert sum(text in problem for problem in problems) == 1, text


def test_problems_have_kinds(root):
    good = "1 0.5 0.5 0.5 0.5"
    write_split(root, {"a": f"{good}\n{good}\n0 9 9 9 9\n7 0.5 0.5 0.5 0.5\nx", "b": b"\xff"})
    write_text(root / "labels" / "train" / "c.txt", HALF)
    with pytest.raises(DataError) as caught:
        read_data(root, "train")
    found = {(problem.kind, problem.where.rpartition("/")[2]) for problem in caught.value.problems}
    assert found == {
        ("box twice", "a.txt:2"),
        ("box outside the image", "a.txt:3"),
        ("unknown category", "a.txt:4"),
        ("broken entry", "a.txt:5"),
        ("broken entry", "b.txt:1"),
        ("missing image", "c.txt"),
    }
