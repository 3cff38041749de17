import dataclasses

import pytest
import torch
from torchvision.ops import box_iou

from sepc_zoo.config import ConfigError, PostprocessConfig, WeightsConfig
from sepc_zoo.factory import create_model
from sepc_zoo.inference.preprocess import Photo
from sepc_zoo.inference.tta import Views, look, merge, mirror_boxes
from sepc_zoo.registry import authors_config

ALL = Views(flip=True, scales=(0.5, 1.0, 1.5))


@pytest.fixture(scope="module")
def model():
    """Small, and sure enough of itself to find something in noise."""
    torch.manual_seed(0)
    model = create_model(
        "retinanet_r18_sepc_lite",
        channels=16,
        num_classes=3,
        neck={"blocks": 1},
        weights={"image_size": [64, 128]},
    ).eval()
    torch.nn.init.normal_(model.head.cls.weight, std=1.0)
    torch.nn.init.normal_(model.head.box.weight, std=0.3)
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture(scope="module")
def photo():
    """Of the model's own input size, so that nothing is lost by resizing."""
    torch.manual_seed(0)
    return Photo(torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8))


def differ(found, other):
    """The largest difference of two sets of detections; equal scores have no order."""
    if len(found) != len(other):
        return float("inf")
    columns = [
        torch.cat([d.boxes, d.scores[:, None], 1000 * d.labels[:, None]], 1) for d in (found, other)
    ]
    distance = (columns[0][:, None] - columns[1]).abs().amax(dim=2)
    return max(distance.amin(dim=0).max().item(), distance.amin(dim=1).max().item())


def random_found(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    size = torch.rand(count, 2, generator=generator) * 30 + 5
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 3, (count,), generator=generator)
    return {"boxes": torch.cat([corner, corner + size], 1), "scores": scores, "labels": labels}


def joined(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# Views


def test_the_plain_view_is_no_augmentation(model, photo):
    plain = model.predict(photo.pixels, 0.0)
    same = model.predict(photo.pixels, 0.0, views=Views())
    assert len(plain) > 10
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(plain, name), getattr(same, name))


def test_the_mirror_image_gives_mirrored_detections(model, photo):
    """With both views, photo and mirror image are looked at in the same two ways."""
    flip = Views(flip=True)
    found = model.predict(photo.pixels, 0.0, views=flip)
    other = model.predict(photo.pixels.flip(-1), 0.0, views=flip)
    back = dataclasses.replace(other, boxes=mirror_boxes(other.boxes, photo.size[1]))
    assert differ(back, found) < 1e-3
    assert differ(found, model.predict(photo.pixels, 0.0)) > 1


def test_mirroring_boxes_twice_gives_them_back():
    boxes = random_found(9, 0)["boxes"]
    torch.testing.assert_close(mirror_boxes(mirror_boxes(boxes, 90), 90), boxes)
    assert mirror_boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), 90).tolist() == [[60, 20, 80, 40]]


def bright_box(images):
    """Finds the bright part of an image, in the pixels of the image."""
    found = []
    for image in images:
        y, x = (image[0] > 0).nonzero(as_tuple=True)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        box = {"boxes": torch.tensor([box]).float(), "scores": torch.ones(1)}
        found.append(box | {"labels": torch.zeros(1, dtype=torch.int64)})
    return found


@pytest.mark.parametrize("name", ["fsaf_r50_sepc", "fsaf_r50_fpn"])
@pytest.mark.parametrize("authors", [False, True])
def test_every_view_comes_back_in_the_photos_pixels(name, authors):
    config = authors_config(name)
    post = PostprocessConfig(iou_threshold=1.0)
    weights = WeightsConfig(mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(240, 400))
    config = dataclasses.replace(config, inclusive_boxes=authors, postprocess=post, weights=weights)
    pixels = torch.zeros(3, 120, 170, dtype=torch.uint8)
    pixels[:, 30:80, 20:60] = 255
    views = [ALL.inputs(Photo(p), weights) for p in (pixels, pixels.transpose(1, 2))]
    for found, truth in zip(
        look(bright_box, views, config), ([20, 30, 60, 80], [30, 20, 80, 60]), strict=True
    ):
        assert 1 < len(found["boxes"]) <= 6  # a box of each view, but for those that are equal
        assert (found["boxes"] - torch.tensor(truth)).abs().max() <= 1.0


def test_each_scale_is_a_scale_of_the_models_own_size():
    weights = WeightsConfig(image_size=(800, 1333))
    sizes = [scaled.image_size for scaled in Views(scales=(0.8, 1.0, 1.25)).sizes(weights)]
    assert sizes == [(640, 1066), (800, 1333), (1000, 1666)]


def test_larger_views_are_made_of_the_photo_itself():
    """Not of the input, where the details are gone."""
    pixels = torch.zeros(3, 256, 256, dtype=torch.uint8)
    pixels[:, :, ::2] = 255
    weights = WeightsConfig(image_size=(128, 128))
    small, whole = Views(scales=(1.0, 2.0)).inputs(Photo(pixels), weights).images
    assert small.float().std() < 0.05 * 255
    assert whole.float().std() > 0.45 * 255


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (100.0,)])
def test_scales_that_make_no_sense_are_refused(scales):
    with pytest.raises(ConfigError, match="scales"):
        Views(scales=scales)


def test_a_scale_that_makes_the_input_too_large_is_refused(model, photo):
    large = dataclasses.replace(model.config.weights, image_size=(8000, 8000))
    with pytest.raises(ConfigError, match="image_size"):
        Views(scales=(4.0,)).inputs(photo, large)


# Merging


def naive_nms(found, threshold):
    kept = []
    for i in found["scores"].argsort(descending=True).tolist():
        rivals = [j for j in kept if found["labels"][i] == found["labels"][j]]
        overlaps = box_iou(found["boxes"][[i]], found["boxes"][rivals])
        if not (overlaps > threshold).any():
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_merging_is_class_wise_suppression_of_all_together(threshold):
    parts = [random_found(40, seed) for seed in range(3)]
    everything = joined(parts)
    merged = merge(parts, PostprocessConfig(iou_threshold=threshold, max_detections=1000))
    kept = naive_nms(everything, threshold)
    assert 10 < len(kept) < 120
    for name, values in everything.items():
        assert torch.equal(merged[name], values[kept])


def test_merging_keeps_the_surest():
    parts = [random_found(40, seed) for seed in range(3)]
    all_of_them = merge(parts, PostprocessConfig())
    some = merge(parts, PostprocessConfig(max_detections=7))
    assert torch.equal(some["scores"], all_of_them["scores"][:7])
    assert (some["scores"].diff() <= 0).all()


def test_a_view_that_shows_nothing_adds_nothing():
    found, nothing = random_found(5, 0), random_found(0, 0)
    post = PostprocessConfig(iou_threshold=1.0)
    assert torch.equal(merge([nothing, found], post)["boxes"], found["boxes"])
    assert len(merge([nothing, nothing], post)["boxes"]) == 0


# The whole


def test_all_views_keep_boxes_inside_the_photo(model, photo):
    found = model.predict(photo.pixels, 0.0, views=ALL)
    assert len(found) > 10
    assert found.boxes.min() >= 0
    assert found.boxes[:, [0, 2]].max() <= 90
    assert found.boxes[:, [1, 3]].max() <= 64
    assert (found.scores.diff() <= 0).all()


def test_the_surest_detection_of_any_view_stays_the_surest(model, photo):
    plain = model.predict(photo.pixels, 0.0)
    assert model.predict(photo.pixels, 0.0, views=ALL).scores[0] >= plain.scores[0]
