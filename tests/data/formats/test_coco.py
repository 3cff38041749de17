import json
import random

import pytest
import torch
from data_files import problems_of
from PIL import Image

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.annotations import build_annotations
from sepc_zoo.data.formats import coco_windows
from sepc_zoo.data.formats.coco import list_coco_file, write_coco

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "owl"}]


def annotation(i, category_id=3, bbox=(1.0, 2.0, 10.0, 20.0), image_id=1, **more):
    entry = {"id": i, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)}
    return entry | more


def write_data(root, annotations=(), split="train", categories=CATEGORIES, folder=None, **more):
    """Two images of 64 x 48, one annotation file."""
    folder = root / (folder or split)
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for i in (1, 2):
        Image.new("RGB", (64, 48)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
    content = {"images": images, "annotations": list(annotations), "categories": categories} | more
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_labels_follow_the_rising_category_ids(tmp_path):
    write_data(tmp_path, [annotation(1, 90), annotation(2, 3), annotation(3, 7)])
    annotations = read_data(tmp_path, "train")
    assert annotations.label_names == ("cat", "dog", "owl")
    assert annotations.category_ids == (3, 7, 90)
    assert annotations.records[0].labels.tolist() == [2, 0, 1]


def test_given_names_decide_the_labels(tmp_path):
    write_data(tmp_path, [annotation(1, 90), annotation(2, 3)])
    annotations = read_data(tmp_path, "train", label_names=["owl", "yak", "cat"])
    assert annotations.label_names == ("owl", "yak", "cat")
    assert annotations.category_ids == (90, None, 3)
    assert annotations.records[0].labels.tolist() == [0, 2]


def test_a_box_of_a_category_that_is_not_among_the_names_is_a_problem(tmp_path):
    write_data(tmp_path, [annotation(1, 90), annotation(2, 3)])
    (problem,) = problems_of(tmp_path, label_names=["cat", "dog"])
    assert "annotations[0] (id 1): category 90 ('owl') is not among the 2 classes" in problem


TWO_CATS = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.mark.parametrize("label_names", [None, ["cat"], ["cat", "dog"]])
def test_two_categories_of_one_name_are_a_problem(label_names, tmp_path):
    write_data(tmp_path, [annotation(1, 1)], categories=TWO_CATS)
    (problem,) = problems_of(tmp_path, label_names=label_names)
    assert problem == "instances_train.json: two classes are named 'cat'"


def test_two_categories_of_one_name_are_fine_where_no_label_has_the_name(tmp_path):
    write_data(tmp_path, [annotation(1, 2)], categories=TWO_CATS)
    assert read_data(tmp_path, "train", label_names=["dog"]).category_ids == (2,)


def test_boxes_crowds_areas_and_images_without_boxes_are_kept(tmp_path):
    box = annotation(1, bbox=(1.5, 2.25, 10, 20), iscrowd=1, area=12.5)
    write_data(tmp_path, [box, annotation(2, iscrowd=0), annotation(3)])
    first, second = read_data(tmp_path, "train").records
    assert (first.image_id, second.image_id, len(second.boxes)) == (1, 2, 0)
    assert first.boxes[0].tolist() == [1.5, 2.25, 11.5, 22.25]
    assert first.iscrowd.tolist() == [1, 0, 0]
    assert first.area.tolist() == [12.5, 200, 200]  # by default the box's


def test_an_exact_match_wins_over_a_longer_name(tmp_path):
    write_data(tmp_path, [annotation(1)], split="train")
    write_data(tmp_path, [], split="train2017")
    assert len(read_data(tmp_path, "train").records[0].boxes) == 1


def test_an_ambiguous_split_lists_the_matches(tmp_path):
    write_data(tmp_path, split="train2014")
    write_data(tmp_path, split="train2017")
    assert "train2014, train2017" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("folder", ["train2017", "train"])
def test_a_split_is_found_by_its_beginning_and_its_images_by_either_name(folder, tmp_path):
    write_data(tmp_path, split="train2017", folder=folder)
    assert read_data(tmp_path, "train").records[0].path == tmp_path / folder / "1.png"


def test_every_broken_entry_is_listed_at_once(tmp_path):
    write_data(
        tmp_path,
        [
            annotation(1, image_id=99),
            annotation(2, category_id=4),
            annotation(3, bbox=(1, 2, 3)),
            annotation(4, bbox=(1, 2, "wide", 4)),
            annotation(5, area="large"),
            annotation(6, bbox=(1, 2, 0, 4)),
            annotation(7, bbox=(1, 2, float("nan"), 4)),
            annotation(8, bbox=(100, 2, 3, 4)),
            {"id": 9, "image_id": 1, "bbox": [1, 2, 3, 4]},
            "no object",
            annotation(10),
        ],
    )
    (tmp_path / "train" / "2.png").unlink()
    problems = problems_of(tmp_path)
    expected = [
        "annotations[0] (id 1): there is no image with the id 99",
        "annotations[1] (id 2): category 4 is not among",
        "annotations[2] (id 3): 'bbox' [1, 2, 3] is not four numbers",
        "annotations[3] (id 4): 'bbox' [1, 2, 'wide', 4] is not four numbers",
        "annotations[4] (id 5): 'area' 'large' is not a finite number",
        "annotations[5] (id 6): box",
        "annotations[6] (id 7): box",
        "annotations[7] (id 8): box",
        "annotations[8] (id 9): 'category_id' is missing or no number or text",
        "annotations[9]: is not an object",
        "2.png: No such file",
    ]
    assert len(problems) == len(expected)
    for text in expected:
        assert sum(text in problem for problem in problems) == 1, text


def test_an_image_id_that_is_there_twice_is_a_problem(tmp_path):
    image = {"id": 1, "file_name": "1.png", "height": 48, "width": 64}
    write_data(tmp_path, images=[image, image])
    assert "images: the id 1 is there twice" in problems_of(tmp_path)[0]


def test_boxes_of_an_id_that_two_files_share_are_a_problem(tmp_path):
    files = [{"id": 1, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (1, 2)]
    write_data(tmp_path, [annotation(1), annotation(2)], images=files)
    problem = problems_of(tmp_path)[1]
    assert "1.png and 2.png share the id 1, and which of them its 2 boxes belong to" in problem


def test_boxes_of_a_category_id_with_two_names_have_no_class(tmp_path):
    write_data(tmp_path, [annotation(1, 3)], categories=[*CATEGORIES, {"id": 3, "name": "cow"}])
    assert "category 3 ('cat' or 'cow') is not among the 4 classes" in problems_of(tmp_path)[-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[]", "not a COCO instances file"),
        (b"{}", "has no list 'images'"),
        (b'{"images": [{"id": "a"}]}', "images[0] (id a): 'file_name' is missing"),
    ],
)
def test_a_malformed_file_is_named_with_the_reason(content, says, tmp_path):
    write_data(tmp_path).write_bytes(content)
    problem = problems_of(tmp_path)[0]
    assert "instances_train.json: " in problem
    assert says in problem


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: No such file"):
        build_annotations(list_coco_file(tmp_path / "none.json", tmp_path))


def test_what_is_written_is_read_back(tmp_path):
    boxes = [(0.1, 0.2, 33.3, 17.7), (5, 6, 7, 8)]
    entries = [annotation(i, 7, box, iscrowd=i % 2, area=3.3) for i, box in enumerate(boxes)]
    write_data(tmp_path, entries)
    first = read_data(tmp_path, "train")
    write_coco(first, tmp_path / "again.json")
    again = build_annotations(list_coco_file(tmp_path / "again.json", tmp_path / "train"))
    assert (again.label_names, again.category_ids) == (first.label_names, first.category_ids)
    for a, b in zip(first.records, again.records, strict=True):
        assert (a.image_id, a.path, a.size) == (b.image_id, b.path, b.size)
        for field in ("boxes", "labels", "iscrowd", "area", "bbox"):
            assert torch.equal(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize(("split", "counts"), [("train", (92, 829, 9)), ("val", (91, 715, 8))])
def test_real_coco_is_read_completely(split, counts, shared_data):
    annotations = read_data(shared_data / "coco_by_sa", split)
    records = annotations.records
    boxes = sum(len(record.boxes) for record in records)
    assert (len(records), boxes, sum(int(r.iscrowd.sum()) for r in records)) == counts
    assert len(annotations.label_names) == 80
    assert (annotations.category_ids[0], annotations.category_ids[-1]) == (1, 90)


def test_a_number_that_no_float_can_hold_is_a_problem(tmp_path):
    write_data(tmp_path, [annotation(1, bbox=(10**400, 2, 3, 4))])
    (problem,) = problems_of(tmp_path)
    assert "is not four numbers" in problem


ORDERS = ["images annotations categories", "annotations categories images", "annotations images"]


@pytest.mark.parametrize("order", [*ORDERS, "categories images annotations"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_is_read_in_windows_of_any_size(order, indent, tmp_path, monkeypatch):
    entries = [
        annotation(i, 3 if i % 3 else 4, (i, 2.5, 3, i % 5), image_id=1 + i % 2, area=i / 7)
        | {"segmentation": {"counts": [{"a": "}, {"}, {"b": 2}], "size": [1, 2]}}
        | ({"note": '"annotations": [{"id": 3}, '} if i % 2 else {"iscrowd": 1})
        for i in range(1, 30)
    ]
    path = write_data(tmp_path, [*entries, "odd", annotation(7)])
    content = json.loads(path.read_text())
    content = {table: content[table] for table in order.split()}
    path.write_text(json.dumps(content, indent=indent))
    whole = list_coco_file(path, tmp_path / "train")
    assert [len(image.boxes) for image in whole.images] == [14 + 1, 15]
    for window in (1, 50, 999):
        monkeypatch.setattr(coco_windows, "WINDOW", window)
        again = list_coco_file(path, tmp_path / "train")
        assert list(again.images) == list(whole.images)
        assert again._replace(images=[]) == whole._replace(images=[])


def test_boxes_have_the_same_figures_and_places_with_and_without_columns(tmp_path):
    rng = random.Random(0)
    boxes = [[rng.uniform(-9, 70) for _ in range(4)] for _ in range(60)]
    entries = [annotation(i, 3, box, image_id=1 + i % 2) for i, box in enumerate(boxes)]
    path = write_data(tmp_path, entries)
    in_columns = list_coco_file(path, tmp_path / "train")
    path.write_text("\ufeff" + path.read_text())  # which only the standard library reads
    one_by_one = list_coco_file(path, tmp_path / "train")
    assert list(in_columns.images) == list(one_by_one.images)
