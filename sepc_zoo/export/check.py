"""Compare the detections of an exported file with those of its model."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from sepc_zoo.config import override
from sepc_zoo.export.graph import DetectionGraph
from sepc_zoo.export.loaded import ExportedModel
from sepc_zoo.export.metadata import ExportError
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.models.detector import Detector


class Tolerance(NamedTuple):
    """The largest differences between two detections of one object."""

    score: float  # maximum difference of scores
    iou: float  # minimum IoU of boxes
    pixels: float = 0.5  # or maximum distance of corners, for boxes with little area
    # Share of detections that may be unmatched: if two boxes overlap by nearly the threshold,
    # rounding decides whether suppression keeps both.
    unmatched: float = 0.0


TOLERANCES = {"float32": Tolerance(1e-3, 0.99), "float16": Tolerance(2e-2, 0.9, 2.0, 0.02)}
ROUNDING = 1e-6  # difference of scores up to which their order may change
PADDING = 9, 5  # pixels of padding on the right of a test image, and below it


def compare(model: Detector, exported: ExportedModel) -> dict[str, Any]:
    """Compare detections of a model and its exported file on made-up images.

    There are two batches, of different length and image size unless the file has these fixed.

    Returns:
        Numbers of images, detections and unmatched ones, and the largest differences.

    Raises:
        ExportError: more detections than allowed are unmatched.
    """
    metadata = exported.metadata
    figures: dict[str, Any] = {"images": 0, "detections": 0, "unmatched": 0}
    compare_one = raw_differences if metadata["raw"] else detection_differences
    for images in made_up_batches(exported.rule):
        for name, value in compare_one(model, exported, images).items():
            known = figures.get(name, 0)
            figures[name] = max(known, value) if name.startswith("max") else known + value
        figures["images"] += len(images)
    allowed = TOLERANCES[metadata["precision"]].unmatched * figures["detections"]
    if figures["unmatched"] > allowed:
        raise ExportError(
            f"the exported file is not the model: {figures['unmatched']} of "
            f"{figures['detections']} outputs differ ({figures}); nothing was written"
        )
    return figures


def made_up_batches(rule: dict[str, Any]) -> Iterator[list[Tensor]]:
    """Two batches of images ``(C, h, w)``, of sizes that the file accepts."""
    generator = torch.Generator().manual_seed(0)
    step, least = rule["pad_multiple"], rule["min_side"]
    short = -(-max(least, 128) // step) * step
    for batch, (height, width) in ((1, (short, short + step)), (3, (short + 2 * step, short))):
        shape = rule["height"] or height, rule["width"] or width
        yield [
            made_up_image(rule["channels"], (shape[0] - down, shape[1] - right), generator)
            for right, down in [(0, 0), PADDING, PADDING][: rule["batch"] or batch]
        ]


def made_up_image(channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Smooth noise at several scales, uint8 ``(C, h, w)``."""
    image = torch.zeros(1, channels, *size)
    for cells in (3, 7, 17, 41):
        noise = torch.rand(1, channels, cells, cells, generator=generator)
        image += F.interpolate(noise, size=size, mode="bilinear")
    low, high = image.min(), image.max()
    return ((image[0] - low) / (high - low) * 255).to(torch.uint8)


def detection_differences(
    model: Detector, exported: ExportedModel, images: Sequence[Tensor]
) -> dict[str, float]:
    """Match the detections of images, each ``(C, h, w)``."""
    tolerance = TOLERANCES[exported.metadata["precision"]]
    num_ours = num_unmatched = 0
    differences: dict[str, list[float]] = {"scores": [0.0], "boxes": [0.0]}
    found = model.detect(images), exported.detect(images)
    for image, ours, theirs in zip(images, *found, strict=True):
        pairs = match(ours, theirs, tolerance)
        num_ours += len(ours["scores"])
        mine = unmatched(model, ours, pairs[:, 0], tolerance)
        num_unmatched += int((~suppressed(model, mine, theirs)).sum())
        other = unmatched(model, theirs, pairs[:, 1], tolerance)
        if len(other["scores"]):
            [candidates] = without_suppression(model).detect([image])
            known = match(other, candidates, tolerance)[:, 0]
            num_unmatched += len(other["scores"]) - int(suppressed(model, other, ours)[known].sum())
        for name, values in differences.items():
            difference = ours[name][pairs[:, 0]] - theirs[name][pairs[:, 1]]
            values += difference.abs().flatten().tolist()
    return {
        "detections": num_ours,
        "unmatched": num_unmatched,
        "max_score_difference": max(differences["scores"]),
        "max_box_difference": max(differences["boxes"]),
    }


def match(ours: DetectionDict, theirs: DetectionDict, tolerance: Tolerance) -> Tensor:
    """Pairs ``(P, 2)`` of detections of the same object; each detection is in at most one pair."""
    iou = box_iou(ours["boxes"], theirs["boxes"])
    near = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(dim=2) <= tolerance.pixels
    score = (ours["scores"][:, None] - theirs["scores"]).abs()
    same = ours["labels"][:, None] == theirs["labels"]
    allowed = same & ((iou >= tolerance.iou) | near) & (score <= tolerance.score)
    cost = score.masked_fill(~allowed, torch.inf).tolist()
    free, pairs = {*range(len(theirs["scores"]))}, []
    for i, row in enumerate(cost):
        partners = [j for j in free if row[j] < torch.inf]
        if partners:
            j = min(partners, key=row.__getitem__)
            free.remove(j)
            pairs.append((i, j))
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def without_suppression(model: Detector) -> Detector:
    """A copy of the model whose detections are all its candidates."""
    model = copy.copy(model)
    model.config = override(
        model.config, {"postprocess": {"iou_threshold": 1.0, "max_detections": 10**5}}
    )
    return model


def unmatched(
    model: Detector, detections: DetectionDict, matched: Tensor, tolerance: Tolerance
) -> DetectionDict:
    """The unmatched detections, without those whose score is at the limit of being reported."""
    post, scores = model.config.postprocess, detections["scores"]
    full = len(scores) >= post.max_detections
    edge = max(post.score_threshold, float(scores[-1]) if full else 0.0) + tolerance.score
    mask = scores > edge
    mask[matched] = False
    return {name: values[mask] for name, values in detections.items()}


def suppressed(model: Detector, detections: DetectionDict, others: DetectionDict) -> Tensor:
    """Mask ``(D,)`` of detections that overlap one of the others with a higher or equal score.

    Suppression removes them, or rounding decided between two boxes with the same score.
    """
    iou = box_iou(detections["boxes"], others["boxes"])
    same = detections["labels"][:, None] == others["labels"]
    higher = others["scores"] >= detections["scores"][:, None] - ROUNDING
    return (same & higher & (iou > model.config.postprocess.iou_threshold)).any(dim=1)


def raw_differences(
    model: Detector, exported: ExportedModel, images: Sequence[Tensor]
) -> dict[str, float]:
    """Compare the raw outputs of the head, value by value, for images ``(C, h, w)``."""
    limit = TOLERANCES[exported.metadata["precision"]].score
    inputs = exported.inputs(images)
    graph = DetectionGraph(model, raw=True)
    with torch.no_grad():
        ours = graph(*map(torch.from_numpy, inputs))
    differences = [
        (y - torch.from_numpy(x)).abs() / y.abs().clamp(min=1)
        for y, x in zip(ours, exported.run(*inputs), strict=True)
    ]
    return {
        "detections": sum(d.numel() for d in differences),
        "unmatched": sum(int((d > limit).sum()) for d in differences),
        "max_relative_difference": max(float(d.max()) for d in differences),
    }
