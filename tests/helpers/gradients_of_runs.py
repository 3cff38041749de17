"""The gradient of a step of a run, in float64."""

from contextlib import contextmanager

import torch

from sepc_zoo.data import collate
from sepc_zoo.training.gradients import accumulate_gradient
from sepc_zoo.training.recipes import set_train_mode
from sepc_zoo.training.run import Run


@contextmanager
def exactly():
    """Compute in float64, where sums in another order differ in the last digits at most."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ready(options):
    run = Run(options)
    set_train_mode(run.detector, freeze_bn=True)
    return run


def gradient(run, batches):
    """The gradient of a step by parameter, and its loss terms."""
    run.optimizer.zero_grad()
    losses = accumulate_gradient(run, batches)
    parameters = run.detector.named_parameters()
    return {n: p.grad.clone() for n, p in parameters}, {n: v.item() for n, v in losses.items()}


def batches_of(run, groups, empty=()):
    """The batches of these images of the data set; those in ``empty`` are without boxes."""
    samples = {i: run.train_loader.loader.dataset[i] for group in groups for i in group}
    for i in set(empty) & set(samples):
        for name in ("boxes", "labels", "iscrowd", "area"):
            samples[i][1][name] = samples[i][1][name][:0]
    weights = run.detector.config.weights
    batches = (collate([samples[i] for i in group]) for group in groups)
    return [batch.normalized(weights.mean, weights.std) for batch in batches]
