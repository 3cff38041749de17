import pickle

import pytest
import torch

from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.pipeline import train_transform


def image_with(*boxes, size=(100, 160)):
    """A dark image with a bright rectangle in each box, and its target."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    target = {
        "boxes": boxes,
        "labels": torch.arange(count),
        "iscrowd": torch.arange(count) % 2,
        "area": 100.0 + torch.arange(count),
        "image_id": 5,
        "unreadable": [],
    }
    return image, target


def bright_box(image):
    rows = (image.amax(dim=(0, 2)) > 127).nonzero()
    columns = (image.amax(dim=(0, 1)) > 127).nonzero()
    x1, x2, y1, y2 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    return torch.stack([x1, y1, x2, y2]).float()


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("limits", [(100, 160), (60, 200), (250, 400)])
def test_boxes_move_with_their_pixels(hflip, limits):
    transform = train_transform(
        *limits, antialias=True, augmentation=Augmentation(hflip=hflip, scale=(0.8, 1.2))
    )
    torch.manual_seed(0)
    for box in [(20, 10, 60, 50), (0, 0, 30, 100), (120, 60, 160, 100)]:
        image, target = transform(*image_with(box))
        torch.testing.assert_close(target["boxes"][0], bright_box(image), atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("hflip", "vflip", "box"), [(1.0, 0.0, [100, 10, 140, 50]), (0.0, 1.0, [20, 50, 60, 90])]
)
def test_a_flip_mirrors_the_box(hflip, vflip, box):
    asked = Augmentation(hflip=hflip, vflip=vflip)
    transform = train_transform(100, 160, antialias=True, augmentation=asked)
    _, target = transform(*image_with((20, 10, 60, 50)))
    assert target["boxes"].tolist() == [box]


def test_one_of_the_short_sides_is_drawn():
    asked = Augmentation(short_sides=(40, 50, 60))
    transform = train_transform(50, 1000, antialias=True, augmentation=asked)
    torch.manual_seed(0)
    sides = {transform(*image_with())[0].shape[-2] for _ in range(50)}
    assert sides == {40, 50, 60}


def test_the_sides_stay_within_their_limits_times_the_factor():
    transform = train_transform(
        50, 1000, antialias=False, augmentation=Augmentation(scale=(0.5, 2.0))
    )
    torch.manual_seed(0)
    sides = [transform(*image_with())[0].shape[-2] for _ in range(50)]
    assert 25 <= min(sides) < 35
    assert 80 < max(sides) <= 100


def test_the_area_is_scaled_with_the_image():
    transform = train_transform(50, 80, antialias=True)
    _, target = transform(*image_with((20, 10, 60, 50)))
    assert target["area"].tolist() == [25.0]


def test_labels_crowds_and_areas_of_dropped_boxes_are_dropped():
    transform = train_transform(50, 80, antialias=True)
    boxes = (0, 0, 9, 9), (10, 10, 11, 90), (20, 20, 80, 80), (30, 30, 31, 31)
    _, target = transform(*image_with(*boxes))  # at half the size, two are thinner than a pixel
    assert target["labels"].tolist() == [0, 2]
    assert target["iscrowd"].tolist() == [0, 0]
    assert target["area"].tolist() == [25, 25.5]


def test_images_without_boxes_are_transformed():
    transform = train_transform(
        50, 80, antialias=True, augmentation=Augmentation(color_jitter=True)
    )
    image, target = transform(*image_with())
    assert image.shape == (3, 50, 80)
    assert target["boxes"].shape == (0, 4)


def test_colour_jitter_changes_colours_only():
    torch.manual_seed(0)
    original, target = image_with((20, 10, 60, 50))
    original = original // 2 + 50
    plain = train_transform(100, 160, antialias=True, augmentation=Augmentation(hflip=0.0))
    jittered = train_transform(
        100, 160, antialias=True, augmentation=Augmentation(hflip=0.0, color_jitter=True)
    )
    image, moved = jittered(original, target)
    assert torch.equal(moved["boxes"], target["boxes"])
    assert not torch.equal(image, plain(original, target)[0])


TRANSFORMS = {
    "plain": train_transform(50, 80, antialias=True),
    "jittered": train_transform(
        50, 80, antialias=True, augmentation=Augmentation(color_jitter=True)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_results_are_plain_tensors(name):
    image, target = TRANSFORMS[name](*image_with((20, 10, 60, 50)))
    assert image.dtype == torch.uint8
    assert {type(image), type(target["boxes"]), type(target["labels"])} == {torch.Tensor}
    assert target["image_id"] == 5


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_input_is_left_as_it_was(name):
    original, target = image_with((20, 10, 60, 50), (-5, 0, 200, 50))
    before = (
        original.clone(),
        {key: torch.as_tensor(value).clone() for key, value in target.items()},
    )
    TRANSFORMS[name](original, target)
    assert torch.equal(original, before[0])
    assert all(torch.equal(torch.as_tensor(target[key]), before[1][key]) for key in target)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_can_be_sent_to_workers(name):
    pickle.loads(pickle.dumps(TRANSFORMS[name]))
