import itertools
import shutil
from dataclasses import replace

import pytest
import torch

from sepc_zoo.config import ConfigError
from sepc_zoo.data.images import ImageError, list_images, read_image
from sepc_zoo.factory import create_model
from sepc_zoo.inference.loader import PhotoFiles, photo_loader, share_of_batches
from sepc_zoo.inference.preprocess import Photo
from sepc_zoo.inference.tta import PLAIN, Views


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
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture
def files(shapes, tmp_path):
    return list_images(shutil.copytree(shapes / "val", tmp_path / "photos"))


# Shares


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 91])
def test_shares_are_the_batches_that_one_process_would_see(length, processes):
    """Each once: whatever the number of batches, also fewer than processes."""
    alone = share_of_batches(length, 4, 0, 1)
    assert list(itertools.chain(*alone)) == list(range(length))
    assert {len(batch) for batch in alone[:-1]} <= {4}
    shares = [share_of_batches(length, 4, rank, processes) for rank in range(processes)]
    assert sorted(itertools.chain(*shares)) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Reading


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_every_photo_as_the_model_wants_it(workers, model, files):
    weights = model.config.weights
    loader = photo_loader(PhotoFiles(files, weights, PLAIN), 3, workers)
    photos = list(itertools.chain(*loader))
    assert [photo.position for photo in photos] == list(range(len(files)))
    for photo, file in zip(photos, files, strict=True):
        expected = Photo(read_image(file))
        assert photo.input.size == expected.size
        assert torch.equal(photo.input.images[0], expected.to_input(weights))
        assert photo.pixels is None


def test_a_photo_that_cannot_be_read_says_why(model, files):
    files[1].write_bytes(b"no image")
    with pytest.raises(ImageError) as error:
        read_image(files[1])
    photos = PhotoFiles(files, model.config.weights, PLAIN)
    assert photos[1].input is None
    assert photos[1].problem == str(error.value)
    assert photos[0].problem == ""


def test_reading_leaves_the_random_numbers_of_a_training_alone(model, files):
    before = torch.get_rng_state()
    list(photo_loader(PhotoFiles(files, model.config.weights, PLAIN), 1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_share_is_no_error(model):
    assert list(photo_loader(PhotoFiles([], model.config.weights, Views()), 4, 2)) == []


def test_views_that_are_too_large_are_refused_before_any_worker_starts(model, files):
    large = replace(model.config.weights, image_size=(8000, 8000))
    with pytest.raises(ConfigError, match="image_size"):
        PhotoFiles(files, large, Views(scales=(4.0,)))


# Batches


def test_photos_in_a_batch_do_not_change_what_is_seen_in_another(model):
    """Of two sizes that pad to the same, of another, and the first size again."""
    torch.manual_seed(0)
    sizes = (60, 90), (64, 96), (90, 60), (60, 90)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
    with torch.no_grad():
        together = model.detect(images)
        alone = [model.detect([image])[0] for image in images]
    for found, expected in zip(together, alone, strict=True):
        assert len(expected["boxes"]) > 5
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4)
