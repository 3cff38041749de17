"""Layouts as tools and authors write them: what is found is every image with its box."""

import json
import os
import unicodedata

import pytest
from data_files import (
    BOX,
    XML,
    XML_BOX,
    XYWH,
    YOLO,
    boxes_by_split,
    coco_tables,
    problems_of,
    write_image,
    write_tree,
)

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.formats.reader import find_data

YAML = "train: images/train\nval: images/val\nnames: [cat]\n"
A, B = coco_tables("a.jpg"), coco_tables("b.jpg")
ROOT = {"id": 0, "name": "things", "supercategory": "none"}
ROBOFLOW = [ROOT, {"id": 1, "name": "cat", "supercategory": "things"}]
LINE = json.dumps({"file_name": "a.jpg", "objects": {"bbox": [XYWH], "category": ["cat"]}})

# Files, and the image of each split, which is written too.
LAYOUTS = {
    "COCO, images in images/": (
        {
            "annotations/instances_train2017.json": A,
            "annotations/instances_val2017.json": B,
            "annotations/captions_train2017.json": {"images": [], "annotations": []},
        },
        {"train2017": "images/train2017/a.jpg", "val2017": "images/val2017/b.jpg"},
    ),
    "COCO, files named by the split": (
        {"annotations/train.json": A, "annotations/val.json": B},
        {"train": "train/a.jpg", "val": "val/b.jpg"},
    ),
    "COCO, files beside folders of both splits": (
        {"train_annotations.json": A, "valid_annotations.json": A},
        {"train": "images_train/a.jpg", "val": "images_valid/a.jpg"},
    ),
    "COCO, the same name in both splits": (
        {"annotations/instances_train.json": A, "annotations/instances_val.json": A},
        {"train": "data/train/a.jpg", "val": "data/val/a.jpg"},
    ),
    "Roboflow COCO": (
        {
            "train/_annotations.coco.json": coco_tables("a.jpg", categories=ROBOFLOW),
            "valid/_annotations.coco.json": coco_tables("b.jpg", categories=ROBOFLOW),
            "README.dataset.txt": "x",
        },
        {"train": "train/a.jpg", "val": "valid/b.jpg"},
    ),
    "CVAT COCO": ({"annotations/instances_default.json": A}, {"train": "images/default/a.jpg"}),
    "CVAT COCO with sub-sets and folders": (
        {
            "annotations/instances_Train.json": coco_tables("s/a.jpg"),
            "annotations/instances_Validation.json": coco_tables("s/a.jpg"),
        },
        {"Train": "images/Train/s/a.jpg", "Validation": "images/Validation/s/a.jpg"},
    ),
    "Label Studio COCO": ({"result.json": coco_tables("images\\a.jpg")}, {"train": "images/a.jpg"}),
    "Label Studio COCO with paths of the server": (
        {"result.json": coco_tables("../../label-studio/media/upload/1/a.jpg")},
        {"train": "images/a.jpg"},
    ),
    "COCO in a folder of the archive": (
        {"set-1/set/annotations/instances_train.json": A},
        {"train": "set-1/set/train/a.jpg"},
    ),
    "LabelImg": ({"a.xml": XML}, {"train": "a.jpg"}),
    "Roboflow VOC": (
        {"train/a.xml": XML, "valid/a.xml": XML, "test/a.xml": XML},
        {"train": "train/a.jpg", "val": "valid/a.jpg", "test": "test/a.jpg"},
    ),
    "Label Studio VOC": ({"Annotations/a.xml": XML}, {"train": "images/a.jpg"}),
    "VOC with small folders": (
        {"annotations/xmls/a.xml": XML, "trimaps/a.png": None},
        {"train": "images/a.jpg"},
    ),
    "VOC with masks of the same names": (
        {
            "ImageSets/Main/train.txt": "a",
            "Annotations/a.xml": XML,
            "SegmentationClass/a.png": None,
        },
        {"train": "JPEGImages/a.jpg"},
    ),
    "VOC split by folders below": (
        {"annotations/train/a.xml": XML, "annotations/val/a.xml": XML},
        {"train": "images/train/a.jpg", "val": "images/val/a.jpg"},
    ),
    "VOC split by folders above": (
        {"train/annotations/a.xml": XML},
        {"train": "train/images/a.jpg"},
    ),
    "VOC, the devkit's parent": (
        {
            "VOCdevkit/VOC2012/ImageSets/Main/train.txt": "a  1\n",
            "VOCdevkit/VOC2012/Annotations/a.xml": XML,
        },
        {"train": "VOCdevkit/VOC2012/JPEGImages/a.jpg"},
    ),
    "VOC, lists with paths": (
        {
            "ImageSets/Main/train.txt": "s1/a\n",
            "ImageSets/Main/val.txt": "JPEGImages/s2/a.jpg\n",
            "Annotations/s1/a.xml": XML,
            "Annotations/s2/a.xml": XML,
        },
        {"train": "JPEGImages/s1/a.jpg", "val": "JPEGImages/s2/a.jpg"},
    ),
    "VOC, lists beside its folders": (
        {"train.txt": "a", "classes.txt": "cat", "Annotations/a.xml": XML},
        {"train": "JPEGImages/a.jpg"},
    ),
    "VOC, lists above images with their XML": (
        {
            "trainval.txt": "a\n",
            "test.txt": "b\n",
            "notes.txt": "by me",
            "images/a.xml": XML,
            "images/b.xml": XML,
        },
        {"trainval": "images/a.jpg", "test": "images/b.jpg"},
    ),
    "labelme VOC, with pictures of the boxes": (
        {
            "Annotations/a.xml": f"<annotation><annotation/>{XML_BOX}</annotation>",
            "AnnotationsVisualization/a.jpg": None,
            "class_names.txt": "cat",
        },
        {"train": "JPEGImages/a.jpg"},
    ),
    "labelme COCO, with pictures of the masks": (
        {"annotations.json": coco_tables("JPEGImages/a.jpg"), "Visualization/a.jpg": None},
        {"train": "JPEGImages/a.jpg"},
    ),
    "WIDER FACE as VOC": (
        {"WIDER_train/Annotations/a.xml": XML, "train.txt": "a"},
        {"train": "WIDER_train/0--Parade/a.jpg"},
    ),
    "AutoGluon's COCO, images of all splits in one folder": (
        {
            "annotations/train_labels.json": coco_tables("images/a.jpg"),
            "annotations/val_labels.json": B,
        },
        {"train": "images/a.jpg", "val": "images/b.jpg"},
    ),
    "COCO with maps of the same names": (
        {"annotations/instances_val2017.json": B, "stuffthingmaps/val2017/b.png": None},
        {"val2017": "val2017/b.jpg"},
    ),
    "Hugging Face, a clone": (
        {"data/train/metadata.jsonl": LINE, "README.md": "x"},
        {"train": "data/train/a.jpg"},
    ),
    "YOLO, capital folders": (
        {"data.yaml": YAML, "Labels/train/a.TXT": YOLO, "labels/val/b.txt": YOLO},
        {"train": "Images/train/a.jpg", "val": "images/val/b.jpg"},
    ),
    "YOLO, a yaml of another name": (
        {
            "coco8.yml": "train: images/train\nnames: [cat]",
            "hyp.yaml": "lr: 1",
            "labels/train/a.txt": YOLO,
        },
        {"train": "images/train/a.jpg"},
    ),
    "YOLO, paths of another machine": (
        {
            "data.yaml": "train: C:\\Users\\me\\cats\\train\\images\nnc: '1'\n"
            "val: /content/cats/valid/images\nnames: [cat]",
            "train/labels/a.txt": YOLO,
            "valid/labels/b.txt": YOLO,
        },
        {"train": "train/images/a.jpg", "val": "valid/images/b.jpg"},
    ),
    "YOLO, a list with paths of another machine": (
        {
            "data.yaml": "train: /home/me/cats/train.txt\nnames: [cat]",
            "train.txt": "/home/me/cats/images/a.jpg\n",
            "labels/a.txt": YOLO,
        },
        {"train": "images/a.jpg"},
    ),
    "YOLO, a pattern": (
        {"data.yaml": "train: images/*/*.jpg\nnames: [cat]", "labels/train/a.txt": YOLO},
        {"train": "images/train/a.jpg"},
    ),
    "YOLO, a list inside the yaml": (
        {
            "data.yaml": "path: .\ntrain:\n  - images/train/a.jpg\nnames: {0: cat}",
            "labels/train/a.txt": YOLO,
        },
        {"train": "images/train/a.jpg"},
    ),
    "CVAT's obj.data": (
        {
            "obj.data": "classes = 1\nnames = data/obj.names\ntrain = data/train.txt\nbackup = b/",
            "obj.names": "cat\n",
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.txt": YOLO,
        },
        {"train": "obj_train_data/a.jpg"},
    ),
    "Yolo_mark": (
        {
            "data/obj.data": "classes= 1\ntrain  = data/train.txt\nnames = data/obj.names\n\n",
            "data/obj.names": "cat\n",
            "data/train.txt": "data/img/a.jpg\n",
            "data/img/a.txt": YOLO,
        },
        {"train": "data/img/a.jpg"},
    ),
    "YOLO in VOC's folders": (
        {
            "obj.data": "names = obj.names\ntrain = train.txt",
            "obj.names": "cat",
            "train.txt": "/home/me/VOCdevkit/VOC2007/JPEGImages/a.jpg",
            "VOCdevkit/VOC2007/labels/a.txt": YOLO,
        },
        {"train": "VOCdevkit/VOC2007/JPEGImages/a.jpg"},
    ),
    "CVAT YOLO of a folder with images/ inside": (
        {
            "data.yaml": "train: Train.txt\nnames: {0: cat}",
            "Train.txt": "data/images/Train/ds/images/train/a.jpg\n",
            "labels/Train/ds/images/train/a.txt": YOLO,
        },
        {"train": "images/Train/ds/images/train/a.jpg"},
    ),
    "YOLO, lists in ImageSets": (
        {
            "data.yaml": "train: ImageSets/train.txt\nnames: [cat]",
            "ImageSets/train.txt": "../Images/train/a.jpg",
            "Labels/train/a.txt": YOLO,
        },
        {"train": "Images/train/a.jpg"},
    ),
    "Label Studio YOLO": (
        {"classes.txt": "cat", "notes.json": {}, "labels/a.txt": YOLO},
        {"train": "images/a.jpg"},
    ),
    "YOLO, folders of no split": (
        {"classes.txt": "cat", "labels/day/a.txt": YOLO},
        {"train": "images/day/a.jpg"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_and_every_image_has_its_box(name, tmp_path):
    files, expected = LAYOUTS[name]
    write_tree(tmp_path, files | dict.fromkeys(expected.values()))
    assert boxes_by_split(tmp_path) == {split: {path: [BOX]} for split, path in expected.items()}
    assert read_data(tmp_path, next(iter(expected))).label_names == ("cat",)


def test_an_annotation_file_may_be_given_itself(tmp_path):
    files = {"data/annotations.json": coco_tables("batch_1/a.jpg"), "data/batch_1/a.jpg": None}
    write_tree(tmp_path, files | {"data/annotations_unofficial.json": B})
    with pytest.raises(DataError, match="there are: annotations, annotations_unofficial"):
        read_data(tmp_path, "train")
    (record,) = read_data(tmp_path / "data" / "annotations.json", "train").records
    assert record.path == tmp_path / "data" / "batch_1" / "a.jpg"


def test_labels_may_lie_partly_beside_their_images(tmp_path):
    files = {"classes.txt": "cat", "images/a.jpg": None, "images/b.jpg": None}
    write_tree(tmp_path, files | {"images/a.txt": YOLO, "labels/b.txt": YOLO})
    assert boxes_by_split(tmp_path) == {"train": {"images/a.jpg": [BOX], "images/b.jpg": [BOX]}}


def test_an_image_without_xml_is_not_taken_for_background(tmp_path):
    write_tree(tmp_path, {"a.jpg": None, "a.xml": XML, "unlabelled.jpg": None})
    assert boxes_by_split(tmp_path) == {"train": {"a.jpg": [BOX]}}


# ---------------------------------------------------------------------------------- file names

NFC, NFD = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
NAMES = [(NFC, NFD), (NFD, NFC), ("A.JPG", "a.jpg"), ("/home/me/train/a.jpg", "a.jpg")]
NAMES += [("s\\a.jpg", "s/a.jpg"), ("train/a.jpg", "a.jpg"), ("./a.jpg", "a.jpg")]
NAMES += [("C:\\data\\a.jpg", "a.jpg"), ("s\\a.jpg", "s\\a.jpg")]


@pytest.mark.parametrize(("written", "stored"), NAMES)
@pytest.mark.parametrize("layout", ["coco", "hf", "yolo"])
def test_a_file_is_found_by_the_end_of_its_name_in_any_form(layout, written, stored, tmp_path):
    row = {"file_name": written, "objects": {"bbox": [XYWH], "category": ["cat"]}}
    labels = os.path.splitext(stored)[0] + ".txt"
    files = {
        "coco": {"annotations/instances_train.json": coco_tables(written)},
        "hf": {"train/metadata.jsonl": json.dumps(row)},
        "yolo": {
            "data.yaml": "path: train\ntrain: list.txt\nnames: [cat]",
            "list.txt": written,
            f"train/{labels}": YOLO,
        },
    }
    write_tree(tmp_path, files[layout] | {f"train/{stored}": None})
    assert boxes_by_split(tmp_path) == {"train": {f"train/{stored}": [BOX]}}


def test_two_files_that_differ_in_case_only_keep_their_own(tmp_path):
    tables = coco_tables("a.jpg", "A.jpg")
    write_tree(tmp_path, {"annotations/instances_train.json": tables, "train/a.jpg": None})
    write_image(tmp_path / "train" / "A.jpg")
    assert list(boxes_by_split(tmp_path)["train"]) == ["train/a.jpg", "train/A.jpg"]


def test_a_name_that_is_not_utf8_is_found(tmp_path):
    name = os.fsdecode(b"\xe9.png")
    try:
        write_image(tmp_path / "train" / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    write_tree(tmp_path, {"annotations/instances_train.json": coco_tables(name)})
    assert len(read_data(tmp_path, "train").records) == 1


def test_a_missing_image_is_never_taken_from_another_split(tmp_path):
    files = {"annotations/instances_train.json": A, "train/b.jpg": None, "val/a.jpg": None}
    (problem,) = problems_of(write_tree(tmp_path, files))
    assert problem.startswith(f"{tmp_path / 'train' / 'a.jpg'}: No such file")


# ------------------------------------------------------------------------------------- refused

REFUSED = {
    "a label file where nobody reads it": (
        {"data.yaml": YAML, "images/train/a.jpg": None, "images/train/b.jpg": None}
        | {"labels/train/a.txt": YOLO, "labels/b.txt": YOLO},
        "labels/b.txt: is not read: the labels of .*b.jpg are looked for in .*labels/train",
    ),
    "labels of an image that is not read": (
        {"data.yaml": YAML, "images/train/a.jpg": None, "labels/train/a.txt": YOLO}
        | {"images/train/b.heic": "x", "labels/train/b.txt": YOLO},
        "b.txt: has labels, but there is no image of this name: .*b.heic is of a kind that is not",
    ),
    "names as a text": (
        {"data.yaml": "train: images\nnames: 'cat, dog'", "images/a.jpg": None},
        r"names of classes are a list, \[cat, dog\]",
    ),
    "other class names than nc": (
        {"data.yaml": "train: images\nnames: [cat]\nnc: '2'", "images/a.jpg": None},
        "nc is 2, but there are 1 names",
    ),
    "a yaml with aliases": (
        {"data.yaml": "a: &a [1]\nb: *a\ntrain: images\nnames: [cat]"},
        r"aliases \(\*name\) are not read",
    ),
    "a yaml without end": ({"data.yaml": "[" * 5000}, "not YAML"),
    "keypoints that the yaml does not declare": (
        {"data.yaml": YAML, "images/train/a.jpg": None}
        | {"labels/train/a.txt": "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55\n" * 2},
        r"9 columns look like boxes with keypoints: .* \(kpt_shape: \[2, 2\]\)",
    ),
    "keypoints with visibility": (
        {"data.yaml": YAML, "images/train/a.jpg": None}
        | {"labels/train/a.txt": "0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.55 1 0 0 0 0.5 0.5 2"},
        r"17 columns look like boxes with keypoints: .* \(kpt_shape: \[4, 3\]\)",
    ),
    "two yaml files": (
        {"a.yaml": YAML, "b.yaml": YAML},
        "could be any of: a.yaml, b.yaml; give the file",
    ),
    "two data sets": (
        {"VOC2007/ImageSets/Main/train.txt": "a", "VOC2012/ImageSets/Main/train.txt": "a"},
        r"VOC2007 \(voc\), .*VOC2012 \(voc\). Give one of these folders",
    ),
    "a rotated box": (
        {"a.jpg": None, "a.xml": XML.replace("bndbox", "robndbox")},
        r"a.xml: object 1: a rotated box \(robndbox\)",
    ),
    "an image that could be either": (
        {"xml/a.xml": XML, "day/a.jpg": None, "night/a.jpg": None},
        "its image could be .*day/a.jpg or .*night/a.jpg",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_with_the_way_out(name, tmp_path):
    files, says = REFUSED[name]
    with pytest.raises(DataError, match=says):
        read_data(write_tree(tmp_path, files), "train")


@pytest.mark.parametrize(
    "line",
    [
        "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6",  # a square
        "0 0.5 0.4 0.6 0.5 0.5 0.6 0.4 0.5",  # on its corner
        "0 0.1 0.8 0.15 0.7 0.3 0.75 0.2 0.9 0.12 0.85",
    ],
)
def test_a_polygon_is_no_box_with_keypoints(line, tmp_path):
    files = {"data.yaml": YAML, "images/train/a.jpg": None, "labels/train/a.txt": line}
    assert len(read_data(write_tree(tmp_path, files), "train").records[0].boxes) == 1


# -------------------------------------------------------------------------------------- values


def coco(tmp_path, tables, split="train"):
    """Write a data set with ``a.jpg``, and read it."""
    files = {"annotations/instances_train.json": tables, "train/a.jpg": None}
    write_tree(tmp_path, files)
    return read_data(tmp_path, split)


def with_box(**changes):
    """The tables of an image with one box, changed."""
    (box,) = A["annotations"]
    return A | {"annotations": [box | changes]}


def with_image(**changes):
    (image,) = A["images"]
    return A | {"images": [image | changes]}


def test_whole_numbers_are_floats(tmp_path):
    coco(tmp_path, A)
    (image,) = find_data(tmp_path).list("train").images
    (box,) = image.boxes
    assert {type(value) for value in (*box.xyxy, *box.bbox, box.area)} == {float}


SAME_IDS = [("a", "a"), (1, "1"), (1.0, 1), (2**70, 2**70), ("7", 7.0), ("007", "007")]


@pytest.mark.parametrize("ids", SAME_IDS)
def test_ids_may_be_written_in_many_ways(ids, tmp_path):
    tables = with_image(id=ids[0]) | {"annotations": with_box(image_id=ids[1])["annotations"]}
    data = coco(tmp_path, tables)
    assert data.records[0].boxes.tolist() == [BOX]
    assert 0 < data.records[0].image_id < 2**63
    is_new = ids[0] in ("a", "007", 2**70)
    assert [problem.kind for problem in data.corrected] == ["ids given anew"] * is_new


def test_texts_that_are_other_texts_are_other_ids(tmp_path):
    tables = coco_tables("a.jpg", "b.jpg")
    for i, text in enumerate(("1", "01")):
        tables["images"][i]["id"] = tables["annotations"][i]["image_id"] = text
    write_tree(tmp_path, {"train/b.jpg": None})
    assert [len(record.boxes) for record in coco(tmp_path, tables).records] == [1, 1]


def test_whole_numbers_of_63_bits_are_kept(tmp_path):
    number = 2**63 - 1
    tables = with_image(id=number) | {"annotations": with_box(image_id=number)["annotations"]}
    assert coco(tmp_path, tables).records[0].image_id == number


@pytest.mark.parametrize("ids", [("c", "c"), (3.0, 3), ("3", 3), (2**65, 2**65)])
def test_category_ids_may_be_written_in_many_ways(ids, tmp_path):
    tables = A | {"categories": [{"id": ids[0], "name": "cat"}]}
    tables |= {"annotations": with_box(category_id=ids[1])["annotations"]}
    data = coco(tmp_path, tables)
    assert data.records[0].labels.tolist() == [0]
    assert abs(data.category_ids[0]) < 2**63


@pytest.mark.parametrize(
    "size", [{}, {"width": 0, "height": 0}, {"width": None, "height": None}, {"width": "64"}]
)
def test_a_size_that_is_missing_is_read_from_the_file(size, tmp_path):
    assert coco(tmp_path, with_image(**size)).records[0].size == (48, 64)


@pytest.mark.parametrize("size", [{"width": 64.0, "height": "48"}])
def test_a_size_may_be_a_float_or_a_text(size, tmp_path):
    assert coco(tmp_path, with_image(**size)).corrected == ()


def test_a_swapped_size_is_told_and_corrected_if_the_boxes_fit(tmp_path):
    data = coco(tmp_path, with_image(width=48, height=64))
    assert data.records[0].size == (48, 64)
    assert [problem.kind for problem in data.corrected] == ["size swapped"]


def test_a_swapped_size_with_boxes_that_do_not_fit_is_refused(tmp_path):
    tables = with_box(bbox=[1, 1, 20, 60]) | {"images": with_image(width=48, height=64)["images"]}
    with pytest.raises(DataError, match="annotated as 48x64"):
        coco(tmp_path, tables)


POLYGON = [[16, 12, 48, 12, 48, 36], [20, 36, 16, 30, 18, 20]]


@pytest.mark.parametrize("bbox", [{"bbox": None}, {"bbox": []}, {}])
def test_the_box_of_a_polygon_is_the_one_around_it(bbox, tmp_path):
    (box,) = with_box(segmentation=POLYGON)["annotations"]
    del box["bbox"]
    data = coco(tmp_path, A | {"annotations": [box | bbox]})
    assert data.records[0].boxes.tolist() == [BOX]


@pytest.mark.parametrize("bbox", [None, []])
def test_a_box_that_is_missing_can_be_left_out(bbox, tmp_path):
    with pytest.raises(DataError, match=r"'bbox' is (None|\[\])\nBoxes like these can be left out"):
        coco(tmp_path, with_box(bbox=bbox))
    assert len(read_data(tmp_path, "train", drop_bad_boxes=True).dropped) == 1


@pytest.mark.parametrize(
    ("value", "iscrowd"), [("0", 0), ("1", 1), (False, 0), (None, 0), (1.0, 1)]
)
def test_a_crowd_may_be_written_in_many_ways(value, iscrowd, tmp_path):
    assert coco(tmp_path, with_box(iscrowd=value)).records[0].iscrowd.tolist() == [iscrowd]


@pytest.mark.parametrize(
    ("ids", "kinds"),
    [
        ((1, 1), ["annotation id twice"]),
        (("ann-a", "ann-a"), ["annotation id twice"]),
        (("ann-a", "ann-b"), []),
        ((2**70, 2**70), ["annotation id twice"]),
        ((None, None), []),
    ],
)
def test_annotation_ids_that_come_twice_are_told(ids, kinds, tmp_path):
    boxes = [A["annotations"][0] | {"id": own_id} for own_id in ids]
    data = coco(tmp_path, A | {"annotations": boxes})
    assert [problem.kind for problem in data.corrected] == kinds
    assert len(data.records[0].boxes) == 2


def test_a_category_that_only_groups_others_is_no_class(tmp_path):
    categories = [ROOT | {"name": "cat"}, {"id": 1, "name": "cat", "supercategory": "cat"}]
    assert coco(tmp_path, A | {"categories": categories}).label_names == ("cat",)


@pytest.mark.parametrize("value", [[], {}, 3, ["cat"]])
def test_a_supercategory_of_any_type_costs_no_class(value, tmp_path):
    categories = [{"id": 1, "name": "cat", "supercategory": value}]
    assert coco(tmp_path, A | {"categories": categories}).label_names == ("cat",)


def test_a_group_with_boxes_is_a_class(tmp_path):
    tables = A | {"categories": ROBOFLOW, "annotations": with_box(category_id=0)["annotations"]}
    assert coco(tmp_path, tables).label_names == ("things", "cat")


def test_a_class_name_can_be_written_to_any_file(tmp_path):
    (name,) = coco(tmp_path, A | {"categories": [{"id": 1, "name": "cat \ud83d"}]}).label_names
    assert name.encode().decode() == "cat \\ud83d"


def test_json_without_end_is_refused(tmp_path):
    with pytest.raises(DataError, match="not JSON"):
        coco(tmp_path, '{"images": ' + "[" * 100_000)


ENCODINGS = [
    ("GBK", "猫"),
    ("gb2312", "猫"),
    ("big5", "貓"),
    ("shift_jis", "猫"),
    ("latin-1", "chât"),
]


@pytest.mark.parametrize(("encoding", "name"), ENCODINGS)
def test_xml_may_have_any_encoding(encoding, name, tmp_path):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{XML.replace("cat", name)}'
    write_tree(tmp_path, {"a.jpg": None, "a.xml": text.encode(encoding)})
    assert boxes_by_split(tmp_path) == {"train": {"a.jpg": [BOX]}}
    assert read_data(tmp_path, "train").label_names == (name,)


def test_blank_lines_before_the_declaration_of_an_xml_are_ignored(tmp_path):
    text = f'\n \n<?xml version="1.0"?>{XML}'
    assert boxes_by_split(write_tree(tmp_path, {"a.jpg": None, "a.xml": text}))["train"]


def test_xml_of_an_unknown_encoding_is_named(tmp_path):
    text = f'<?xml version="1.0" encoding="klingon"?>{XML}'
    (problem,) = problems_of(write_tree(tmp_path, {"a.jpg": None, "a.xml": text}))
    assert "a.xml: not well-formed XML: unknown encoding" in problem


def test_corners_in_the_wrong_order_are_sorted_and_told(tmp_path):
    text = XML.replace("<xmin>17</xmin>", "<xmin>48</xmin>").replace("<xmax>48", "<xmax>17")
    data = read_data(write_tree(tmp_path, {"a.jpg": None, "a.xml": text}), "train")
    assert data.records[0].boxes.tolist() == [BOX]
    assert [problem.kind for problem in data.corrected] == ["corners swapped"]


OVER = {  # a box of 20 x 20 pixels, half of it beyond the left side
    "coco": {"annotations/instances_train.json": with_box(bbox=[-10, 12, 20, 24])},
    "hf": {
        "train/metadata.jsonl": json.dumps(
            {"file_name": "a.jpg", "objects": {"bbox": [[-10, 12, 20, 24]], "category": ["cat"]}}
        )
    },
    "voc": {"train/a.xml": XML.replace(">17<", ">-9<").replace(">48<", ">10<")},
    "yolo": {"data.yaml": "train: train\nnames: [cat]", "train/a.txt": "0 0 0.5 0.3125 0.5"},
}


@pytest.mark.parametrize("layout", OVER)
def test_a_box_over_the_border_is_clipped_in_every_layout(layout, tmp_path):
    write_tree(tmp_path, OVER[layout] | {"train/a.jpg": None})
    assert boxes_by_split(tmp_path) == {"train": {"train/a.jpg": [[0, 12, 10, 36]]}}


def test_several_objects_of_an_xml_are_read(tmp_path):
    text = f"<annotation>{XML_BOX}{XML_BOX.replace('17', '19')}</annotation>"
    data = read_data(write_tree(tmp_path, {"a.jpg": None, "a.xml": text}), "train")
    assert data.records[0].boxes[:, 0].tolist() == [16, 18]
