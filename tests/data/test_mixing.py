"""Objects are painted in their class's colour, so a box can be compared with its pixels."""

import pytest
import torch

from sepc_zoo.config import ConfigError
from sepc_zoo.data.transforms.augmentation import Augmentation
from sepc_zoo.data.transforms.mixing import (
    COLUMNS,
    GREY,
    Mixer,
    crop,
    cut_out,
    mixup,
    paste_objects,
    random_crop,
    resize,
)

COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
SIZE = (96, 128)


def sample(*objects, size=SIZE, image_id=1, unreadable=()):
    """A black image with a rectangle ``(x1, y1, x2, y2, label)`` for each object."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    boxes = torch.tensor([o[:4] for o in objects], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([o[4] for o in objects], dtype=torch.int64)
    for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = COLORS[label][:, None, None]
    return image, {
        "boxes": boxes,
        "labels": labels,
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        "image_id": image_id,
        "unreadable": list(unreadable),
    }


def one_of_each():
    """Four images, each with an object of its own class."""
    places = [(10, 10, 40, 40), (60, 20, 110, 70), (30, 30, 90, 80), (5, 50, 45, 90)]
    return [sample((*box, label), image_id=label + 1) for label, box in enumerate(places)]


def assert_boxes_frame_their_pixels(mixed, tolerance=2.0):
    """Check that each box is the extent of its class's colour; each class occurs once."""
    image, target = mixed
    assert len(set(target["labels"].tolist())) == len(target["labels"])
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        close = (image.int() - COLORS[label].int()[:, None, None]).abs().amax(dim=0) < 100
        rows, columns = close.any(dim=1).nonzero(), close.any(dim=0).nonzero()
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(box, torch.stack(extent).float(), atol=tolerance, rtol=0)


def assert_sound(mixed):
    image, target = mixed
    assert image.dtype == torch.uint8
    assert len({len(target[name]) for name in COLUMNS}) == 1
    height, width = image.shape[-2:]
    boxes = target["boxes"]
    assert boxes.isfinite().all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def mixer(short=96, long=128, **changes):
    return Mixer(Augmentation(**changes), short, long, antialias=True)


def drawing(samples):
    """Return the samples one after the other."""
    return iter(samples).__next__


@pytest.mark.parametrize("seed", range(20))
def test_the_boxes_of_a_mosaic_frame_their_pixels(seed):
    torch.manual_seed(seed)
    first, *others = one_of_each()
    mixed = mixer(mosaic=1.0)(first, drawing(others))
    assert mixed[0].shape == (3, *SIZE)
    assert mixed[1]["image_id"] == 1
    assert_sound(mixed)
    whole = mixed[1]["area"] > 0
    assert whole.all()


def test_a_mosaic_keeps_boxes_with_their_pixels():
    """Small objects next to the corners that meet are not cut."""
    near = [(100, 70, 120, 90, 0), (8, 70, 28, 90, 1), (100, 6, 120, 26, 2), (8, 6, 28, 26, 3)]
    for seed in range(10):
        torch.manual_seed(seed)
        first, *others = [sample(o, image_id=i) for i, o in enumerate(near)]
        mixed = mixer(mosaic=1.0)(first, drawing(others))
        assert sorted(mixed[1]["labels"].tolist()) == [0, 1, 2, 3]
        assert_boxes_frame_their_pixels(mixed)


def test_a_mosaic_of_large_and_small_images_has_the_size_of_the_first():
    samples = [sample(size=size) for size in ((400, 300), (10, 10), (50, 700), (96, 128))]
    image, _ = mixer(short=60, long=90, mosaic=1.0)(samples[0], drawing(samples[1:]))
    assert image.shape == (3, 80, 60) or image.shape == (3, 90, 68)
    assert min(image.shape[1:]) <= 60
    assert max(image.shape[1:]) <= 90


