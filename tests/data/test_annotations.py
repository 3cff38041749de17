import pickle

import pytest
import torch
from PIL import Image

from sepc_zoo.data import annotations
from sepc_zoo.data.annotations import build_annotations
from sepc_zoo.data.listing import ListedBox, ListedImage, Listing, find_duplicates
from sepc_zoo.data.problems import DataError, Problem

WHOLE = (0.0, 0.0, 64.0, 48.0)


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 48)).save(path)
    return path


def listed(path, *boxes, size=(48, 64), image_id=1, label=0):
    entries = [
        ListedBox(f"box {i}", box, label, "'cat'", iscrowd=0, area=7.0)
        for i, box in enumerate(boxes, start=1)
    ]
    return ListedImage(image_id, path, size, entries)


def build(*images, problems=(), **kwargs):
    return build_annotations(Listing(list(images), ["cat"], [1], list(problems)), **kwargs)


def problems_of(*images, **kwargs):
    with pytest.raises(DataError) as caught:
        build(*images, **kwargs)
    return tuple(map(str, caught.value.problems))


def test_boxes_over_the_border_are_clipped_and_keep_their_area(image_path):
    annotations = build(listed(image_path, (-5.0, 40.0, 10.0, 99.0)))
    assert annotations.records[0].boxes.tolist() == [[0, 40, 10, 48]]
    assert annotations.records[0].area.tolist() == [7]
    assert annotations.records[0].bbox.tolist() == [[-5, 40, 15, 59]]
    assert annotations.dropped == ()


def test_records_have_the_documented_types(image_path):
    record = build(listed(image_path, WHOLE), listed(image_path)).records[1]
    assert record.size == (48, 64)
    assert (record.boxes.shape, record.boxes.dtype) == ((0, 4), torch.float32)
    assert (record.labels.shape, record.labels.dtype) == ((0,), torch.int64)
    assert (record.iscrowd.shape, record.iscrowd.dtype) == ((0,), torch.int64)
    assert (record.area.shape, record.area.dtype) == ((0,), torch.float64)
    assert (record.bbox.shape, record.bbox.dtype) == ((0, 4), torch.float64)


def test_a_data_set_without_images_has_no_records():
    assert len(build().records) == 0


BAD_BOXES = {
    "not finite": (float("nan"), 0.0, 9.0, 9.0),
    "finite": (0.0, 0.0, float("inf"), 9.0),
    "no positive width": (5.0, 5.0, 5.0, 9.0),
    "no positive width and height": (5.0, 9.0, 7.0, 5.0),
    "outside": (64.0, 0.0, 70.0, 9.0),
    "lies outside the 64x48 image": (0.0, -9.0, 9.0, 0.0),
}


@pytest.mark.parametrize("reason", BAD_BOXES)
def test_a_bad_box_is_a_problem_that_names_it(reason, image_path):
    (problem,) = problems_of(listed(image_path, WHOLE, BAD_BOXES[reason]))
    assert problem.startswith("box 2: ")
    assert reason in problem


def test_bad_boxes_can_be_dropped_and_are_reported(image_path):
    image = listed(image_path, *BAD_BOXES.values(), WHOLE)
    annotations = build(image, drop_bad_boxes=True)
    assert annotations.records[0].boxes.tolist() == [list(WHOLE)]
    assert len(annotations.dropped) == len(BAD_BOXES)


def test_boxes_that_a_reader_could_not_list_can_be_dropped_too(image_path):
    listing = Listing(
        [listed(image_path, WHOLE)], ["cat"], [1], [Problem("box twice", "a.txt:2", "no box")]
    )
    with pytest.raises(DataError, match=r"a\.txt:2: no box\nBoxes like these"):
        build_annotations(listing)
    assert build_annotations(listing, drop_bad_boxes=True).dropped == tuple(listing.problems)


def test_dropping_boxes_still_reports_missing_files(image_path):
    missing = image_path.with_name("missing.png")
    problems = problems_of(listed(missing, BAD_BOXES["outside"]), drop_bad_boxes=True)
    assert problems == (f"{missing}: No such file or directory",)


def test_all_problems_are_listed_at_once(image_path):
    truncated = image_path.with_name("truncated.jpg")
    Image.effect_noise((64, 48), 50).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-500])
    problems = problems_of(
        listed(image_path.with_name("missing.png")),
        listed(truncated),
        listed(image_path, size=(100, 100)),
        listed(image_path, WHOLE, label=None),
        listed(image_path, BAD_BOXES["outside"]),
        problems=[Problem("broken entry", "a.json", "odd")],
    )
    assert len(problems) == 6


def test_an_unknown_category_is_a_problem_even_when_bad_boxes_are_dropped(image_path):
    (problem,) = problems_of(listed(image_path, WHOLE, label=None), drop_bad_boxes=True)
    assert problem == "box 1: category 'cat' is not among the 1 classes"


@pytest.mark.parametrize(
    ("annotated", "says"),
    [((48, 64), "the annotation has the size before it"), ((10, 20), "64x48")],
)
def test_a_contradicting_size_says_how_it_relates_to_the_exif_rotation(annotated, says, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.jpg", exif=exif)
    (problem,) = problems_of(listed(tmp_path / "turned.jpg", size=annotated))
    assert "the image is 48x64 (width x height) after its EXIF rotation" in problem
    assert says in problem
    build(listed(tmp_path / "turned.jpg", size=(64, 48)))


def test_the_message_shows_fifty_problems_and_counts_the_rest():
    error = DataError([Problem("broken entry", "", f"problem {i}") for i in range(60)], "Do this.")
    lines = str(error).splitlines()
    assert lines[:50] == [f"problem {i}" for i in range(50)]
    assert lines[50:] == ["... and 10 more problems", "Do this."]


def test_problems_of_one_text_do_not_hide_others():
    alike = [Problem("unknown category", f"box {i}", "odd class") for i in range(100)]
    error = DataError([*alike, Problem("broken entry", "b", "other")])
    expected = [*(f"box {i}: odd class" for i in range(5)), "b: other", "... and 95 more problems"]
    assert str(error).splitlines() == expected


def test_boxes_of_other_classes_than_those_asked_for_are_told_with_these(image_path):
    with pytest.raises(DataError, match=r"has the classes 2 \(dog, owl\)\.$"):
        build(listed(image_path, WHOLE), label_names=["dog", "owl"])


def test_the_error_survives_pickling():
    problems = Problem("wrong size", "a.jpg", "is larger"), Problem("broken entry", "b.json", "odd")
    error = pickle.loads(pickle.dumps(DataError(problems, "Do this.")))
    assert (error.problems, error.hint) == (problems, "Do this.")
    assert str(error) == "a.jpg: is larger\nb.json: odd\nDo this."


def test_duplicates_are_named_once():
    assert find_duplicates([3, 1, 3, 2, 1, 3]) == [3, 1]


@pytest.mark.parametrize("slow", [0.0, 1e9])
def test_slow_files_are_checked_in_threads_with_the_same_result(slow, image_path, monkeypatch):
    monkeypatch.setattr(annotations, "NUM_PROBED", 2)
    monkeypatch.setattr(annotations, "SLOW_FILE", slow)
    missing = [image_path.with_name(f"{i}.png") for i in range(9)]
    problems = problems_of(*(listed(path) for path in missing))
    assert problems == tuple(f"{path}: No such file or directory" for path in missing)
