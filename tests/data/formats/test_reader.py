import json

import pytest
from data_files import problems_of
from PIL import Image

from sepc_zoo.data import FORMATS, DataError, read_data, write_shapes
from sepc_zoo.data.formats.reader import find_data


def write_yolo(root, names=("cat", "dog"), numbers=(0, 1), split="train"):
    """One image with a box of each class number."""
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(root / "images" / split / "a.png")
    lines = [f"{number} 0.5 0.5 0.5 0.5" for number in numbers]
    (root / "labels" / split / "a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"{split}: images/{split}\nnames: {list(names)}")
    return root


def write_coco(root, categories, split="train"):
    """One image of id 7 with a box of each category, given by id and name."""
    for folder in ("annotations", split):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / split / "b.png")
    content = {
        "images": [{"id": 7, "file_name": "b.png", "height": 48, "width": 64}],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": i, "bbox": [1, 2, 3, 4]} for i in categories
        ],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_an_unknown_layout_shows_the_files_present_and_each_known_tree_once(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"no known layout. There is: labels\.csv, pictures/") as e:
        read_data([tmp_path, tmp_path], "train")
    for data_format in FORMATS.values():
        for line in data_format.layout:
            assert str(e.value).splitlines().count(f"    {line}") == 1


def test_a_missing_folder_is_named(tmp_path):
    assert problems_of(tmp_path / "nowhere", "train") == (f"{tmp_path}/nowhere: no such folder",)


def test_a_missing_split_says_which_exist(tmp_path):
    write_shapes(tmp_path / "shapes", train=1, val=1, size=(48, 64))
    with pytest.raises(DataError, match=r"the split test\* does not exist; there are: train, val"):
        read_data(tmp_path / "shapes", "test")
    assert [*find_data(tmp_path / "shapes").splits] == ["train", "val"]


def test_a_folder_of_two_layouts_asks_for_the_format(tmp_path):
    write_coco(write_yolo(tmp_path), {4: "owl"})
    (problem,) = problems_of(tmp_path, "train")
    assert "could be any of" in problem
    assert "--format coco or yolo" in problem
    assert read_data(tmp_path, "train", format="yolo").label_names == ("cat", "dog")
    assert read_data(tmp_path, "train", format="coco").label_names == ("owl",)


@pytest.mark.parametrize("name", FORMATS)
def test_a_requested_format_says_what_is_missing(name, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError) as caught:
        read_data(tmp_path, "train", format=name)
    assert f"not in the layout of {name}. There is: pictures/" in str(caught.value)
    shown = [key for key, other in FORMATS.items() if other.layout[0] in str(caught.value)]
    assert shown == [name]


def test_an_unknown_format_says_which_there_are(tmp_path):
    (problem,) = problems_of(tmp_path, "train", format="kitti")
    assert problem == "there is no format 'kitti'; there are: coco, voc, yolo, hf"


# --------------------------------------------------------------------------- several as one


def test_several_sources_are_joined_by_class_name(tmp_path):
    yolo = write_yolo(tmp_path / "one", names=["cat", "dog"])
    coco = write_coco(tmp_path / "two", {5: "owl", 6: "cat"})
    annotations = read_data([yolo, coco], "train")
    assert annotations.label_names == ("cat", "dog", "owl")
    assert [record.labels.tolist() for record in annotations.records] == [[0, 1], [2, 0]]
    assert [record.path.name for record in annotations.records] == ["a.png", "b.png"]


def test_images_get_new_ids_from_several_sources_only(tmp_path):
    sources = [write_coco(tmp_path / name, {1: "cat"}) for name in ("one", "two")]
    ids = [record.image_id for record in read_data(sources, "train").records]
    assert ids == [1, 2]
    assert [record.image_id for record in read_data(sources[:1], "train").records] == [7]


def test_category_ids_are_kept_unless_another_class_has_them(tmp_path):
    one = write_coco(tmp_path / "one", {1: "cat", 9: "dog"})
    two = write_coco(tmp_path / "two", {3: "dog", 9: "owl", 20: "yak"})
    annotations = read_data([one, two], "train")
    assert annotations.label_names == ("cat", "dog", "owl", "yak")
    assert annotations.category_ids == (1, 9, 21, 20)


def test_given_names_decide_the_labels_of_several_sources(tmp_path):
    one = write_coco(tmp_path / "one", {1: "cat"})
    two = write_coco(tmp_path / "two", {1: "dog"})
    annotations = read_data([one, two], "train", label_names=["dog", "yak", "cat"])
    assert annotations.category_ids == (2, None, 1)
    assert [record.labels.tolist() for record in annotations.records] == [[2], [0]]


def test_names_that_differ_in_case_only_are_a_problem_that_names_both_sources(tmp_path):
    one = write_coco(tmp_path / "one", {1: "cat"})
    two = write_coco(tmp_path / "two", {1: "Cat"})
    (problem,) = problems_of([one, two], "train")
    assert problem == f"{two}: class 'Cat' is 'cat' in {one}; write them alike"


def test_names_that_differ_in_case_only_are_allowed_inside_one_source(tmp_path):
    one = write_coco(tmp_path / "one", {1: "cat", 2: "Cat"})
    two = write_coco(tmp_path / "two", {1: "dog"})
    assert read_data([one, two], "train").label_names == ("cat", "Cat", "dog")


def test_two_classes_of_one_name_inside_a_source_are_still_a_problem(tmp_path):
    one = write_coco(tmp_path / "one", {1: "cat", 2: "cat"})
    two = write_coco(tmp_path / "two", {1: "cat"})
    (problem,) = problems_of([one, two], "train")
    assert problem == f"{one}: instances_train.json: two classes are named 'cat'"


def test_every_source_without_the_split_is_named(tmp_path):
    sources = [
        write_yolo(tmp_path / "one", split="val"),
        write_coco(tmp_path / "two", {1: "cat"}, split="train"),
        write_coco(tmp_path / "three", {1: "cat"}, split="val"),
    ]
    problems = problems_of(sources, "train")
    assert len(problems) == 2
    assert str(sources[0]) in problems[0]
    assert str(sources[2]) in problems[1]


def test_broken_lines_of_several_sources_name_their_source(tmp_path):
    sources = [write_yolo(tmp_path / name, numbers=[5]) for name in ("one", "two")]
    for source, problem in zip(sources, problems_of(sources, "train"), strict=True):
        assert problem.startswith(f"{source}: labels/train/a.txt:1: category 5")


def test_dropped_boxes_of_several_sources_name_their_source(tmp_path):
    sources = [write_yolo(tmp_path / name, numbers=[0, 0]) for name in ("one", "two")]
    annotations = read_data(sources, "train", drop_bad_boxes=True)
    assert tuple(map(str, annotations.dropped)) == tuple(
        f"{source}: labels/train/a.txt:2: the same as line 1" for source in sources
    )
