import pytest
import torch

from sepc_zoo.methods.targets import TargetError, check_targets, collate_targets, positives

GOOD = {"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([2])}
WRONG_BOXES = {
    "without width": [10, 10, 10, 20],
    "without height": [10, 10, 20, 10],
    "turned round": [20, 20, 10, 10],
    "left of the image": [-20, 0, -5, 10],
    "above the image": [0, -20, 10, 0],
    "right of the image": [64, 0, 70, 10],
    "below the image": [0, 48, 10, 60],
    "not a number": [float("nan"), 0, 10, 10],
    "without end": [0, 0, float("inf"), 10],
}


def check(*targets):
    check_targets(targets, num_classes=3, extent=(48, 64))


def test_good_targets_pass():
    check(GOOD, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)})


def test_a_box_that_reaches_over_the_border_passes():
    check({"boxes": torch.tensor([[-5.0, -5.0, 100.0, 100.0]]), "labels": torch.tensor([0])})


@pytest.mark.parametrize("kind", WRONG_BOXES)
def test_a_wrong_box_is_named_with_its_image(kind):
    boxes = torch.cat([GOOD["boxes"], torch.tensor([WRONG_BOXES[kind]]).float()])
    with pytest.raises(TargetError, match="image 1 of the batch: box 1 "):
        check(GOOD, {"boxes": boxes, "labels": torch.tensor([0, 0])})


@pytest.mark.parametrize("image_id", [77, torch.tensor(77), torch.tensor([77]), "77"])
def test_the_image_is_named_by_its_id(image_id):
    target = {"boxes": GOOD["boxes"], "labels": torch.tensor([9]), "image_id": image_id}
    with pytest.raises(TargetError, match="image 77: box 0"):
        check(target)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": torch.tensor([-1])}, r"box 0 .* label -1 "),
        ({"labels": torch.tensor([3])}, r"box 0 .* label 3 "),
        ({"labels": torch.tensor([0, 1])}, r"boxes are \(1, 4\) for 2 labels"),
        ({"boxes": torch.zeros(1, 5)}, r"boxes are \(1, 5\) .* expected \(G, 4\)"),
        ({"iscrowd": torch.tensor([0, 1])}, r"iscrowd is \(2,\) for 1"),
        ({"weights": torch.ones(2)}, r"weights is \(2,\) for 1"),
    ],
)
def test_entries_that_do_not_fit_are_named(changes, says):
    with pytest.raises(TargetError, match=f"image 0 of the batch: {says}"):
        check(GOOD | changes)


@pytest.mark.parametrize("key", ["boxes", "labels"])
def test_a_missing_entry_is_named(key):
    with pytest.raises(TargetError, match=f"image 0 of the batch: .*{key}"):
        check({name: value for name, value in GOOD.items() if name != key})


def test_crowds_are_split_from_objects():
    boxes = torch.arange(12.0).view(3, 4)
    target = {"boxes": boxes, "labels": torch.arange(3), "iscrowd": torch.tensor([0, 1, 0])}
    targets = collate_targets([target, GOOD], like=boxes)
    assert torch.equal(targets.boxes[0], boxes[[0, 2]])
    assert targets.labels.tolist() == [[0, 2], [2, -1]]
    assert torch.equal(targets.crowds[0], boxes[[1]])
    assert not targets.crowds[1].any()


def test_targets_come_in_the_type_of_the_predictions():
    targets = collate_targets([GOOD], like=torch.zeros(1, dtype=torch.float64))
    assert targets.boxes.dtype == targets.crowds.dtype == torch.float64


def test_positives_gather_boxes_over_the_batch():
    boxes = torch.arange(12.0).view(3, 4)
    images = [
        {"boxes": boxes[:1], "labels": torch.tensor([5])},
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.long)},
        {"boxes": boxes[1:], "labels": torch.tensor([6, 7])},
    ]
    match = torch.tensor([[-1, 0, -2], [-1, -1, -1], [1, -2, 0]])
    pos = positives(match, collate_targets(images, boxes))  # two boxes an image
    assert pos.image.tolist() == [0, 2, 2]
    assert pos.anchor.tolist() == [1, 0, 2]
    assert pos.box.tolist() == [0, 5, 4]
    assert pos.labels.tolist() == [5, 7, 6]
    assert torch.equal(pos.boxes, boxes[[0, 2, 1]])


def test_boxes_of_a_batch_come_flat_without_padding():
    boxes = torch.arange(12.0).view(3, 4)
    images = [
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.long)},
        {"boxes": boxes[:1], "labels": torch.tensor([5])},
        {"boxes": boxes[1:], "labels": torch.tensor([6, 7])},
    ]
    image, flat, labels = collate_targets(images, boxes).flat()
    assert image.tolist() == [1, 2, 2]
    assert torch.equal(flat, boxes)
    assert labels.tolist() == [5, 6, 7]


def test_a_batch_without_boxes_is_padded_to_one():
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    targets = collate_targets([none, none], torch.zeros(1))
    assert targets.boxes.shape == (2, 1, 4)
    assert targets.labels.tolist() == [[-1], [-1]]
    assert targets.crowds.shape == (2, 0, 4)
    assert targets.lengths == (0, 0)


def test_values_of_a_batch_are_looked_at_once(monkeypatch):
    """Every look waits for a GPU, if they are on one."""
    looks = []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: looks.append(x) or bool(x.item()))
    check(*[GOOD | {"image_id": torch.tensor(i)} for i in range(4)])
    assert len(looks) == 1
