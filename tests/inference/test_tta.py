from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from sepc_zoo.config import ConfigError, PostprocessConfig, override
from sepc_zoo.inference.tta import Views, detect_views, merge_detections, mirror_boxes
from sepc_zoo.registry import authors_config

ALL = Views(flip=True, scales=(0.5, 1.0, 1.5))
COLUMNS = ("boxes", "scores", "labels")


@pytest.fixture(scope="module")
def noise():
    """An image of the model's own input size, so that resizing loses nothing."""
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8)


def difference(found, other):
    """Return the largest difference of two sets of detections; equal scores have no order."""
    if len(found) != len(other):
        return float("inf")
    columns = [
        torch.cat([d.boxes, d.scores[:, None], 1000 * d.labels[:, None]], 1) for d in (found, other)
    ]
    distance = (columns[0][:, None] - columns[1]).abs().amax(dim=2)
    return max(distance.amin(dim=0).max().item(), distance.amin(dim=1).max().item())


def random_detections(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    size = torch.rand(count, 2, generator=generator) * 30 + 5
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 3, (count,), generator=generator)
    return {"boxes": torch.cat([corner, corner + size], 1), "scores": scores, "labels": labels}


# Views


def test_a_single_view_is_no_augmentation(model, noise):
    plain, same = model.predict(noise, 0.0), model.predict(noise, 0.0, views=Views())
    assert len(plain) > 10
    assert all(torch.equal(getattr(plain, name), getattr(same, name)) for name in COLUMNS)


def test_the_mirror_image_gives_mirrored_detections(model, noise):
    """With flip, an image and its mirror image have the same two views."""
    flip = Views(flip=True)
    found = model.predict(noise, 0.0, views=flip)
    other = model.predict(noise.flip(-1), 0.0, views=flip)
    back = replace(other, boxes=mirror_boxes(other.boxes, noise.shape[-1]))
    assert difference(back, found) < 1e-3
    assert difference(found, model.predict(noise, 0.0)) > 1


def test_boxes_mirrored_twice_are_the_same():
    boxes = random_detections(9, 0)["boxes"]
    torch.testing.assert_close(mirror_boxes(mirror_boxes(boxes, 90), 90), boxes)
    assert mirror_boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), 90).tolist() == [[60, 20, 80, 40]]


def bright_box(images):
    """Detect the bright part of each image."""
    found = []
    for image in images:
        y, x = (image[0] > 0).nonzero(as_tuple=True)
        box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float()
        label = torch.zeros(1, dtype=torch.int64)
        found.append({"boxes": box, "scores": torch.ones(1), "labels": label})
    return found


@pytest.mark.parametrize("inclusive", [False, True])
def test_every_view_returns_to_the_pixels_of_the_image(inclusive):
    config = override(
        authors_config("fsaf_r50_sepc"),
        {"inclusive_boxes": inclusive, "weights": {"image_size": [240, 400]}},
    )
    pixels = torch.zeros(3, 120, 170, dtype=torch.uint8)
    pixels[:, 30:80, 20:60] = 255
    images = [ALL.of_image(p, config) for p in (pixels, pixels.transpose(1, 2))]
    found = detect_views(bright_box, images, PostprocessConfig(iou_threshold=1.0))
    for one, expected in zip(found, ([20, 30, 60, 80], [30, 20, 80, 60]), strict=True):
        assert 1 < len(one["boxes"]) <= 6  # one for each view, except for equal ones
        assert (one["boxes"] - torch.tensor(expected)).abs().max() <= 1.0


def test_no_images_give_no_detections():
    assert detect_views(bright_box, [], PostprocessConfig()) == []


def test_scales_are_factors_of_the_models_own_size(model):
    config = override(model.config, {"weights": {"image_size": [800, 1333]}})
    expected = [(640, 1066), (800, 1333), (1000, 1666)]
    assert Views(scales=(0.8, 1.0, 1.25)).bounds(config) == expected


def test_larger_views_are_resized_from_the_image_itself(model):
    """Resized from the input, they would lack the details that it has lost."""
    pixels = torch.zeros(3, 256, 256, dtype=torch.uint8)
    pixels[:, :, ::2] = 255
    config = override(model.config, {"weights": {"image_size": [128, 128]}})
    small, whole = Views(scales=(1.0, 2.0)).of_image(pixels, config)
    assert small.input.float().std() < 0.05 * 255
    assert whole.input.float().std() > 0.45 * 255


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (100.0,)])
def test_scales_out_of_range_are_refused(scales):
    with pytest.raises(ConfigError, match="scales"):
        Views(scales=scales)


def test_a_scale_that_makes_the_input_too_large_is_refused(model, noise):
    large = override(model.config, {"weights": {"image_size": [8000, 8000]}})
    with pytest.raises(ConfigError, match="image_size"):
        Views(scales=(4.0,)).of_image(noise, large)


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
def test_merging_is_class_wise_suppression_of_all_detections(threshold):
    parts = [random_detections(40, seed) for seed in range(3)]
    together = {name: torch.cat([part[name] for part in parts]) for name in COLUMNS}
    config = PostprocessConfig(iou_threshold=threshold, max_detections=1000)
    merged = merge_detections(parts, config)
    kept = naive_nms(together, threshold)
    assert 10 < len(kept) < 120
    for name, values in together.items():
        assert torch.equal(merged[name], values[kept])


@pytest.mark.parametrize(
    "entries", [{"view_fusion": "wbf"}, {"soft_nms": "gaussian"}, {"soft_nms": "linear"}]
)
def test_other_ways_of_merging_keep_the_order_and_the_limit(entries):
    parts = [random_detections(40, seed) for seed in range(3)]
    everything, some = (
        merge_detections(parts, PostprocessConfig(**entries, max_detections=limit))
        for limit in (1000, 7)
    )
    assert (everything["scores"].diff() <= 0).all()
    assert all(torch.equal(some[name], everything[name][:7]) for name in COLUMNS)
    hard = merge_detections(parts, PostprocessConfig(max_detections=1000))
    assert not torch.equal(everything["scores"], hard["scores"])


def test_merging_keeps_the_highest_scores():
    parts = [random_detections(40, seed) for seed in range(3)]
    everything = merge_detections(parts, PostprocessConfig())
    some = merge_detections(parts, PostprocessConfig(max_detections=7))
    assert torch.equal(some["scores"], everything["scores"][:7])
    assert (some["scores"].diff() <= 0).all()


def test_a_view_without_detections_adds_none():
    found, nothing = random_detections(5, 0), random_detections(0, 0)
    config = PostprocessConfig(iou_threshold=1.0)
    assert torch.equal(merge_detections([nothing, found], config)["boxes"], found["boxes"])
    assert len(merge_detections([nothing, nothing], config)["boxes"]) == 0


def test_all_views_keep_boxes_inside_the_image_and_the_best_detection(model, noise):
    found = model.predict(noise, 0.0, views=ALL)
    assert len(found) > 10
    assert found.boxes.min() >= 0
    assert (found.boxes.amax(dim=0)[2:] <= torch.tensor([90, 64])).all()
    assert (found.scores.diff() <= 0).all()
    assert found.scores[0] >= model.predict(noise, 0.0).scores[0]
