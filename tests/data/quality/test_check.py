import numpy as np
import pytest
from faulty import (
    FAULTS,
    adding_box,
    editing,
    give_two_files_one_id,
    json_path,
    read_tables,
    truncate,
    write_good_data,
    write_picture,
    write_tables,
)

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.problems import SEVERITY_OF
from sepc_zoo.data.quality.check import check_data, find_train, inspect_image


@pytest.fixture
def data(tmp_path):
    return write_good_data(tmp_path / "data")


def kinds_of(check):
    return {finding.kind for finding in check.findings}


def test_there_is_a_way_to_break_data_for_every_kind_of_finding():
    in_yolo = {"shared label file", "unread label file", "no label files"}
    assert {*SEVERITY_OF} - {*FAULTS} == {*in_yolo, "corners swapped"}  # in VOC


def test_good_data_has_no_findings(data):
    assert check_data(data).findings == ()


def test_drawn_shapes_have_no_errors_or_warnings(shapes):
    assert {f.severity for f in check_data(shapes).findings} <= {"note"}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_and_named(kind, data):
    fault = FAULTS[kind]
    fault.break_data(data)
    (found,) = [finding for finding in check_data(data).findings if finding.kind == kind]
    assert found.severity == fault.severity
    assert fault.where in found.where
    assert fault.text in found.text


