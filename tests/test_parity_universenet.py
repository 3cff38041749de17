"""What is special of UniverseNet-20.08s: norms that learn, and images that are stretched."""

import json

import pytest
import torch
from opencv_resize import resize_like_opencv
from openmmlab_goldens import (
    GOLDENS,
    Golden,
    assert_equal,
    assert_maps_equal,
    by_level,
    published_shapes,
    repeatable_weights,
)

from sepc_zoo.checkpoints.convert.openmmlab import from_openmmlab
from sepc_zoo.data.pixels import normalize
from sepc_zoo.inference.preprocess import open_image, plan_resize

FOLDER = "universenet"
[NAME] = GOLDENS[FOLDER]
SMALL = {
    "mini": "universenet50_2008s_fp16_4x16_mini_mstrain_320_640_2x_coco",
    "micro": "universenet50_2008s_fp16_4x16_micro_mstrain_128_256_2x_coco",
}
pytestmark = pytest.mark.slow


def test_maps_and_statistics_of_a_training_step_equal_the_originals(shared_reference):
    golden = Golden(shared_reference, FOLDER, NAME)
    model, figures = golden.train(), golden.figures
    with torch.no_grad():
        features = model.backbone(golden.images)
        necks = model.neck(model.fpn(features))
        outputs = model.head(*necks)
    assert_maps_equal(features, figures["train_backbone"][1:])
    assert_maps_equal(necks[0], figures["train_sepc_cls"])
    assert_maps_equal(necks[1], figures["train_sepc_box"])
    assert_maps_equal(by_level(golden, outputs.logits), figures["train_cls_score"])
    assert_maps_equal(by_level(golden, outputs.deltas), figures["train_bbox_pred"])
    buffers = dict(model.named_buffers())
    for norm, statistics in figures["statistics_after_step"].items():
        steps = statistics.pop("num_batches_tracked")
        assert buffers[golden.names[f"{norm}.num_batches_tracked"]] == steps
        for kind, summary in statistics.items():
            assert_equal(buffers[golden.names[f"{norm}.{kind}"]], summary)


@pytest.fixture(scope="module")
def weights(shared_reference):
    shapes = published_shapes(shared_reference)[NAME]
    return repeatable_weights(shared_reference, FOLDER).repeatable_state_dict(shapes)


@pytest.fixture(scope="module", params=SMALL)
def small(request, weights):
    """A small model in float64, and its size in the figures."""
    state = {key: value.double() for key, value in weights.items()}
    return request.param, from_openmmlab(state, SMALL[request.param])


def photos(shared_reference, shared_data):
    figures = json.loads((shared_reference / FOLDER / "given" / "pipeline.json").read_text())
    for file, sizes in figures.items():
        yield open_image(shared_data / "coco_by_sa" / "val2017" / file).pixels, sizes


def test_photos_are_stretched_as_in_the_original(small, shared_reference, shared_data):
    """PyTorch's resizing differs from OpenCV's by a grey level at most."""
    size, model = small
    weights = model.config.weights
    for pixels, sizes in photos(shared_reference, shared_data):
        resize, summary = plan_resize(pixels.shape[-2:], model.config), sizes[size]["input"]
        batch = resize.to_input(pixels)[None]
        ours = normalize(batch, [resize.input_size], weights.mean, weights.std, torch.float64)[0]
        assert list(ours.shape) == summary["shape"]
        theirs = torch.tensor(summary["value"], dtype=torch.float64)
        grey_level = 1 / (255 * min(weights.std))
        assert (ours.flatten()[summary["index"]] - theirs).abs().max() < 1.01 * grey_level


def test_photos_give_the_detections_of_the_original(small, shared_reference, shared_data):
    """With OpenCV's resizing; all else is ours."""
    size, model = small
    weights = model.config.weights
    for pixels, sizes in photos(shared_reference, shared_data):
        figures, resize = sizes[size], plan_resize(pixels.shape[-2:], model.config)
        batch = resize_like_opencv(pixels, resize.input_size)[None]
        batch = normalize(batch, [resize.input_size], weights.mean, weights.std, torch.float64)
        assert_equal(batch[0], figures["input"])
        with torch.no_grad():
            [found] = model.postprocess(model(batch), [resize.input_size])
        theirs = {key: [one[key] for one in figures["found"]] for key in ("label", "box", "score")}
        assert found["labels"].tolist() == theirs["label"]
        boxes, scores = (torch.tensor(theirs[k], dtype=torch.float64) for k in ("box", "score"))
        torch.testing.assert_close(resize.to_image(found["boxes"]), boxes, rtol=0, atol=6e-5)
        torch.testing.assert_close(found["scores"], scores, rtol=0, atol=6e-9)
