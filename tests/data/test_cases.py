"""What happens with small data sets that users reported, where they are there.

Their kinds are made up in ``formats/test_exports.py``, ``quality/test_check.py`` and
``tests/training/test_data_of_a_run.py``.
"""

import pytest
from data_files import boxes_by_split
from tiny_runs import options

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.quality.check import check_data
from sepc_zoo.evaluation.results import read_results

MIDDLE = [24, 18, 40, 30]  # the YOLO sets' box
CORNER = [5, 5, 25, 25]  # the COCO sets'
VOC = [4, 4, 20, 20]
HALF = [5.5, 5, 25.5, 25]

READ = {
    "coco-backslash": {"train": {"train/sub/a.jpg": [CORNER]}},
    "coco-dup-annid": {"train": {"train/a.jpg": [CORNER, [1, 1, 9, 9]]}},
    "coco-filename-abs": {"train": {"train/a.jpg": [CORNER]}},
    "coco-int-boxes": {"train": {"train/a.jpg": [CORNER]}},
    "coco-iscrowd-str0": {"train": {"train/a.jpg": [HALF]}},
    "coco-nfd": {"train": {"train/e\u0301.jpg": [CORNER]}},
    "coco-roboflow-root-same-name": {
        "train": {"train/a.jpg": [[6.5, 5, 26.5, 25], [7.5, 5, 27.5, 25]]}
    },
    "coco-size-missing": {"train": {"train/a.jpg": [CORNER]}},
    "coco-size-swap-float": {"train": {"train/a.jpg": [HALF], "train/b.jpg": []}},
    "coco-str-image-id": {"train": {"train/a.jpg": [CORNER]}},
    "coco-str-mixed": {"train": {"train/a.jpg": [CORNER]}},
    "hf-data": {"train": {"data/train/a.jpg": [HALF]}},
    "layout-coco-images": {
        "train2017": {"images/train2017/a.jpg": [CORNER]},
        "val2017": {"images/val2017/a.jpg": [CORNER]},
    },
    "layout-cvat-coco": {"train": {"images/default/a.jpg": [CORNER]}},
    "layout-labelimg-voc": {"train": {"a.jpg": [VOC]}},
    "layout-labelstudio-coco": {
        "train": {"images/0b1-a.jpg": [[pytest.approx(5.1), 5, pytest.approx(25.1), 25]]}
    },
    "layout-roboflow-coco": {
        "train": {"train/a_jpg.rf.0a1b2c.jpg": [CORNER]},
        "val": {"valid/a_jpg.rf.0a1b2c.jpg": [CORNER]},
    },
    "layout-voc-noimagesets": {"train": {"images/a.jpg": [VOC]}},
    "voc-devkit": {"train": {"VOCdevkit/VOC2012/JPEGImages/a.jpg": [VOC]}},
    "voc-gbk": {"train": {"JPEGImages/a.jpg": [VOC]}},
    "voc-leading-blank": {"train": {"JPEGImages/a.jpg": [VOC]}},
    "voc-split-flag": {"train": {"JPEGImages/a.jpg": [VOC]}},
    "voc-subdir": {"train": {"JPEGImages/s1/a.jpg": [VOC]}},
    "voc-swapped": {"train": {"JPEGImages/a.jpg": [VOC, [0, 4, 9, 20]]}},
    "yolo-Images": {
        "train": {"Images/train/a.jpg": [MIDDLE]},
        "val": {"images/val/b.jpg": [MIDDLE]},
    },
    "yolo-cvat-nested": {
        split: {"images/Train/ds/images/train/a.jpg": [MIDDLE]} for split in ("train", "val")
    },
    "yolo-half-TXT": {
        "train": {f"images/train/{i}.jpg": [MIDDLE] for i in range(4)},
        "val": {f"images/val/{i}.jpg": [MIDDLE] for i in range(2)},
    },
    "yolo-half-out": {
        "train": {"images/train/a.jpg": [pytest.approx([0, 19.2, 2.56, 28.8])]},
        "val": {"images/val/b.jpg": [MIDDLE]},
    },
    "yolo-imagesets": {split: {"Images/train/0.jpg": [MIDDLE]} for split in ("train", "val")},
}
READ |= {
    name: {"train": {"images/train/a.jpg": [MIDDLE]}, "val": {"images/val/b.jpg": [MIDDLE]}}
    for name in ("yolo-TXT", "yolo-abs-train", "yolo-glob", "yolo-nc-str", "yolo-othername")
}
READ |= {
    name: {"train": {"train/images/a.jpg": [MIDDLE]}, "val": {"valid/images/a.jpg": [MIDDLE]}}
    for name in ("yolo-roboflow-location", "yolo-roboflow-renamed")
}
CORRECTED = {
    "coco-dup-annid": "annotation id twice",
    "coco-size-swap-float": "size swapped",
    "coco-str-image-id": "ids given anew",
    "voc-swapped": "corners swapped",
}
REFUSED = {
    "coco-bbox-empty": r"'bbox' is \[\]\n.*--drop-bad-boxes",
    "coco-bbox-null": r"'bbox' is None\n.*--drop-bad-boxes",
    "voc-robndbox": r"object 1: a rotated box \(robndbox\)",
    "yolo-heic": "no image of this name: .*p.heic is of a kind that is not read",
    "yolo-names-string": "names of classes are a list",
    "yolo-pose-2d": "9 columns look like boxes with keypoints",
}
FOUND = {"images-12bit": "dark image", "images-black": "dark image"}
NOTES = {
    "train-crowd": "warning: no box of 'val' can be counted",
    "train-no-box": "warning: no box of 'train' can be learned",
    "train-val-no-box": "warning: no box of 'val' can be counted",
}