@pytest.mark.parametrize("planar", ["contig", None])  # samples of a pixel, or pages
def test_a_dark_tiff_of_many_channels_is_found_by_its_brightest(planar, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    channels = np.full((5, 8, 6), 300, np.uint16)
    channels[4, 2, 3] = 4000
    image = channels if planar is None else channels.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", image, planarconfig=planar, photometric="minisblack")
    file = inspect_image(tmp_path / "a.tif")
    assert (file.problem, file.size) == (None, (8, 6))
    assert "end at 4000" in file.dark
    assert "12 bits, multiply them by 16" in file.dark


@pytest.mark.parametrize("kind", FAULTS)
def test_errors_are_exactly_what_training_refuses_or_fails_on(kind, data):
    FAULTS[kind].break_data(data)
    refused = False
    try:
        train = read_data(data, "train")
        for split in ("train", "val", *(["test"] if kind == "no images" else [])):
            records = read_data(data, split, train.label_names).records
            refused |= not records or any(inspect_image(r.path).problem for r in records)
    except DataError:
        refused = True
    assert check_data(data).has_errors() == refused


def test_findings_are_sorted_worst_first(data):
    for kind in ("elongated box", "box twice", "unknown category"):
        FAULTS[kind].break_data(data)
    severities = [finding.severity for finding in check_data(data).findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert {*severities} == {"error", "warning", "note"}


def test_a_truncated_image_does_not_stop_the_check(data):
    truncate(data / "train" / "train1.jpg")
    truncate(data / "val" / "val2.jpg")
    found = [finding.where for finding in check_data(data).findings]
    assert found == [str(data / "train" / "train1.jpg"), str(data / "val" / "val2.jpg")]


def test_any_exception_of_a_decoder_is_a_finding(data, monkeypatch):
    def fail(_, **__):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("sepc_zoo.data.quality.image_files.read_image", fail)
    problem = inspect_image(data / "train" / "train1.jpg").problem
    assert problem.kind == "broken image"
    assert problem.text == "RuntimeError: no such luck"


def test_only_the_splits_asked_for_are_checked(data):
    FAULTS["wrong size"].break_data(data)
    assert check_data(data, ["val"]).findings == ()
    assert kinds_of(check_data(data, ["train"])) == {"wrong size"}


def test_a_split_has_the_names_that_reading_knows(data):
    (data / "val").rename(data / "dev")
    json_path(data, "val").rename(json_path(data, "dev"))
    checked = check_data(data, ["val"]).listings["val"]
    assert len(checked.images) == len(read_data(data, "val").records)


@pytest.mark.parametrize(
    ("splits", "train"),
    [(("Train", "val"), "Train"), (("trainval", "train"), "train"), (("val", "test"), None)],
)
def test_the_split_to_train_on_is_found_in_any_spelling(splits, train):
    assert find_train(splits) == train


def test_a_split_that_is_not_there_is_refused(data):
    with pytest.raises(DataError, match="no split 'test'; there are: train, val"):
        check_data(data, ["test"])


def test_a_picture_is_identified_by_its_pixels(data):
    path = data / "train" / "train1.jpg"
    digest = inspect_image(path).digest
    path.write_bytes(path.read_bytes() + b"appended")
    assert inspect_image(path).digest == digest
    write_picture(path)
    assert inspect_image(path).digest != digest


def test_many_copies_of_a_picture_are_reported_once_each(data):
    FAULTS["picture in two splits"].break_data(data)
    FAULTS["picture twice in a split"].break_data(data)
    found = [f.kind for f in check_data(data).findings]
    assert sorted(found) == ["picture in two splits", "picture twice in a split"]


def test_a_union_of_splits_is_no_leak(data):
    tables = [read_tables(data, split) for split in ("train", "val")]
    joint = {"categories": tables[0]["categories"], "images": [], "annotations": []}
    (data / "trainval").mkdir()
    for split, own in zip(("train", "val"), tables, strict=True):
        for image in own["images"]:
            name = f"../{split}/{image['file_name']}"
            joint["images"].append(image | {"id": len(joint["images"]), "file_name": name})
    write_tables(data, "trainval", joint)
    assert "picture in two splits" not in kinds_of(check_data(data))


def test_an_image_is_used_whatever_its_path(data):
    editing(lambda t: t["images"][0].update(file_name="../val/../train/train1.jpg"))(data)
    assert check_data(data).findings == ()


def test_a_validation_split_inside_the_training_split_is_a_leak(data):
    editing(
        lambda t: t["images"].extend(
            {"id": i, "file_name": f"../val/val{i - 7}.jpg", "width": 64, "height": 48}
            for i in (8, 9)
        )
    )(data)
    found = [f.where for f in check_data(data).findings if f.kind == "picture in two splits"]
    assert len(found) == 2


def test_boxes_of_an_id_that_two_images_share_are_refused(data):
    editing(give_two_files_one_id)(data)
    check = check_data(data)
    (problem,) = [f for f in check.findings if f.kind == "broken entry"]
    assert "train1.jpg and train2.jpg share the id 1" in problem.text
    assert [image.path.name for image in check.listings["train"].images] == ["train3.jpg"]


def test_boxes_of_a_category_id_with_two_names_are_refused(data):
    editing(lambda t: t["categories"].append({"id": 1, "name": "owl"}))(data)
    found = [f.text for f in check_data(data).findings if f.kind == "unknown category"]
    assert len(found) == 3
    assert "category 1 ('cat' or 'owl')" in found[0]


def test_a_box_outside_by_rounding_is_no_finding(data):
    adding_box([0.1, 0.2, 63.9001, 47.8])(data)
    assert check_data(data).findings == ()


def test_progress_counts_every_image(data):
    seen = []

    def progress(iterable, total, **_):
        for item in iterable:
            seen.append(total)
            yield item

    check_data(data, progress=progress)
    assert seen == [5] * 5


def write_voc(root, split, **boxes):
    """Write images of 64 x 48 with a cat each, at (xmin, ymin, xmax, ymax)."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem, box in boxes.items():
        write_picture(root / "JPEGImages" / f"{stem}.jpg")
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        text = f"<object><name>cat</name><bndbox>{inner}</bndbox></object>"
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{text}</annotation>")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(boxes))


def test_voc_is_checked_too(tmp_path):
    write_voc(tmp_path, "train", a=(1, 1, 30, 30), b=(5, 5, 70, 40), c=(9, 9, 9, 9))
    write_voc(tmp_path, "val", d=(1, 1, 30, 30), e=(20, 20, 10, 10))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\na\nz")
    found = {(f.kind, f.where) for f in check_data(tmp_path).findings}
    assert found == {
        ("image listed twice", "ImageSets/Main/train.txt"),
        ("broken entry", str(tmp_path / "Annotations" / "z.xml")),
        ("corners swapped", "Annotations/e.xml: object 1"),
        ("box over the border", "Annotations/b.xml: object 1"),
        ("box of a pixel or less", "Annotations/c.xml: object 1"),
    }


NAMES = [
    "annotated as bird",
    "two classes are named x",
    "is there twice",
    "a; category b is not among the",
]


@pytest.mark.parametrize("name", NAMES)
def test_words_in_a_file_name_do_not_change_the_kind_of_its_problems(name, tmp_path):
    write_voc(tmp_path, "train", **{name: (1, 1, "wide", 30)})
    (found,) = [f for f in check_data(tmp_path).findings if f.severity == "error"]
    assert found.kind == "broken entry"
    assert found.where == f"Annotations/{name}.xml: object 1"


def test_a_label_file_that_two_images_share_is_an_error(tmp_path):
    for suffix in ("jpg", "png"):
        write_picture(tmp_path / f"a.{suffix}")
    (tmp_path / "classes.txt").write_text("cat")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (found,) = [f for f in check_data(tmp_path).findings if f.severity == "error"]
    assert (found.kind, found.where) == ("shared label file", str(tmp_path / "a.png"))
    assert found.text == f"shares its label file {tmp_path / 'a.txt'} with a.jpg"


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_file_is_reported_for_its_split(split, data):
    json_path(data, split).write_text("[]")
    (found,) = [f for f in check_data(data).findings if f.kind == "unreadable annotations"]
    assert found.split == split


def test_real_coco_has_notes_only(shared_data):
    found = check_data(shared_data / "coco_by_sa").findings
    assert {f.severity for f in found} == {"note"}
    assert sum(f.kind == "image without boxes" for f in found) == 3
    assert [f.where for f in found if f.kind == "elongated box"] == [
        "instances_val2017.json: annotations[297] (id 1986395)"
    ]


@pytest.mark.slow
def test_real_blood_cells_have_two_boxes_of_a_single_pixel(shared_data):
    found = check_data(shared_data / "bccd").findings
    assert [(f.kind, f.split, f.where) for f in found] == [
        ("box of a pixel or less", "train", "Annotations/BloodImage_00343.xml: object 4"),
        ("box of a pixel or less", "val", "Annotations/BloodImage_00338.xml: object 13"),
    ]
