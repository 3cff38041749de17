"""Models with random weights."""

import torch
from commands import SHAPES

from sepc_zoo.factory import create_model


def finds_everywhere():
    """A tiny model that finds something everywhere."""
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_model("retinanet_mnv4s_pconv", label_names=SHAPES, **changes)
        for parameter in detector.head.cls.parameters():
            torch.nn.init.normal_(parameter)
    return detector


def same_tensors(model, other) -> bool:
    """Whether two models have the same tensors under the same names, bit for bit."""
    ours, theirs = model.state_dict(), other.state_dict()
    return [*ours] == [*theirs] and all(torch.equal(ours[key], theirs[key]) for key in ours)