def test_every_case_is_here(shared_cases):
    here = {*READ, *REFUSED, *FOUND, *NOTES, "val-json-bom"}
    assert here == {path.name for path in shared_cases.iterdir() if path.is_dir()}


@pytest.mark.parametrize("name", READ)
def test_a_case_is_read(name, shared_cases):
    assert boxes_by_split(shared_cases / name) == READ[name]
    corrected = [problem.kind for problem in read_data(shared_cases / name, "train").corrected]
    assert corrected == ([CORRECTED[name]] if name in CORRECTED else [])


@pytest.mark.parametrize("name", ["coco-iscrowd-str0", "coco-roboflow-root-same-name", "voc-gbk"])
def test_a_case_has_the_right_crowds_and_classes(name, shared_cases):
    data = read_data(shared_cases / name, "train")
    assert not data.records[0].iscrowd.any()
    expected = {"voc-gbk": ("细胞",), "coco-roboflow-root-same-name": ("Mask", "No-Mask")}
    assert data.label_names == expected.get(name, ("cell",))


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_with_a_reason(name, shared_cases):
    with pytest.raises(DataError, match=REFUSED[name]):
        read_data(shared_cases / name, "train")


@pytest.mark.parametrize(("name", "boxes"), [("coco-bbox-empty", 0), ("coco-bbox-null", 1)])
def test_a_box_that_is_missing_is_left_out_where_asked(name, boxes, shared_cases):
    data = read_data(shared_cases / name, "train", drop_bad_boxes=True)
    assert (len(data.records[0].boxes), len(data.dropped)) == (boxes, 1)


@pytest.mark.parametrize("name", FOUND)
def test_a_case_is_found_by_the_check(name, shared_cases):
    findings = check_data(shared_cases / name).findings
    num_images = len(list((shared_cases / name / "train").iterdir()))
    assert sum(finding.kind == FOUND[name] for finding in findings) == num_images


@pytest.mark.parametrize("name", NOTES)
def test_a_case_is_told_before_training(name, shared_cases, tmp_path):
    from sepc_zoo.training.inputs import read_inputs

    inputs = read_inputs(options(shared_cases / name, tmp_path / "run"), resume=False)
    assert len(inputs.notes) == 1
    assert inputs.notes[0].startswith(NOTES[name])


def test_results_with_a_byte_order_mark_are_read(shared_cases, shapes):
    file = shared_cases / "val-json-bom" / "results.json"
    assert read_results(file, read_data(shapes, "val")) == ([], 0)
