import pytest
import torch
from tiny_detectors import COMBINATIONS, DENSE, LOSSES, some_images, some_targets, tiny_model
from torch import nn

from sepc_zoo.config import FPNConfig
from sepc_zoo.factory import create_model
from sepc_zoo.methods.targets import TargetError
from sepc_zoo.outputs import Predictions

STRIDES = FPNConfig().strides


@pytest.mark.parametrize(("method", "neck"), [c for c in COMBINATIONS if c[0] in DENSE])
def test_predictions_lie_on_the_pyramid(method, neck):
    model = tiny_model(method, neck)
    predictions = model(some_images())
    assert isinstance(predictions, Predictions)
    assert predictions.sizes == tuple((-(-96 // s), -(-128 // s)) for s in STRIDES)
    count = sum(h * w for h, w in predictions.sizes) * model.config.anchors.per_cell
    assert predictions.logits.shape == (2, count, 4)
    assert len(model.anchors(predictions.sizes, predictions.deltas).boxes) == count
    assert predictions.deltas.shape == (2, count, model.config.box_values)
    assert (predictions.quality is not None) == (model.config.head.quality != "none")
    assert sum(predictions.level_lengths) == count


@pytest.mark.parametrize(("method", "neck"), COMBINATIONS)
def test_every_parameter_gets_a_finite_gradient(method, neck):
    model = tiny_model(method, neck).train()
    for name, parameter in model.neck.named_parameters():
        if name.endswith(("finer.weight", "coarser.weight")):  # zero in a new model
            nn.init.normal_(parameter, std=0.01)
    losses = model.loss(model(some_images(), some_targets()), some_targets())
    assert list(losses) == LOSSES[method]
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A new residual block of timm's ends in a norm of weight zero, which stops its gradient.
        # The scale of a level learns from boxes of this level only.
        assert parameter.grad.any() or name.startswith(("backbone.", "head.scales.")), name


@pytest.mark.parametrize(("method", "neck"), COMBINATIONS)
def test_detections_lie_in_their_images(method, neck):
    model = tiny_model(method, neck, postprocess={"score_threshold": 0.0, "iou_threshold": 1.0})
    sizes = [(96, 128), (80, 100)]
    with torch.no_grad():
        outputs = model(some_images(), [{"image_size": size} for size in sizes])
    min_side = 0.01 if method == "fasterrcnn" else 0.0
    for image, (height, width) in zip(model.postprocess(outputs, sizes), sizes, strict=True):
        boxes, scores = image["boxes"], image["scores"]
        assert len(boxes) == 100
        assert boxes.min() >= 0
        assert (boxes <= torch.tensor([width, height] * 2)).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= min_side).all()
        assert ((image["labels"] >= 0) & (image["labels"] < 4)).all()
        assert ((scores > 0) & (scores < 1)).all()
        assert (scores.diff() <= 0).all()


@pytest.mark.parametrize("method", DENSE)
def test_train_and_eval_give_the_same_type(method):
    model = tiny_model(method)
    for mode in (True, False):
        predictions = model.train(mode)(some_images())
        assert isinstance(predictions, Predictions)
        assert predictions.logits.shape[2] == 4


@pytest.mark.parametrize("method", DENSE)
def test_a_new_model_scores_everything_near_one_percent(method):
    model = tiny_model(method, "fpn")
    mean = model(some_images()).logits.sigmoid().mean().item()
    spread = 0.25 if model.config.head.norm == "group" else 0.05  # a norm makes features larger
    torch.testing.assert_close(mean, 0.01, rtol=spread, atol=0)


def test_fsafs_deltas_are_not_negative():
    assert tiny_model("fsaf")(some_images()).deltas.min() >= 0


@pytest.mark.parametrize(
    ("method", "padding"), [("retinanet", 0), ("retinanet", 1), ("fasterrcnn", 1)]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 57), (65, 31), (257, 257), (259, 261)])
def test_an_image_of_any_size_gives_detections(size, method, padding):
    model = tiny_model(method, padding=padding, postprocess={"score_threshold": 0.0})
    [found] = model.postprocess(model(some_images(1, *size)), [size])
    assert found["boxes"].isfinite().all()
    assert (found["boxes"] <= torch.tensor([*size[::-1]] * 2)).all()


