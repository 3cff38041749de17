import pickle
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from sepc_zoo.config import ConfigError, PostprocessConfig, override
from sepc_zoo.inference.tiles import Tiles, Window, cut_boxes, join_windows, suppress_doubles
from sepc_zoo.inference.tta import TILES_AT_ONCE, Views, detect_views
from sepc_zoo.registry import authors_config

COLUMNS = ("boxes", "scores", "labels")
WHOLE, LEFT, RIGHT = Window(0, 0, 160, 100), Window(0, 0, 100, 100), Window(60, 0, 160, 100)


def detections(*rows, label=0):
    """Detections of one class, each from a score and a box."""
    scores, boxes = zip(*rows, strict=True) if rows else ((), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.full((len(rows),), label),
    }


def join(whole=(), left=(), right=(), **config):
    """The boxes that remain of those in three windows, as lists."""
    found = {WHOLE: detections(*whole), LEFT: detections(*left), RIGHT: detections(*right)}
    return join_windows(found, PostprocessConfig(**config))["boxes"].tolist()


# Windows


@pytest.mark.parametrize("size", [32, 50])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("sides", [(32, 33), (50, 51), (97, 20), (130, 111), (200, 50)])
def test_tiles_cover_every_pixel_and_hold_every_object_of_the_size_of_the_overlap(
    sides, overlap, size
):
    height, width = sides
    _, *tiles = Tiles(size, overlap).windows(height, width)
    seen = torch.zeros(1, height, width, dtype=torch.int64)
    for tile in tiles:
        assert 0 < tile.x2 - tile.x1 <= size
        assert 0 < tile.y2 - tile.y1 <= size
        tile.crop(seen).add_(1)
    assert not tiles or seen.min() >= 1
    side = max(1, int(size * overlap))
    for axis, length in ((0, width), (1, height)):
        spans = {(tile[axis], tile[axis + 2]) for tile in tiles}
        for start in range(length - side + 1 if tiles else 0):
            assert any(low <= start and start + side <= high for low, high in spans)


def test_the_whole_image_comes_first_and_alone_where_it_fits_one_tile():
    assert Tiles(64).windows(64, 50) == [Window(0, 0, 50, 64)]
    assert Tiles(64).windows(64, 65)[0] == Window(0, 0, 65, 64)
    assert len(Tiles(64).windows(64, 65)) == 3


@pytest.mark.parametrize(("size", "overlap"), [(31, 0.2), (64, -0.1), (64, 0.95)])
def test_tiles_out_of_range_are_refused(size, overlap):
    with pytest.raises(ConfigError, match="expected at least 32 pixels"):
        Tiles(size, overlap)


# Detection


@pytest.mark.parametrize("views", [Views(), Views(flip=True, scales=(1.0, 1.5))])
def test_an_image_that_fits_one_tile_has_exactly_the_detections_without_tiles(model, pixels, views):
    plain = model.predict(pixels, 0.0, views=views)
    tiled = model.predict(pixels, 0.0, views=replace(views, tiles=Tiles(90)))
    assert len(plain) > 10
    assert all(torch.equal(getattr(plain, name), getattr(tiled, name)) for name in COLUMNS)
    other = model.predict(pixels, 0.0, views=replace(views, tiles=Tiles(64)))
    assert not torch.equal(plain.scores, other.scores)


def bright_boxes(images):
    """Detect the bright part of each channel; what seems larger has the higher score.

    An object in a tile has a higher score than in the whole image, even if it is cut.
    """
    found = []
    for image in images:
        rows = []
        for channel in image:
            y, x = (channel > 127).nonzero(as_tuple=True)
            if len(y):
                box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                rows.append((1 - 1 / len(y), box))
        found.append(detections(*rows))
    return found


