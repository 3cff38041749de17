import itertools
import shutil
from types import SimpleNamespace

import pytest
import torch

from sepc_zoo.config import ConfigError, override
from sepc_zoo.data.images import ImageError, list_images, read_image
from sepc_zoo.inference import loader
from sepc_zoo.inference.loader import ImageFiles, image_loader
from sepc_zoo.inference.tta import Views


@pytest.fixture
def files(shapes, tmp_path):
    return list_images(shutil.copytree(shapes / "val", tmp_path / "images"))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 91])
def test_processes_share_the_batches_of_a_single_one(length, processes, monkeypatch):
    """Each batch once, also where there are fewer batches than processes."""

    def share(rank, number):
        process = SimpleNamespace(process_index=rank, num_processes=number)
        monkeypatch.setattr(loader, "PartialState", lambda: process)
        return image_loader(range(length), 4, 0).batch_sampler

    alone = share(0, 1)
    assert list(itertools.chain(*alone)) == list(range(length))
    assert {len(batch) for batch in alone[:-1]} <= {4}
    shares = [share(rank, processes) for rank in range(processes)]
    assert sorted(itertools.chain(*shares)) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_views_of_every_image_and_draws_no_random_numbers(workers, model, files):
    before = torch.get_rng_state()
    views = Views(flip=True)
    batches = image_loader(ImageFiles(files, model.config, views), 3, workers)
    images = list(itertools.chain(*batches))
    assert torch.equal(torch.get_rng_state(), before)
    assert [image.position for image in images] == list(range(len(files)))
    for image, file in zip(images, files, strict=True):
        expected = views.of_image(read_image(file), model.config)
        assert [view.resize for view in image.views] == [view.resize for view in expected]
        for view, other in zip(image.views, expected, strict=True):
            assert torch.equal(view.input, other.input)
        assert image.pixels is None


def test_an_unreadable_image_says_why(model, files):
    files[1].write_bytes(b"no image")
    with pytest.raises(ImageError) as error:
        read_image(files[1])
    images = ImageFiles(files, model.config)
    assert images[1].views is None
    assert images[1].problem == str(error.value)
    assert images[0].problem == ""


def test_no_files_give_no_batches(model):
    assert list(image_loader(ImageFiles([], model.config), 4, 2)) == []


def test_views_that_are_too_large_are_refused_before_any_worker_starts(model, files):
    large = override(model.config, {"weights": {"image_size": [8000, 8000]}})
    with pytest.raises(ConfigError, match="image_size"):
        ImageFiles(files, large, Views(scales=(4.0,)))
