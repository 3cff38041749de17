"""What holds for the loss of every method, on batches of images."""

import time

import pytest
import small_batches as batches
import torch
from small_batches import losses_of, rows
from waits import Waits

from sepc_zoo.config import METHOD_TYPES, resolve
from sepc_zoo.methods import targets as targets_module
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops import boxes as boxes_module

CLASSES, HEIGHT, WIDTH = 4, 96, 128
STRIDES = (8, 16, 32, 64, 128)
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
SOME = {
    # No two anchors tie for the last place in a bag of FreeAnchor's: either would be right.
    "boxes": torch.tensor(
        [[18.3, 3.1, 64.4, 47.2], [63.3, 26.1, 99.4, 93.2], [6.3, 39.1, 62.4, 68.2]]
    ),
    "labels": torch.tensor([1, 3, 0]),
}
DENSE = [m for m, address in METHOD_TYPES.items() if resolve(address).head == "dense"]
METHOD = pytest.mark.parametrize("method", DENSE)


def sizes_of(height, width):
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)


def random_predictions(method, images=2, classes=CLASSES, size=(HEIGHT, WIDTH)):
    return batches.random_predictions(
        method, images, classes, sizes_of(*size), dtype=torch.float32, scale=0.3
    )


def total_of(method, predictions, *targets):
    return sum(losses_of(method, predictions, *targets).values())


@METHOD
@pytest.mark.parametrize("targets", [(NONE, NONE), (NONE, SOME), (SOME, NONE)])
def test_images_without_boxes_are_learned_from(method, targets):
    predictions = random_predictions(method)
    losses = losses_of(method, predictions, *targets)
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())
    sum(losses.values()).backward()
    for grad in (predictions.logits.grad, predictions.deltas.grad):
        assert grad.isfinite().all()


@METHOD
def test_a_batch_without_boxes_teaches_that_all_is_background(method):
    predictions = random_predictions(method)
    losses = losses_of(method, predictions, NONE, NONE)
    sum(losses.values()).backward()
    assert (predictions.logits.grad > 0).all()
    assert not predictions.deltas.grad.any()
    of_boxes = losses["loss_positive_bag" if method == "freeanchor" else "loss_box"]
    assert of_boxes.item() == 0


@METHOD
def test_a_batch_without_boxes_weighs_no_more_than_one_with_a_box(method):
    """Divided by nothing, background alone would throw the weights about."""
    predictions = random_predictions(method)
    one = {key: value[:1] for key, value in SOME.items()}
    empty = total_of(method, predictions, NONE, NONE)
    assert empty < 60 * total_of(method, predictions, one, one)


@METHOD
def test_one_image_alone_is_the_batch_of_one(method):
    predictions = random_predictions(method)
    alone = losses_of(method, rows(predictions, [0]), SOME)
    twice = losses_of(method, rows(predictions, [0, 0]), SOME, SOME)  # sums and counts both double
    torch.testing.assert_close(twice, alone)


@METHOD
def test_the_order_of_the_boxes_does_not_matter(method):
    predictions = random_predictions(method)
    expected = losses_of(method, predictions, SOME, NONE)
    for order in ([2, 0, 1], [1, 0, 2], [2, 1, 0]):
        permuted = {key: value[order] for key, value in SOME.items()}
        torch.testing.assert_close(losses_of(method, predictions, permuted, NONE), expected)


@METHOD
def test_the_order_of_the_images_does_not_matter(method):
    predictions = random_predictions(method)
    turned = rows(predictions, [1, 0])
    expected = losses_of(method, predictions, SOME, NONE)
    torch.testing.assert_close(losses_of(method, turned, NONE, SOME), expected)


def with_crowd(target, crowd):
    count = len(target["boxes"])
    return {
        "boxes": torch.cat([target["boxes"], torch.tensor([crowd])]),
        "labels": torch.cat([target["labels"], torch.tensor([2])]),
        "iscrowd": torch.tensor([0] * count + [1]),
    }


CROWD = [64.0, 0.0, 128.0, 96.0]


def anchors_in_crowd(method, predictions):
    anchors = batches.anchors_of(method, predictions.sizes).boxes
    x1, y1, x2, y2 = anchors.unbind(1)
    width = (x2.clamp(max=CROWD[2]) - x1.clamp(min=CROWD[0])).clamp(min=0)
    height = (y2.clamp(max=CROWD[3]) - y1.clamp(min=CROWD[1])).clamp(min=0)
    return width * height > 0.5 * (x2 - x1) * (y2 - y1)


@METHOD
@pytest.mark.parametrize("target", [NONE, {k: v[[0, 2]] for k, v in SOME.items()}])
def test_a_logit_inside_a_crowd_does_not_count(method, target):
    predictions = random_predictions(method, images=1)
    target = with_crowd(target, CROWD)
    inside = anchors_in_crowd(method, predictions)
    before = losses_of(method, predictions, target)
    sum(before.values()).backward()
    free = inside & ~predictions.logits.grad[0].any(dim=1)
    if method == "freeanchor" and len(target["boxes"]) > 1:
        assert free.sum() > 0.8 * inside.sum()  # a bag may hold a few of the others
    else:
        assert torch.equal(free, inside)
    with torch.no_grad():
        predictions.logits[0, free] += 5
    torch.testing.assert_close(losses_of(method, predictions, target), before)


