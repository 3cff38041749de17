"""Class weights, label smoothing and the losses of boxes, for every method that has them."""

import pytest
import torch
import torch.nn.functional as F
from small_batches import CLASSES, anchors_of, config_of, losses_of, random_predictions, target
from torchvision.ops import sigmoid_focal_loss

from sepc_zoo.config import METHOD_TYPES, override, resolve
from sepc_zoo.errors import ConfigError
from sepc_zoo.factory import create_model
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.targets import Positives, collate_targets
from sepc_zoo.ops.coders import encode
from sepc_zoo.outputs import TwoStagePredictions
from sepc_zoo.registry import model_config

DENSE = [name for name, address in METHOD_TYPES.items() if resolve(address).head == "dense"]
TARGETS = [
    target([[10, 12, 50, 60], [30, 20, 110, 90]], [0, 3]),
    target([[60, 10, 100, 80]], [2]),
]
REGIONS = torch.tensor([[[10.0, 12, 50, 60], [60, 10, 100, 80], [0, 0, 0, 0]]])


def weighted(*weights):
    """The targets with weights, image by image."""
    pairs = zip(TARGETS, weights, strict=True)
    return [t | {"weights": torch.tensor(w, dtype=torch.float64)} for t, w in pairs]


def class_loss(losses):
    """The terms that class weights enter."""
    return losses.get("loss_cls", losses.get("loss_positive_bag"))


def regions_loss(logits, deltas, targets, regions=REGIONS, **changes):
    """The second head's losses of Faster R-CNN, as sums."""
    method, head = (
        model_config("fasterrcnn_r18_fpn").method,
        model_config("fasterrcnn_r18_fpn").head,
    )
    empty = torch.zeros(1, 0)
    outputs = TwoStagePredictions(empty, empty, (), regions, logits, deltas)
    collated = collate_targets(targets, deltas)
    terms = override(method, changes).roi_loss(outputs, collated, head.roi.coder)
    return {name: total for name, (total, _) in terms.items()}


@pytest.mark.parametrize("method", DENSE)
def test_weights_of_one_change_nothing(method):
    predictions = random_predictions(method)
    plain = losses_of(method, predictions, *TARGETS)
    assert plain == losses_of(method, predictions, *weighted([1.0, 1.0], [1.0]))