def test_mixup_blends_and_keeps_both_sets_of_boxes():
    torch.manual_seed(0)
    first = sample((10, 10, 40, 40, 0))
    second = sample((60, 50, 100, 90, 1), size=(200, 110))
    image, target = mixup(first, second)
    assert target["labels"].tolist() == [0, 1]
    assert image.shape == first[0].shape
    assert 90 < image[0, 20, 20] < 170  # half object, half black
    assert 90 < image[1, 60, 70] < 170
    assert (image[:, :, 120] <= GREY).all()  # where the second image ends


def test_mixup_clips_or_drops_boxes_outside_the_first_image():
    _, target = mixup(sample(), sample((50, 10, 300, 60, 1), (250, 10, 290, 60, 2), size=(96, 300)))
    assert target["labels"].tolist() == []
    _, target = mixup(sample(), sample((50, 10, 150, 60, 1), size=(96, 300)))
    assert target["boxes"].tolist() == [[50, 10, 128, 60]]
    torch.testing.assert_close(target["area"], torch.tensor([78.0 * 50]))


@pytest.mark.parametrize("seed", range(10))
def test_pasted_objects_keep_their_pixels_and_hide_no_object(seed):
    torch.manual_seed(seed)
    first = sample((10, 10, 50, 50, 0))
    mixed = paste_objects(first, sample((70, 20, 90, 35, 1)))
    assert mixed[1]["labels"].tolist() == [0, 1]
    assert_sound(mixed)
    box = mixed[1]["boxes"][1].int().tolist()
    inside = mixed[0][:, box[1] : box[3], box[0] : box[2]]
    assert (inside == COLORS[1][:, None, None]).all()
    red = (mixed[0] == COLORS[0][:, None, None]).all(dim=0).sum()
    assert red >= 0.7 * 1600
    assert (first[0][1] == 0).all()  # the image itself stays as it is


def test_crowds_and_specks_are_not_pasted():
    other = sample((10, 10, 40, 40, 1), (60, 60, 61, 61, 2))
    other[1]["iscrowd"][0] = 1
    assert len(paste_objects(sample(), other)[1]["boxes"]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_pasted_objects_together_hide_no_object(seed):
    torch.manual_seed(seed)
    first = sample((4, 4, 124, 92, 0))
    other = sample(*((x, 10, x + 30, 70, 1) for x in range(0, 100, 20)))
    image, target = paste_objects(first, other)
    red = (image == COLORS[0][:, None, None]).all(dim=0).sum()
    assert red >= 0.7 * first[1]["area"][0]
    assert len(target["boxes"]) > 1


def test_pasted_objects_have_several_sizes():
    other = sample((60, 20, 100, 60, 1))
    sides = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = mixer(copy_paste=1.0)(sample(), lambda: other)
        assert_boxes_frame_their_pixels(mixed)
        x1, _, x2, _ = mixed[1]["boxes"][0].tolist()
        sides.append(x2 - x1)
    assert 20 <= min(sides) < 25
    assert 35 < max(sides) <= 40


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste", "crop"])
def test_crowds_stay_crowds(kind):
    """The second box of each image is a crowd; only crowds have the labels 2 and 3."""
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        first, other = (
            sample((20, 20, 50, 50, 0), (70, 20, 110, 60, 2)),
            sample((60, 40, 90, 80, 1), (10, 10, 50, 60, 3)),
        )
        for _, target in (first, other):
            target["iscrowd"][1] = 1
        mixed = (
            random_crop(first) if kind == "crop" else mixer(**{kind: 1.0})(first, lambda x=other: x)
        )
        labels, crowds = mixed[1]["labels"], mixed[1]["iscrowd"]
        assert torch.equal(crowds, (labels >= 2).long())
        assert_sound(mixed)
        seen |= set(labels.tolist())
    expected = {
        "mosaic": {0, 1, 2, 3},
        "mixup": {0, 1, 2, 3},
        "copy_paste": {0, 1, 2},
        "crop": {0, 2},
    }
    assert seen == expected[kind]


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste"])
def test_images_of_crowds_alone_can_be_mixed(kind):
    crowd = sample((10, 10, 60, 60, 0))
    crowd[1]["iscrowd"][0] = 1
    mixed = mixer(**{kind: 1.0})(crowd, lambda: crowd)
    assert_sound(mixed)
    assert mixed[1]["iscrowd"].all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 3)])