@pytest.mark.parametrize("backbone", ["convnext_atto", "densenet121", "dla46_c"])
@pytest.mark.parametrize("padding", [0, 1])
def test_backbones_that_cut_off_the_rest_take_any_size_too(backbone, padding):
    model = create_model(
        f"fsaf_{backbone}_pconv", channels=8, num_classes=1, neck={"blocks": 1, "padding": padding}
    )
    for size in [(1, 1), (33, 57), (257, 261)]:
        predictions = model(some_images(1, *size))
        expected = max(size[1], 257) if padding == 0 else max(size[1], 32)
        assert predictions.sizes[0][1] * 8 + 16 * (1 - padding) >= expected


def test_without_padding_p7_has_a_cell_left():
    assert tiny_model(padding=0)(some_images(1, 40, 40)).sizes[-1] == (1, 1)


@pytest.mark.parametrize("padding", [0, 1])
def test_large_enough_images_are_not_padded(padding):
    model = tiny_model(padding=padding)
    images = some_images(1, 288, 320)
    assert model.pad_small(images) is images


def test_an_image_is_padded_with_zeros_to_the_right_and_below():
    images = some_images(1, 20, 40)
    padded = tiny_model().pad_small(images)
    assert padded.shape == (1, 3, 32, 40)
    assert torch.equal(padded[..., :20, :], images)
    assert not padded[..., 20:, :].any()


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64)])
def test_what_is_no_batch_of_rgb_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected images \(N, 3, H, W\)"):
        tiny_model()(torch.zeros(shape))


ONE_OF_EACH_FAMILY = pytest.mark.parametrize("method", ["retinanet", "fasterrcnn"])


@ONE_OF_EACH_FAMILY
def test_targets_must_be_as_many_as_images(method):
    model = tiny_model(method)
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        model.loss(model(some_images()), some_targets()[:1])


@ONE_OF_EACH_FAMILY
def test_a_wrong_box_is_named_with_its_image(method):
    model, targets = tiny_model(method).train(), some_targets()
    targets[1]["boxes"][0] = torch.tensor([200.0, 10, 300, 20])
    with pytest.raises(TargetError, match=r"image 1 of the batch: box 0 .* 128x96 image"):
        model.loss(model(some_images(), targets), targets)


def test_without_padding_boxes_may_reach_to_the_border_of_the_image():
    model = tiny_model(padding=0)
    predictions = model(some_images(1, 288, 288))
    corner = {"boxes": torch.tensor([[281.0, 281, 288, 288]]), "labels": torch.tensor([0])}
    assert all(loss.isfinite() for loss in model.loss(predictions, [corner]).values())


@pytest.mark.parametrize(
    ("method", "neck"),
    [(m, neck) for m, neck in COMBINATIONS if neck in ("fpn", "sepc") or m == "fasterrcnn"],
)
def test_losses_are_float32_under_bf16(method, neck):
    model = tiny_model(method, neck).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(some_images(), some_targets())
        losses = model.loss(outputs, some_targets())
    assert outputs.logits.dtype == torch.bfloat16
    assert method in DENSE or outputs.regions.dtype == torch.float32
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", DENSE)
def test_losses_under_bf16_are_near_those_in_float32(method):
    """The predictions are rounded, and nothing after them."""
    model = tiny_model(method)
    predictions = model(some_images())
    rounded = predictions._replace(
        logits=predictions.logits.bfloat16(), deltas=predictions.deltas.bfloat16()
    )
    exact = rounded._replace(logits=rounded.logits.float(), deltas=rounded.deltas.float())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(rounded, some_targets())
    for name, loss in model.loss(exact, some_targets()).items():
        assert torch.equal(losses[name], loss)


@pytest.mark.parametrize("method", LOSSES)
def test_float64_stays_float64(method):
    model, images = tiny_model(method).double(), some_images().double()
    losses = model.loss(model(images, some_targets()), some_targets())
    assert all(loss.dtype == torch.float64 for loss in losses.values())
    for found in model.postprocess(model(images), [(96, 128)] * 2):
        assert found["boxes"].dtype == torch.float64


@pytest.mark.parametrize("method", LOSSES)
def test_a_few_steps_lower_the_loss(method):
    is_dense = method in DENSE
    model = tiny_model(method, "sepc_lite" if is_dense else "ibn_pconv").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if is_dense else 5e-3)
    totals = []
    # The weight of a box in GFL is its score, which has to grow first.
    for _ in range({"gfl": 30, "fasterrcnn": 16}.get(method, 8)):
        outputs = model(some_images(), some_targets())
        loss = sum(model.loss(outputs, some_targets()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_compiled_as_one_graph(training):
    model, images = tiny_model().train(training), some_images(count=1)
    with torch.set_grad_enabled(training):
        found = torch.compile(model, backend="eager", fullgraph=True)(images)
        expected = model(images)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.deltas, expected.deltas)