@pytest.mark.parametrize("method", DENSE)
def test_the_loss_of_classes_is_linear_in_the_weight_of_a_box(method):
    predictions = random_predictions(method)
    sums = [
        class_loss(losses_of(method, predictions, *weighted([1.0, w], [1.0])))
        for w in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(sums[2] - sums[0], 3 * (sums[1] - sums[0]))
    assert sums[2] > sums[1] > sums[0]


@pytest.mark.parametrize("method", DENSE)
def test_a_weight_raises_the_gradient_of_its_class_alone(method):
    predictions = random_predictions(method)
    gradients = [
        torch.autograd.grad(
            class_loss(losses_of(method, predictions, *weighted([1.0, 1.0], [w]))),
            predictions.logits,
        )[0]
        for w in (1.0, 2.0)
    ]
    changed = (gradients[1] - gradients[0]).abs() > 1e-12  # N, A, K
    assert changed[1, :, 2].any()
    changed[1, :, 2] = False
    assert not changed.any()


def test_a_regions_cross_entropy_counts_as_often_as_its_class():
    logits = torch.randn(1, 3, 1 + CLASSES, generator=torch.Generator().manual_seed(0))
    deltas = torch.zeros(1, 3, CLASSES, 4)
    boxes = {"boxes": REGIONS[0, :1], "labels": torch.tensor([2])}
    found = regions_loss(logits, deltas, [boxes | {"weights": torch.tensor([5.0])}])["loss_cls"]
    terms = F.cross_entropy(logits[0, :2], torch.tensor([3, 0]), reduction="none")
    torch.testing.assert_close(found, 5 * terms[0] + terms[1])


def test_weights_of_crowds_are_left_out():
    crowd = weighted([2.0, 3.0], [4.0])
    crowd[0]["iscrowd"] = torch.tensor([1, 0])
    targets = collate_targets(crowd, torch.zeros(()))
    assert targets.weights.tolist() == [[3.0], [4.0]]
    assert collate_targets(TARGETS, torch.zeros(())).weights is None
    assert targets.flat_weights().tolist() == [3.0, 4.0]
    assert targets.of_image(1).weights.tolist() == [[4.0]]


def test_a_smoothed_focal_loss_is_least_at_the_smoothed_target():
    where = torch.zeros(1, dtype=torch.long)
    pos = Positives(where, where, where, torch.zeros(1, 4), where, None)
    ignored = torch.zeros(1, 1, dtype=torch.bool)
    best = torch.tensor([[[0.9]]], dtype=torch.float64).logit().requires_grad_()
    for shift, sign in ((-0.5, -1), (0.0, 0), (0.5, 1)):
        loss = focal_loss(best + shift, pos, ignored, smoothing=0.1)
        assert torch.autograd.grad(loss, best)[0].sign() == sign


@pytest.mark.parametrize("method", ["retinanet", "atss", "fcos"])
def test_smoothing_changes_positive_classes_alone(method):
    predictions = random_predictions(method)
    [hard], [soft] = (
        torch.autograd.grad(
            losses_of(method, predictions, *TARGETS, label_smoothing=e)["loss_cls"],
            predictions.logits,
        )
        for e in (0.0, 0.1)
    )
    changed = ((hard - soft).abs() > 1e-12).nonzero()
    assert {(i, k) for i, _, k in changed.tolist()} == {(0, 0), (0, 3), (1, 2)}


def test_without_smoothing_the_focal_loss_is_torchvisions():
    logits = torch.randn(1, 1, CLASSES, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(1, dtype=torch.long)
    pos = Positives(where, where, where, torch.zeros(1, 4), where, None)
    found = focal_loss(logits, pos, torch.zeros(1, 1, dtype=torch.bool), smoothing=1e-12)
    expected = sigmoid_focal_loss(logits, torch.eye(CLASSES)[:1, None], reduction="sum")
    torch.testing.assert_close(found, expected)


def test_faster_rcnn_smooths_its_cross_entropy():
    logits = torch.randn(1, 3, 1 + CLASSES, generator=torch.Generator().manual_seed(0))
    targets = [{"boxes": REGIONS[0, :1], "labels": torch.tensor([2])}]
    found = regions_loss(logits, torch.zeros(1, 3, CLASSES, 4), targets, label_smoothing=0.1)
    log_prob = logits[0, :2].log_softmax(dim=1)
    wanted = F.one_hot(torch.tensor([3, 0]), 1 + CLASSES) * 0.9 + 0.1 / (1 + CLASSES)
    torch.testing.assert_close(found["loss_cls"], -(wanted * log_prob).sum())


@pytest.mark.parametrize(
    ("method", "entry", "value", "reason"),
    [
        ("gfl", "label_smoothing", 0.1, "IoU of the predicted box"),
        ("freeanchor", "label_smoothing", 0.1, "probability of a bag"),
        ("freeanchor", "box_loss", "giou", "smooth L1"),
    ],
)
def test_a_knob_without_meaning_is_refused_with_the_reason(method, entry, value, reason):
    with pytest.raises(ConfigError, match=rf"method has no \['{entry}'\]; no {entry}: .*{reason}"):
        create_model(f"{method}_r18_fpn", num_classes=2, method={entry: value})


def perfect_deltas(method):
    """Deltas whose boxes are those of the targets, on all anchors that match one."""
    config, anchors = config_of(method), anchors_of(method)
    targets = collate_targets(TARGETS, like=anchors.boxes)
    match = config.method.match(anchors, targets, *[CLASSES] * (method == "fsaf"))
    match = match[0] if isinstance(match, tuple) else match
    boxes = targets.boxes.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))
    return encode(config.coder, anchors.boxes.expand_as(boxes), boxes)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("method", ["retinanet", "fsaf", "atss", "fcos"])
def test_perfect_boxes_cost_nothing_and_others_are_drawn_to_them(method, kind):
    random = random_predictions(method)
    perfect = perfect_deltas(method)
    exact = losses_of(method, random._replace(deltas=perfect), *TARGETS, box_loss=kind)
    torch.testing.assert_close(exact["loss_box"], torch.zeros_like(exact["loss_box"]))
    near = (perfect * 1.1).detach().requires_grad_()
    loss = losses_of(method, random._replace(deltas=near), *TARGETS, box_loss=kind)["loss_box"]
    (gradient,) = torch.autograd.grad(loss, near)
    nearer = losses_of(
        method, random._replace(deltas=near - 1e-3 * gradient), *TARGETS, box_loss=kind
    )["loss_box"]
    assert 0 < nearer < loss


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_faster_rcnn_learns_overlaps_of_its_regions(kind):
    boxes = torch.tensor([[12.0, 10, 52, 66]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])}]
    coder = model_config("fasterrcnn_r18_fpn").head.roi.coder
    deltas = torch.zeros(1, 3, CLASSES, 4)
    logits = torch.zeros(1, 3, 1 + CLASSES)
    worse = regions_loss(logits, deltas, targets, box_loss=kind, box_weight=10)["loss_box"]
    deltas[0, 0, 1] = encode(coder, REGIONS[0, :1], boxes)
    exact = regions_loss(logits, deltas, targets, box_loss=kind, box_weight=10)["loss_box"]
    assert worse > 1
    assert exact.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
@pytest.mark.parametrize("method", ["fsaf", "fcos"])
def test_boxes_without_area_have_finite_gradients(method, kind):
    random = random_predictions(method, dtype=torch.float32)
    flat = torch.zeros_like(random.deltas, requires_grad=True)
    losses = losses_of(method, random._replace(deltas=flat), *TARGETS, box_loss=kind)
    losses["loss_box"].backward()
    assert losses["loss_box"].isfinite()
    assert flat.grad.isfinite().all()