@pytest.mark.parametrize("views", [Views(), Views(flip=True), Views(scales=(1.0, 2.0))])
@pytest.mark.parametrize("inclusive", [False, True])
def test_every_object_is_found_once_and_whole(inclusive, views):
    """A small one inside of a large one of its class, and one on the borders of tiles."""
    config = override(
        authors_config("fsaf_r50_sepc"),
        {"inclusive_boxes": inclusive, "weights": {"image_size": [96, 128]}},
    )
    objects = [[40, 30, 130, 110], [55, 45, 67, 60], [136, 2, 148, 24]]
    pixels = torch.zeros(3, 120, 150, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(objects):
        pixels[channel, y1:y2, x1:x2] = 255
    inputs = replace(views, tiles=Tiles(64, 0.4)).of_image(pixels, config)
    (found,) = detect_views(bright_boxes, [inputs], PostprocessConfig())
    boxes = found["boxes"][found["boxes"][:, 0].argsort()]
    assert len(boxes) == 3
    assert (boxes - torch.tensor(objects)).abs().max() <= 1.5


def test_images_of_any_sizes_share_bounded_batches(model, pixels):
    """Each has the detections that it has alone."""
    config, sizes = model.config, []

    def detect(images):
        sizes.append(len(images))
        return model.detect(images)

    views = Views(tiles=Tiles(40, 0.5))
    images = [torch.from_numpy(pixels.copy()).permute(2, 0, 1), torch.zeros(3, 40, 30).byte()]
    inputs = [views.of_image(image, config) for image in images]
    found = detect_views(detect, inputs, config.postprocess)
    assert sum(sizes) == len(inputs[0]) + 1 > 2 * TILES_AT_ONCE
    assert max(sizes) == TILES_AT_ONCE
    for one, image in zip(found, images, strict=True):
        alone = model.predict(image, 0.0, views=views)
        for name in COLUMNS:
            torch.testing.assert_close(one[name], getattr(alone, name), atol=1e-4, rtol=1e-4)


def test_tiles_share_one_image_also_behind_a_worker(model):
    """Each tensor that a worker sends costs an open file."""
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    views = Views(tiles=Tiles(64)).of_image(image, model.config)
    for _, *tiles in (views, pickle.loads(pickle.dumps(views))):
        assert len(tiles) == 16
        assert len({id(view.pixels) for view in tiles}) == 1


# Joining


def test_the_pieces_of_a_large_object_are_joined():
    """A third tile shows neither of its ends."""
    tiles = [Window(x, 0, x + 100, 100) for x in (0, 60, 120)]
    pieces = [(0.6, [20, 10, 100, 90]), (0.9, [60, 11, 160, 90]), (0.8, [120, 10, 190, 88])]
    found = {Window(0, 0, 220, 100): detections()}
    found |= {tile: detections(piece) for tile, piece in zip(tiles, pieces, strict=True)}
    joined = join_windows(found, PostprocessConfig())
    assert joined["boxes"].tolist() == [[20, 10, 190, 90]]
    assert joined["scores"] == 0.9


def test_what_is_complete_suppresses_pieces_with_higher_scores():
    large = [20, 10, 140, 90]
    pieces = {"left": [(0.9, [20, 10, 100, 90])], "right": [(0.8, [60, 10, 140, 90])]}
    assert join(whole=[(0.3, large)], **pieces) == [large]


def test_pieces_of_two_objects_stay_apart():
    left, right = [70, 10, 100, 30], [60, 50, 90, 80]
    assert join(left=[(0.9, left)], right=[(0.8, right)]) == [left, right]


def test_boxes_are_cut_by_borders_inside_the_image_alone():
    boxes = torch.tensor([[0, 0, 30, 100], [0, 0, 99.5, 50], [60, 0, 90, 20], [5, 5, 50, 50]])
    assert cut_boxes(boxes, torch.tensor([LEFT] * 4), WHOLE).tolist() == [False, True, False, False]
    assert cut_boxes(boxes, torch.tensor([RIGHT] * 4), WHOLE).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_an_object_in_two_windows_is_found_once_with_its_higher_score():
    boxes = [[70, 10, 90, 30], [71, 10, 90, 31]]
    assert join(left=[(0.6, boxes[0])], right=[(0.7, boxes[1])]) == [boxes[1]]


def test_a_piece_of_what_reaches_beyond_its_window_is_suppressed():
    """It ends before the border, so that nothing else shows that it is a piece."""
    large, piece = [20, 10, 140, 90], [25, 10, 95, 90]
    assert join(whole=[(0.9, large)], left=[(0.8, piece)]) == [large]


def test_a_small_object_stays_inside_of_a_large_one_that_its_window_shows_whole():
    large, small = [10, 10, 90, 90], [20, 20, 40, 40]
    assert join(whole=[(0.9, large)], left=[(0.8, small)]) == [large, small]


def test_classes_are_joined_apart():
    box = [70, 10, 90, 30]
    found = {
        WHOLE: detections(),
        LEFT: detections((0.9, box)),
        RIGHT: detections((0.8, box), label=1),
    }
    assert join_windows(found, PostprocessConfig())["labels"].tolist() == [0, 1]


def test_the_limit_of_detections_holds_for_each_window():
    rows = [(0.9 - i / 100, [10 * i, 0, 10 * i + 5, 5]) for i in range(8)]
    assert len(join(whole=rows, max_detections=2)) == 6


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_suppression_is_that_of_a_plain_loop(threshold):
    generator = torch.Generator().manual_seed(0)
    windows = torch.tensor([WHOLE, LEFT, RIGHT])[torch.randint(0, 3, (150,), generator=generator)]
    corner, size = torch.rand(2, 150, 2, generator=generator) * torch.tensor([[[60.0]], [[40.0]]])
    corner += windows[:, :2]
    boxes = torch.cat([corner, corner + size], 1)
    scores = torch.rand(150, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 2, (150,), generator=generator)

    def is_double(i, j):
        if labels[i] != labels[j] or torch.equal(windows[i], windows[j]):
            return False
        small, large = (i, j) if size[i].prod() <= size[j].prod() else (j, i)
        x1, y1, x2, y2 = windows[small].tolist()
        left, top, right, bottom = boxes[large].tolist()
        iou = box_iou(boxes[[i]], boxes[[j]]).item()
        inter = iou / (1 + iou) * (size[i].prod() + size[j].prod())
        if left < x1 or top < y1 or right > x2 or bottom > y2:
            return inter / size[small].prod() > threshold
        return iou > threshold

    kept = []
    for i in range(150):
        if not any(is_double(i, j) for j in kept):
            kept.append(i)
    assert 20 < len(kept) < 140
    found = {"boxes": boxes, "scores": scores, "labels": labels, "windows": windows}
    assert suppress_doubles(found, threshold).tolist() == kept
