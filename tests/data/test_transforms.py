import pickle
import re
from pathlib import Path

import pytest
import torch

from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.pipeline import train_transform
from sepc_zoo.options import option_fields


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


def transformer(short, long, **asked):
    return train_transform(short, long, antialias=True, augmentation=Augmentation(**asked))


def bright_box(image):
    rows = (image.amax(dim=(0, 2)) > 127).nonzero()
    columns = (image.amax(dim=(0, 1)) > 127).nonzero()
    x1, x2, y1, y2 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    return torch.stack([x1, y1, x2, y2]).float()


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("limits", [(100, 160), (60, 200), (250, 400)])
def test_boxes_move_with_their_pixels(hflip, limits):
    transform = transformer(*limits, hflip=hflip, scale=(0.8, 1.2))
    torch.manual_seed(0)
    for box in [(20, 10, 60, 50), (0, 0, 30, 100), (120, 60, 160, 100)]:
        image, target = transform(*image_with(box))
        torch.testing.assert_close(target["boxes"][0], bright_box(image), atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("hflip", "vflip", "box"), [(1.0, 0.0, [100, 10, 140, 50]), (0.0, 1.0, [20, 50, 60, 90])]
)
def test_a_flip_mirrors_the_box(hflip, vflip, box):
    _, target = transformer(100, 160, hflip=hflip, vflip=vflip)(*image_with((20, 10, 60, 50)))
    assert target["boxes"].tolist() == [box]


def test_one_of_the_short_sides_is_drawn():
    transform = transformer(50, 1000, short_sides=(40, 50, 60))
    torch.manual_seed(0)
    sides = {transform(*image_with())[0].shape[-2] for _ in range(50)}
    assert sides == {40, 50, 60}


def test_the_sides_stay_within_their_limits_times_the_factor():
    transform = transformer(50, 1000, scale=(0.5, 2.0))
    torch.manual_seed(0)
    sides = [transform(*image_with())[0].shape[-2] for _ in range(50)]
    assert 25 <= min(sides) < 35
    assert 80 < max(sides) <= 100


def test_the_area_is_scaled_with_the_image():
    transform = transformer(50, 80)
    _, target = transform(*image_with((20, 10, 60, 50)))
    assert target["area"].tolist() == [25.0]


def test_labels_crowds_and_areas_of_dropped_boxes_are_dropped():
    transform = transformer(50, 80)
    boxes = (0, 0, 9, 9), (10, 10, 11, 90), (20, 20, 80, 80), (30, 30, 31, 31)
    _, target = transform(*image_with(*boxes))  # at half the size, two are thinner than a pixel
    assert target["labels"].tolist() == [0, 2]
    assert target["iscrowd"].tolist() == [0, 0]
    assert target["area"].tolist() == [25, 25.5]


def test_images_without_boxes_are_transformed():
    image, target = transformer(50, 80, color_jitter=True)(*image_with())
    assert image.shape == (3, 50, 80)
    assert target["boxes"].shape == (0, 4)


def test_colour_jitter_changes_colours_only():
    torch.manual_seed(0)
    original, target = image_with((20, 10, 60, 50))
    original = original // 2 + 50
    image, moved = transformer(100, 160, hflip=0.0, color_jitter=True)(original, target)
    assert torch.equal(moved["boxes"], target["boxes"])
    assert not torch.equal(image, transformer(100, 160, hflip=0.0)(original, target)[0])


def changed(image, **asked):
    """An image after a change of its pixels, without a flip; boxes must stay."""
    _, target = image_with((20, 10, 60, 50))
    changed, moved = transformer(*image.shape[1:], hflip=0.0, **asked)(image, target)
    assert torch.equal(moved["boxes"], target["boxes"])
    assert changed.shape == image.shape
    assert changed.dtype == torch.uint8
    return changed.int()


def orange(channels=3):
    colors = torch.tensor([200, 120, 40, 90, 10][:channels], dtype=torch.uint8)
    return colors.view(-1, 1, 1).repeat(1, 100, 160)


@pytest.mark.parametrize("seed", range(5))
def test_hue_saturation_and_brightness_change_what_their_names_say(seed):
    """Of orange: value 200, chroma 160, green at half of it."""
    torch.manual_seed(seed)
    hue = sorted(changed(orange(), hue=0.5)[:, 0, 0].tolist())
    assert hue != [40, 120, 200]
    assert hue[::2] == pytest.approx([40, 200], abs=2)  # value and chroma stay
    low, middle, high = sorted(changed(orange(), saturation=0.2)[:, 0, 0].tolist())
    assert high - low != 160
    assert (middle - low) / (high - low) == pytest.approx(0.5, abs=0.02)  # the hue stays
    red, green, blue = changed(orange(), brightness=0.2)[:, 0, 0].tolist()
    assert red != 200
    assert (green / red, blue / red) == pytest.approx((0.6, 0.2), abs=0.02)


def test_a_blur_softens_edges_and_leaves_what_is_even():
    image, _ = image_with((20, 10, 60, 50))
    torch.manual_seed(0)
    blurred = changed(image, blur=1.0)
    assert ((blurred > 0) & (blurred < 255)).any()
    assert (blurred[:, 15:45, 25:55] == 255).all()
    assert (blurred[:, 60:] == 0).all()
    thin, _ = transformer(4, 160, blur=1.0)(*image_with(size=(4, 160)))  # less than the kernel
    assert thin.shape == (3, 4, 160)


def test_jpeg_compression_changes_noise_more_than_smooth_pixels():
    torch.manual_seed(0)
    noise = torch.randint(256, (3, 100, 160), dtype=torch.uint8)
    assert (changed(noise, jpeg=1.0) - noise.int()).abs().float().mean() > 5
    assert (changed(orange(), jpeg=1.0) - orange().int()).abs().max() <= 5


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_channels_that_are_not_rgb_change_in_brightness_and_contrast_alone(channels):
    torch.manual_seed(0)
    image = orange(channels)
    assert torch.equal(changed(image, hue=0.5, saturation=1.0), image.int())
    dark = changed(image, brightness=0.3)
    factor = dark[0, 0, 0] / 200
    assert factor != 1
    assert ((dark - image * factor).abs() <= 1).all()
    assert (changed(image, blur=1.0, jpeg=1.0) - image.int()).abs().max() <= 3
    for _ in range(5):
        assert changed(image, color_jitter=True).shape == image.shape


def test_what_is_off_draws_no_random_numbers():
    """A run without an option is as it was before there was the option."""
    torch.manual_seed(0)
    transformer(100, 160)(*image_with((20, 10, 60, 50)))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randint(1, ())  # the short side
    torch.empty(()).uniform_()  # the scale
    torch.rand(1)  # the flip
    assert torch.equal(torch.get_rng_state(), state)


TRANSFORMS = {
    "plain": transformer(50, 80),
    "jittered": transformer(50, 80, color_jitter=True),
    "all": transformer(
        50, 80, degrees=20, shear=10, translate=0.1, perspective=0.1, crop=0.5, vflip=0.5,
        scale=(0.7, 1.2), color_jitter=True, hue=0.1, saturation=0.5, brightness=0.3, blur=0.5,
        jpeg=0.5,
    ),
}  # fmt: skip


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


def test_the_documentation_names_every_option():
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()
    flags = {"--" + entry.name.replace("_", "-") for entry in option_fields(Augmentation)}
    assert flags <= {*re.findall(r"--[a-z-]+", page)}
