"""The yardstick computes the same values as the package."""

from functools import partial

import pytest
import torch
from small_batches import config_of
from torch import nn

from benchmarks.plain import PlainSEPC, plain_loss, plain_postprocess
from sepc_zoo.config import FPNConfig, PostprocessConfig, SEPCNeck
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.models.necks.sepc import SEPC
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.coders import decode
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Anchors, Predictions
from sepc_zoo.registry import NECKS

METHOD = pytest.mark.parametrize("method", ["retinanet", "freeanchor", "fsaf"])
STRIDES = FPNConfig().strides
HEIGHT, WIDTH, CLASSES = 192, 256, 5
SIZES = tuple((-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES)


def random_pyramid(generator):
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name", [name for name, config in NECKS.items() if isinstance(config, SEPCNeck)]
)
def test_the_necks_are_equal(name, training):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    neck = SEPC(8, NECKS[name]).double().train(training)
    for key, value in neck.state_dict().items():
        if value.is_floating_point() and ("offset" in key or "norm" in key):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    pyramid = [x.double() for x in random_pyramid(generator)]
    for ours, plain in zip(neck(pyramid), PlainSEPC(neck)(pyramid), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-10, atol=1e-10)


def random_predictions(method, seed=0):
    """Some boxes on objects, some not, and none exactly on a threshold."""
    config = config_of(method)
    generator = torch.Generator().manual_seed(seed)
    boxes = make_anchors(config.anchors, SIZES, STRIDES)
    logits = torch.randn(3, len(boxes), CLASSES, generator=generator) - 3
    deltas = torch.randn(3, len(boxes), 4, generator=generator) * 0.3
    if config.head.box_activation == "relu":
        deltas = deltas.relu()
    lengths = [height * width * config.anchors.per_cell for height, width in SIZES]
    predictions = Predictions(logits.requires_grad_(), deltas.requires_grad_(), SIZES)
    return config, predictions, Anchors(boxes, lengths)


def random_target(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH - 70, HEIGHT - 70])
    size = torch.rand(count, 2, generator=generator) * 150 + 8
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return {"boxes": torch.cat([corner, corner + size], dim=1), "labels": labels}


@METHOD
def test_losses_and_gradients_are_equal(method):
    config, predictions, anchors = random_predictions(method)
    targets = [random_target(count, seed) for seed, count in enumerate((12, 0, 5))]
    inputs = (predictions.logits, predictions.deltas)
    collated = collate_targets(targets, like=predictions.deltas)
    ours = mean_terms(config.method.loss(predictions, anchors, collated, config.coder))
    plain = plain_loss(config, predictions, anchors.boxes, targets)
    assert list(plain) == list(ours)
    for name, loss in plain.items():
        torch.testing.assert_close(loss, ours[name], rtol=1e-5, atol=1e-5)
    our_grads = torch.autograd.grad(sum(ours.values()), inputs)
    plain_grads = torch.autograd.grad(sum(plain.values()), inputs)
    for grad, expected in zip(plain_grads, our_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


@METHOD
def test_detections_are_equal(method):
    config, predictions, anchors = random_predictions(method)
    sizes = [(HEIGHT, WIDTH), (150, 201), (HEIGHT, 100)]
    limits = PostprocessConfig(candidates_per_level=200, empty_boxes=True)
    inputs = predictions, anchors.boxes, partial(decode, config.coder), sizes, limits
    for plain, ours in zip(plain_postprocess(*inputs), select_detections(*inputs), strict=True):
        assert len(ours["labels"]) > 50
        assert torch.equal(plain["labels"], ours["labels"])
        torch.testing.assert_close(plain["scores"], ours["scores"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain["boxes"], ours["boxes"], rtol=1e-5, atol=1e-5)
