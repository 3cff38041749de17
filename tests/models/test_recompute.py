"""Gradient checkpointing of neck and head: the same step with less memory."""

import copy

import pytest
import torch
from accelerate import PartialState
from process_pair import ProcessPair
from tiny_detectors import some_images, some_targets

from sepc_zoo.config import SEPCNeck
from sepc_zoo.factory import create_model
from sepc_zoo.models import recompute
from sepc_zoo.models.necks.sepc import SEPC, IntegratedBatchNorm

MODELS = {
    "retinanet_r18_fpn": {},
    "atss_r18_sepc": {"head": {"convs": 1}, "neck": {"blocks": 2}},
    "fasterrcnn_r18_ibn_pconv": {"head": {"roi": {"convs": 1, "norm": True, "width": 32}}},
}


def step(model):
    """Losses, gradients and buffers of a step; the backbone's own norms are frozen."""
    model.train()
    model.backbone.eval()
    torch.manual_seed(0)  # Faster R-CNN samples its regions
    losses = model.loss(model(some_images(), some_targets()), some_targets())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*losses.values(), *gradients, *model.buffers()]


@pytest.mark.parametrize(("name", "changes"), MODELS.items())
def test_losses_gradients_and_running_statistics_are_the_same(name, changes):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, channels=16, **changes)
    same = copy.deepcopy(model)
    same.set_grad_checkpointing()
    for ours, theirs in zip(step(same), step(model), strict=True):
        assert torch.equal(ours, theirs)


def bytes_stored(model):
    """Bytes of the activations that neck and head keep for the gradient, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    stored = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
        return x

    pyramid = [torch.randn(1, 64, side, side, requires_grad=True) for side in (32, 16, 8, 4, 2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.train().head(*model.neck(pyramid))
    return sum(stored.values())


@pytest.mark.parametrize("name", ["atss_r18_fpn", "retinanet_r18_ibn_pconv"])
def test_fewer_activations_are_stored(name):
    model = create_model(name, num_classes=4, channels=64)
    everything = bytes_stored(model)
    model.set_grad_checkpointing()
    assert bytes_stored(model) < 0.6 * everything


def test_it_can_be_switched_off_again():
    model = create_model("retinanet_r18_pconv", num_classes=2, channels=16)
    model.set_grad_checkpointing(True)
    assert model.neck.grad_checkpointing
    assert model.head.grad_checkpointing
    model.set_grad_checkpointing(False)
    assert not model.neck.grad_checkpointing
    assert not model.head.grad_checkpointing


def test_nothing_is_recomputed_without_a_gradient(monkeypatch):
    model = create_model("retinanet_r18_pconv", num_classes=2, channels=16)
    model.set_grad_checkpointing(True)
    monkeypatch.setattr(recompute, "checkpoint", None)
    with torch.no_grad():
        model(some_images())


def synced_step(on):
    """Gradients and buffers of a neck whose norms see the cells of two processes."""
    rank = PartialState(cpu=True).process_index
    torch.manual_seed(0)
    neck = SEPC(16, SEPCNeck(norm=True, blocks=2))
    for module in neck.modules():
        if isinstance(module, IntegratedBatchNorm):
            module.sync = True
    neck.grad_checkpointing = on
    torch.manual_seed(rank)
    pyramid = [torch.randn(2, 16, side, side, requires_grad=True) for side in (8, 4, 2)]
    sum(x.square().sum() for part in neck(pyramid) for x in part).backward()
    return [*(p.grad for p in neck.parameters()), *neck.buffers()]


def compare_synced_steps():
    for ours, theirs in zip(synced_step(True), synced_step(False), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_norms_over_two_processes_stay_the_same():
    pair = ProcessPair()
    pair(compare_synced_steps)
    pair.close()
