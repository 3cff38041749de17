"""The yardstick computes what we compute, or its timings mean nothing."""

import pytest
import torch
from torch import nn

from benchmarks.plain import PlainNeck, plain_loss, plain_postprocess
from sepc_zoo.config import FPNConfig, PostprocessConfig
from sepc_zoo.methods import METHODS
from sepc_zoo.methods.losses import normalized
from sepc_zoo.methods.targets import Truth
from sepc_zoo.models.necks.sepc import SEPC
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Predictions
from sepc_zoo.registry import NECKS

STRIDES = FPNConfig().strides

METHOD = pytest.mark.parametrize("method", METHODS)
HEIGHT, WIDTH, CLASSES = 192, 256, 5
SIZES = tuple((-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES)


def random_pyramid(generator):
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [name for name, config in NECKS.items() if config is not None])
def test_the_neck_equals_ours(name, training):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    neck = SEPC(8, NECKS[name]).double().train(training)
    for key, value in neck.state_dict().items():
        if value.is_floating_point() and ("offset" in key or "norm" in key):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
    pyramid = [x.double() for x in random_pyramid(generator)]
    for ours, plain in zip(neck(pyramid), PlainNeck(neck)(pyramid), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-10, atol=1e-10)


def random_predictions(method, seed=0):
    """Some boxes on objects, some not, and none that lies exactly on a threshold."""
    config = METHODS[method].anchors
    generator = torch.Generator().manual_seed(seed)
    anchors = make_anchors(config, SIZES, STRIDES)
    logits = torch.randn(3, len(anchors), CLASSES, generator=generator) - 3
    deltas = torch.randn(3, len(anchors), 4, generator=generator) * 0.3
    if METHODS[method].positive_deltas:
        deltas = deltas.relu()
    return Predictions(logits.requires_grad_(), deltas.requires_grad_(), SIZES), anchors


def random_truth(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH - 70, HEIGHT - 70])
    size = torch.rand(count, 2, generator=generator) * 150 + 8
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Truth(torch.cat([corner, corner + size], dim=1), labels, torch.zeros(0, 4))


@METHOD
def test_the_loss_and_its_gradient_equal_ours(method):
    predictions, anchors = random_predictions(method)
    truths = [random_truth(count, seed) for seed, count in enumerate((12, 0, 5))]
    inputs = (predictions.logits, predictions.deltas)
    ours = normalized(*METHODS[method]().loss_sums(predictions, anchors, truths))
    plain = plain_loss(METHODS[method](), predictions, anchors, truths)
    assert list(plain) == list(ours)
    for name, loss in plain.items():
        torch.testing.assert_close(loss, ours[name], rtol=1e-5, atol=1e-5)
    of_ours = torch.autograd.grad(sum(ours.values()), inputs)
    of_plain = torch.autograd.grad(sum(plain.values()), inputs)
    for grad, expected in zip(of_plain, of_ours, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


@METHOD
def test_detections_equal_ours(method):
    predictions, anchors = random_predictions(method)
    sizes = [(HEIGHT, WIDTH), (150, 201), (HEIGHT, 100)]
    config = PostprocessConfig(candidates_per_level=200)
    decode = METHODS[method]().decode
    ours = select_detections(predictions, anchors, decode, sizes, config)
    plain = plain_postprocess(predictions, anchors, decode, sizes, config)
    for theirs, found in zip(plain, ours, strict=True):
        assert len(found["labels"]) > 50
        assert torch.equal(theirs["labels"], found["labels"])
        torch.testing.assert_close(theirs["scores"], found["scores"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["boxes"], found["boxes"], rtol=1e-5, atol=1e-5)
