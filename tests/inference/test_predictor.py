from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sepc_zoo.factory import create_model
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.predictor import detect, predict
from sepc_zoo.inference.tta import Views


def same(found, other):
    return all(
        torch.equal(getattr(found, k), getattr(other, k)) for k in ("boxes", "scores", "labels")
    )


# One image


def test_an_image_gives_detections(model, image):
    found = model.predict(image)
    assert isinstance(found, Detections)
    assert len(found) > 3
    assert found.label_names == ("cat", "dog", "bird")
    assert (found.scores.diff() <= 0).all()
    assert not found.scores.requires_grad


@pytest.mark.parametrize("size", [(90, 50), (50, 90), (53, 37), (81, 500), (1, 1), (300, 3)])
def test_boxes_lie_in_the_image(model, image, size):
    boxes = model.predict(image.resize(size), score_threshold=0.0).boxes
    assert len(boxes) > 0
    assert boxes.min() >= 0
    assert (boxes.amax(dim=0)[2:] <= torch.tensor(size)).all()


def test_boxes_are_in_pixels_of_the_image(model, image):
    """Twice the image is the same input, and every box twice as large."""
    small = image.resize((64, 64), Image.Resampling.NEAREST)
    large = small.resize((128, 128), Image.Resampling.NEAREST)
    found = model.predict(small, score_threshold=0.5)
    again = model.predict(large, score_threshold=0.5)
    assert abs(len(found) - len(again)) <= 0.2 * len(found)  # the resizing blurs a little
    assert again.boxes.max() > 65


@pytest.mark.parametrize("threshold", [0.06, 0.3, 0.6, 1.0])
def test_scores_are_at_least_the_threshold(model, image, threshold):
    scores = model.predict(image, score_threshold=threshold).scores
    assert (scores >= threshold).all()
    assert threshold == 1.0 or len(scores) > 0


# Many images


def test_a_list_or_tuple_gives_a_list(model, image, pixels, tmp_path):
    image.save(tmp_path / "x.png")
    found = model.predict([image, tmp_path / "x.png", pixels])
    assert [type(f) for f in found] == [Detections] * 3
    assert same(found[0], found[1])
    assert model.predict([]) == []
    assert len(model.predict((image,))) == 1


def test_a_batch_tensor_gives_a_list(model, image, pixels):
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    found = model.predict(batch)
    assert len(found) == 2
    assert all(same(f, model.predict(image)) for f in found)


def test_a_folder_gives_a_list_by_name(model, image, tmp_path):
    for name in ("b.png", "a.jpg", "c.bmp"):
        image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    for source in (tmp_path, str(tmp_path)):
        assert [f.image.name for f in model.predict(source)] == ["a.jpg", "b.png", "c.bmp"]


def test_images_of_a_batch_do_not_change_the_detections_of_others(model):
    """Of two sizes that pad to the same, of another, and the first size again."""
    torch.manual_seed(0)
    sizes = (60, 90), (64, 96), (90, 60), (60, 90)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
    together = model.detect(images)
    for found, image in zip(together, images, strict=True):
        alone = model.detect([image])[0]
        assert len(alone["boxes"]) > 5
        for name, values in alone.items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_give_what_one_by_one_gives(batch_size, model, image):
    images = [image.resize(size) for size in ((90, 50), (50, 90), (90, 50), (64, 64), (50, 90))]
    alone, together = model.predict(images), model.predict(images, batch_size=batch_size)
    for found, other in zip(alone, together, strict=True):
        assert len(found) > 3
        for name in ("boxes", "scores", "labels"):
            values = getattr(other, name)
            torch.testing.assert_close(values, getattr(found, name), rtol=1e-4, atol=1e-3)


def test_inputs_of_floats_are_in_the_same_grey_levels(model):
    """Resizing in floats, as torchvision does, is a convention of some weights."""
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    found, expected = model.detect([image.float()])[0], model.detect([image])[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# The model


def modes(model):
    return [module.training for module in model.modules()]


def test_every_module_gets_its_own_mode_back(model, image):
    try:
        model.train()
        model.backbone.eval()  # the authors' training step
        before = modes(model)
        model.predict(image)
        assert modes(model) == before
        with pytest.raises(TypeError):
            model.predict([image, None])
        assert modes(model) == before
    finally:
        model.eval()
    model.predict(image)
    assert not any(modes(model))


def test_prediction_in_train_mode_gives_the_same_and_keeps_the_statistics(model, image):
    expected = model.predict(image)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert same(model.train().predict(image), expected)
    model.eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_in_float64_predicts(image):
    model = create_model(
        "fsaf_r18_pconv", channels=16, num_classes=1, weights={"image_size": [64, 128]}
    )
    assert model.double().predict(image).boxes.dtype == torch.float64


def test_a_thread_predicts_as_the_main_thread_does(model, image):
    found = []
    thread = Thread(target=lambda: found.append(model.predict(image)))
    thread.start()
    thread.join()
    assert same(found[0], model.predict(image))


def test_anything_with_a_config_and_detect_can_predict(model, image):
    """An exported model needs neither modules nor parameters."""
    exported = SimpleNamespace(config=model.config, detect=lambda images: detect(model, images))
    views = Views(flip=True)
    assert same(predict(exported, image, 0.3, views), model.predict(image, 0.3, views))