def test_images_of_any_shape_can_be_mixed(size):
    height, width = size
    asked = mixer(64, 96, mosaic=1.0, mixup=1.0, copy_paste=1.0)
    for seed in range(5):
        torch.manual_seed(seed)
        mixed = asked(sample((0, 0, width, height, 0), size=size), lambda: sample((2, 2, 9, 9, 1)))
        assert_sound(mixed)
        assert mixed[1]["area"].isfinite().all()
        assert min(mixed[0].shape[1:]) <= 64
        assert max(mixed[0].shape[1:]) <= 96


def test_an_object_larger_than_the_image_is_not_pasted():
    small = sample(size=(20, 20))
    assert len(paste_objects(small, sample((0, 0, 100, 90, 1)))[1]["boxes"]) == 0


def test_a_cut_out_has_one_box_though_another_overlaps():
    part, target = cut_out(sample((10, 10, 40, 40, 0), (20, 20, 60, 60, 1)), 0)
    assert part.shape == (3, 30, 30)
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[0, 0, 30, 30]], [0])


def test_a_crop_keeps_boxes_whose_centres_lie_inside():
    part, target = crop(sample((10, 10, 50, 50, 0), (40, 10, 100, 50, 1)), 0, 20, 60, 40)
    assert part.shape == (3, 60, 40)
    assert target["labels"].tolist() == [0]
    assert target["boxes"].tolist() == [[0, 10, 30, 50]]
    assert target["area"].tolist() == [30 * 40]


@pytest.mark.parametrize("seed", range(20))
def test_a_random_crop_keeps_at_least_one_object(seed):
    torch.manual_seed(seed)
    part, target = random_crop(sample((2, 2, 12, 12, 0)))
    assert target["labels"].tolist() == [0]
    assert part.shape[1] >= SIZE[0] / 2
    assert part.shape[2] >= SIZE[1] / 2
    assert_boxes_frame_their_pixels((part, target))


@pytest.mark.parametrize("seed", range(20))
def test_a_random_crop_keeps_more_than_a_crowd(seed):
    torch.manual_seed(seed)
    mixed = sample((2, 2, 12, 12, 0), (20, 20, 120, 90, 1))
    mixed[1]["iscrowd"][1] = 1
    assert 0 in random_crop(mixed)[1]["labels"].tolist()


def test_resizing_scales_boxes_and_areas():
    image, target = resize(sample((10, 10, 50, 50, 0)), (192, 64), antialias=True)
    assert image.shape == (3, 192, 64)
    assert target["boxes"].tolist() == [[5, 20, 25, 100]]
    assert target["area"].tolist() == [1600]


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste"])
@pytest.mark.parametrize("objects", [[], [(10, 10, 40, 40, 0)]], ids=["none", "one"])
def test_images_without_objects_can_be_mixed(kind, objects):
    mixed = mixer(**{kind: 1.0})(sample(*objects), lambda: sample())
    assert_sound(mixed)
    assert len(mixed[1]["boxes"]) <= len(objects)


def test_unreadable_files_of_all_mixed_images_are_named():
    samples = [sample(unreadable=[name]) for name in "abcd"]
    _, target = mixer(mosaic=1.0)(samples[0], drawing(samples[1:]))
    assert target["unreadable"] == list("abcd")


def test_images_are_mixed_in_the_first_epochs_only():
    asked = mixer(mosaic=0.5, mix_epochs=3)
    assert [asked.is_on(epoch) for epoch in (0, 2, 3)] == [True, True, False]
    assert mixer(mosaic=0.5).is_on(1000)
    assert not mixer().is_on(0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mosaic", 1.5),
        ("hflip", -0.1),
        ("mixup", float("nan")),
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("short_sides", (0,)),
        ("mix_epochs", -1),
    ],
)
def test_an_augmentation_outside_its_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Augmentation(**{name: value})
