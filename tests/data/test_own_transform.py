"""A user's transform: what it gets, and what is refused of what it returns."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from sepc_zoo.data import DetectionDataset, make_loader, read_data, train_transform
from sepc_zoo.data.transforms import own
from sepc_zoo.data.transforms.own import OwnTransform, TransformError


def sample(crowd=False):
    """A grey image of 40x60 pixels with two boxes."""
    target = {
        "boxes": torch.tensor([[10.0, 5, 30, 25], [0, 0, 60, 40]]),
        "labels": torch.tensor([1, 0]),
        "iscrowd": torch.tensor([0, int(crowd)]),
        "area": torch.tensor([100.0, 200]),
        "image_id": 7,
        "unreadable": [],
    }
    return torch.full((3, 40, 60), 100, dtype=torch.uint8), target


def changed(**entries):
    """A transform that changes entries of the target; ``image`` is the image."""

    def transform(image, target):
        return entries.get("image", image), {**target, **entries}

    return transform


def test_a_transform_gets_tv_tensors_and_may_leave_all_as_it_is():
    seen = []
    image, target = sample()
    result = OwnTransform(lambda *given: seen.append(given) or given, 2)(image, target)
    ((given, given_target),) = seen
    assert isinstance(given, tv_tensors.Image)
    assert isinstance(given_target["boxes"], tv_tensors.BoundingBoxes)
    assert {*given_target} == {"boxes", "labels", "iscrowd", "image_id"}
    assert type(result[0]) is type(result[1]["boxes"]) is torch.Tensor
    assert torch.equal(result[0], image)
    for name in ("boxes", "labels", "iscrowd"):
        assert torch.equal(result[1][name], target[name])
    assert {*result[1]} == {*target}


def test_a_transform_of_torchvision_is_taken_as_it_is():
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(1), v2.Resize([20, 30]), v2.RandomCrop((20, 20))]
    )
    image, target = OwnTransform(transform, 2)(*sample())
    assert image.shape == (3, 20, 20)
    assert (target["boxes"][:, 2:] <= 20).all()


def test_boxes_of_another_format_are_converted_where_they_say_so():
    transform = v2.ConvertBoundingBoxFormat("CXCYWH")
    assert torch.equal(OwnTransform(transform, 2)(*sample())[1]["boxes"], sample()[1]["boxes"])


def test_boxes_may_be_dropped_and_added_and_areas_follow():
    boxes, labels = torch.tensor([[0.0, 0, 4, 5]] * 3), torch.tensor([0, 1, 1])
    _, target = OwnTransform(changed(boxes=boxes, labels=labels), 2)(*sample())
    assert target["area"].tolist() == [20, 20, 20]
    assert target["iscrowd"].tolist() == [0, 0, 0]
    _, target = OwnTransform(changed(boxes=boxes[:0], labels=labels[:0]), 2)(*sample())
    assert {len(target[name]) for name in ("boxes", "labels", "iscrowd", "area")} == {0}


ONE = torch.tensor([[1.0, 2, 3, 4]])


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (lambda image, _: image, r"returned Image; it must return \(image, target\)"),
        (changed(image=Image.new("RGB", (4, 4))), "returned a Image as image; it must be a uint8"),
        (changed(image=np.zeros((40, 60, 3))), "returned a ndarray as image"),
        (changed(image=torch.rand(3, 40, 60)), r"returned an image torch.float32 \(3, 40, 60\)"),
        (changed(image=torch.zeros(1, 4, 4).byte()), r"torch.uint8 \(1, 4, 4\); .* \(3, H, W\)"),
        (lambda image, _: (image, [1]), "returned a target without a tensor 'boxes'"),
        (lambda image, t: (image, {"boxes": t["boxes"]}), "without a tensor 'labels'"),
        (changed(labels=[0, 1]), "without a tensor 'labels'"),
        (changed(boxes=torch.zeros(4)), r"returned boxes \(4,\); they must be \(G, 4\)"),
        (changed(boxes=ONE), r"labels torch.int64 \(2,\) for 1 boxes"),
        (changed(labels=torch.tensor([0.0, 1])), "labels torch.float32"),
        (changed(labels=torch.tensor([0, 2])), r"labels \[0, 2\]; the classes are 0 to 1"),
        (
            changed(boxes=torch.tensor([[0.0, 0, 62, 9]] * 2)),
            r"box \[0.0, 0.0, 62.0, 9.0\] .*60x40",
        ),
        (changed(boxes=torch.tensor([[9.0, 0, 5, 9]] * 2)), r"the box \[9.0, 0.0, 5.0, 9.0\]"),
        (changed(boxes=torch.full((2, 4), torch.nan)), r"the box \[nan"),
        (lambda *_: 1 / 0, "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(transform, text):
    with pytest.raises(TransformError, match=rf"transform .*{text}"):
        OwnTransform(transform, 2)(*sample())


def test_a_box_that_leaves_the_image_by_a_rounding_is_clipped():
    boxes = torch.tensor([[-0.5, 0, 60.5, 9], [1, 1, 9, 9]])
    first = OwnTransform(changed(boxes=boxes), 2)
    transform = train_transform(40, 60, antialias=True, first=first)
    assert transform(*sample())[1]["boxes"].max() <= 60


def test_crowd_flags_must_follow_the_boxes():
    transform = OwnTransform(changed(boxes=ONE, labels=torch.tensor([0])), 2)
    with pytest.raises(TransformError, match=r"iscrowd \(2,\) for 1 boxes"):
        transform(*sample(crowd=True))
    own_flags = changed(boxes=ONE, labels=torch.tensor([0]), iscrowd=torch.tensor([1]))
    assert OwnTransform(own_flags, 2)(*sample(crowd=True))[1]["iscrowd"].tolist() == [1]


def test_random_numbers_follow_from_the_image_and_leave_the_others_alone(shapes):
    drawn = []

    def draw(image, target):
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
        return image, target

    transform = train_transform(64, 64, antialias=True, first=OwnTransform(draw, 4))
    data = DetectionDataset(read_data(shapes, "train"), transform)
    random.seed(1), np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for index in (0, 1, 0):
        data[index]
    assert drawn[0] == drawn[2] != drawn[1]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_the_error_names_the_file(shapes):
    first = OwnTransform(lambda image, _: image, 4)
    transform = train_transform(64, 64, antialias=True, first=first)
    data = DetectionDataset(read_data(shapes, "train"), transform)
    loader = make_loader(data, 1, shuffle=False, seed=0, workers=1, multiple=32, drop_last=False)
    with pytest.raises(TransformError, match=r"train/000001.jpg: transform .*<lambda> returned"):
        next(iter(loader))


def test_a_transform_that_workers_cannot_get_is_refused(monkeypatch):
    transform = OwnTransform(lambda *sample: sample, 2)
    for method, is_refused in (("fork", False), ("spawn", True)):
        monkeypatch.setattr(own.multiprocessing, "get_start_method", lambda method=method: method)
        if is_refused:
            with pytest.raises(TransformError, match=r"top level of a module, or .* workers=0"):
                transform.check_workers()
        else:
            transform.check_workers()
    OwnTransform(v2.RandomHorizontalFlip(), 2).check_workers()
