"""Exported files with the interface of a model."""

import pytest
import torch
from tiny_exports import TorchNetwork, tiny_detector

from sepc_zoo.export.loaded import ExportedModel
from sepc_zoo.export.metadata import ExportError, describe


@pytest.fixture(scope="module")
def model():
    return tiny_detector("retinanet_fpn", weights={"image_size": (128, 192)})


def in_torch(model, image_size=None, batch_size=None, raw=False):
    metadata = describe(model, image_size, batch_size, raw, "float32", {}, None)
    return ExportedModel(TorchNetwork(model, metadata))


def picture(height=150, width=210, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_predict_is_that_of_the_model(model):
    ours = model.predict(picture(), score_threshold=0.06)
    theirs = in_torch(model).predict(picture(), score_threshold=0.06)
    assert len(ours.scores) > 0
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-3)
    assert torch.equal(ours.labels, theirs.labels)
    assert theirs.label_names == ours.label_names


def test_images_of_one_padded_size_go_through_together(model):
    exported = in_torch(model)
    sizes = [(128, 160), (120, 150), (160, 128), (97, 129)]
    exported.detect([picture(*size) for size in sizes])
    assert exported.network.shapes == [(3, 128, 160, 3), (1, 160, 128, 3)]


def test_a_fixed_batch_is_filled_up(model):
    images = [picture(128, 160, seed) for seed in range(3)]
    fixed, free = in_torch(model, batch_size=2), in_torch(model)
    found, wanted = fixed.detect(images), free.detect(images)
    assert fixed.network.shapes == [(2, 128, 160, 3)] * 2
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one["boxes"], other["boxes"], atol=1e-3)


def test_a_fixed_input_is_the_size_that_images_are_resized_to(model):
    exported = in_torch(model, image_size=(128, 160))
    assert exported.config.weights.image_size == (128, 160)
    exported.predict(picture(300, 400))
    assert exported.network.shapes == [(1, 128, 160, 3)]


def test_an_upright_image_is_shrunk_to_a_fixed_input_that_lies(model):
    exported = in_torch(model, image_size=(128, 160))
    [found] = exported.detect([picture(160, 128)])
    assert exported.network.shapes == [(1, 128, 160, 3)]
    assert found["boxes"][:, 3].max() > 128  # pixels of the image, not of the input


def test_a_file_of_raw_outputs_gives_no_detections(model):
    with pytest.raises(ExportError, match="--raw"):
        in_torch(model, raw=True).detect([picture()])