@METHOD
def test_outside_of_the_crowd_all_is_background(method):
    predictions = random_predictions(method, images=1)
    total_of(method, predictions, with_crowd(NONE, CROWD)).backward()
    outside = ~anchors_in_crowd(method, predictions)
    assert (predictions.logits.grad[0][outside] > 0).all()


@METHOD
def test_a_crowd_is_no_object(method):
    predictions = random_predictions(method, images=1)
    total_of(method, predictions, with_crowd(NONE, CROWD)).backward()
    assert not predictions.deltas.grad.any()


@METHOD
def test_an_object_inside_a_crowd_is_learned(method):
    predictions = random_predictions(method, images=1)
    target = with_crowd(SOME, CROWD)  # the second box lies in it, but for a pixel
    total_of(method, predictions, target).backward()
    grad = predictions.logits.grad[0, anchors_in_crowd(method, predictions)]
    assert (grad[:, 3] < 0).any()


@METHOD
@pytest.mark.parametrize("cells", [1000, 30_000])
def test_chunks_of_anchors_do_not_change_the_loss(method, cells, monkeypatch):
    predictions = random_predictions(method)
    target = with_crowd(SOME, CROWD)
    expected = losses_of(method, predictions, target, NONE)
    monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    torch.testing.assert_close(losses_of(method, predictions, target, NONE), expected)


@METHOD
@pytest.mark.parametrize("targets", [(NONE, NONE), (NONE, SOME), (SOME, with_crowd(SOME, CROWD))])
def test_gathering_all_anchors_gives_the_same_loss(method, targets, monkeypatch):
    predictions = random_predictions(method)
    inputs = (predictions.logits, predictions.deltas)
    expected = losses_of(method, predictions, *targets)
    of_expected = torch.autograd.grad(sum(expected.values()), inputs)
    monkeypatch.setattr(targets_module, "GATHER_ALL", True)
    losses = losses_of(method, predictions, *targets)
    torch.testing.assert_close(losses, expected)
    gradients = torch.autograd.grad(sum(losses.values()), inputs)
    torch.testing.assert_close(gradients, of_expected)


@METHOD
def test_only_freeanchor_waits_for_a_gpu_where_all_anchors_are_gathered(method, monkeypatch):
    """It has to know which predictions lie near objects."""
    predictions = random_predictions(method)
    monkeypatch.setattr(targets_module, "GATHER_ALL", True)
    config, deltas = batches.config_of(method), predictions.deltas
    targets = collate_targets([SOME, with_crowd(NONE, CROWD)], like=deltas)
    anchors = batches.anchors_of(method, predictions.sizes, deltas.dtype)
    with Waits() as waits:
        terms = mean_terms(config.method.loss(predictions, anchors, targets, config.coder))
        sum(terms.values()).backward()
    assert len(waits.seen) <= (2 if method == "freeanchor" else 0), waits.seen


@METHOD
@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_wild_predictions_have_finite_losses_and_gradients(method, value):
    predictions = random_predictions(method)
    with torch.no_grad():
        predictions.logits[:, ::2] = value
        predictions.deltas[:, ::3] = abs(value)
    total = total_of(method, predictions, SOME, NONE)
    total.backward()
    assert total.isfinite()
    assert predictions.logits.grad.isfinite().all()
    assert predictions.deltas.grad.isfinite().all()


@METHOD
@pytest.mark.parametrize("box", [[50.0, 50.0, 50.5, 50.5], [-500.0, -500.0, 700.0, 700.0]])
def test_boxes_of_any_size_have_finite_losses(method, box):
    predictions = random_predictions(method, images=1)
    target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
    total = total_of(method, predictions, target)
    total.backward()
    assert total.isfinite()
    assert predictions.deltas.grad.isfinite().all()


@METHOD
def test_the_gradient_is_that_of_the_loss(method):
    """Along a random direction, in float64."""
    predictions = random_predictions(method, images=1)
    predictions = predictions._replace(
        **{
            name: part.detach().double().requires_grad_()
            for name, part in predictions._asdict().items()
            if isinstance(part, torch.Tensor)
        }
    )
    logits = predictions.logits
    generator = torch.Generator().manual_seed(1)
    step = torch.randn(logits.shape, generator=generator, dtype=torch.float64) * 1e-6

    def total(moved):
        losses = losses_of(method, predictions._replace(logits=moved), SOME)
        # GFL weights the terms of boxes by scores, but scores do not learn from them.
        return losses["loss_cls"] if method == "gfl" else sum(losses.values())

    total(logits).backward()
    expected = (logits.grad * step).sum().item()
    change = (total(logits.detach() + step) - total(logits.detach() - step)).item() / 2
    assert change == pytest.approx(expected, rel=1e-4)


@METHOD
@pytest.mark.slow
def test_500_boxes_on_a_photo_of_full_size(method):
    size = (800, 1344)
    predictions = random_predictions(method, images=2, classes=80, size=size)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=generator) * torch.tensor([1300.0, 760.0])
    side = torch.rand(500, 2, generator=generator) ** 2 * 400 + 4
    target = {
        "boxes": torch.cat([corner, corner + side], dim=1),
        "labels": torch.randint(0, 80, (500,), generator=generator),
    }
    start = time.perf_counter()
    total = total_of(method, predictions, target, target)
    total.backward()
    assert total.isfinite()
    assert predictions.logits.grad.isfinite().all()
    assert time.perf_counter() - start < 120
