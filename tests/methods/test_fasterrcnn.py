import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from sepc_zoo.errors import ConfigError
from sepc_zoo.factory import create_model
from sepc_zoo.methods.fasterrcnn import FasterRCNN
from sepc_zoo.methods.matching import IGNORE, NEGATIVE
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops import boxes as boxes_module
from sepc_zoo.outputs import Anchors, TwoStagePredictions
from sepc_zoo.registry import model_config

CONFIG = model_config("fasterrcnn_r18_fpn")
CODERS = CONFIG.coder, CONFIG.head.roi.coder
TAKE_ALL = FasterRCNN(rpn_samples=10**6, rpn_positive_fraction=1.0)
NUM_CLASSES = 3


def random_boxes(count, generator, extent=100):
    corner = extent * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    side = 5 + 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + side], dim=1)


def a_batch(crowd=False):
    """Random predictions for three images with 3, 1 and 0 boxes."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for count in (3, 1, 0):
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        targets.append({"boxes": random_boxes(count, generator), "labels": labels})
    if crowd:
        targets[0]["iscrowd"] = torch.tensor([0, 1, 0])
    anchors = Anchors(random_boxes(200, generator), [150, 50])
    near = [random_boxes(40, generator) for _ in targets]
    for boxes, target in zip(near, targets, strict=True):
        count = len(target["boxes"])
        noise = torch.rand(count, 4, generator=generator, dtype=torch.float64)
        boxes[:count] = target["boxes"] + noise
    regions = torch.stack(near)
    regions[1, 30:] = 0

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    predictions = TwoStagePredictions(
        rand(3, 200), rand(3, 200, 4), (), regions, rand(3, 40, 4), rand(3, 40, NUM_CLASSES, 4)
    )
    return predictions, anchors, targets


def losses_of(method, predictions, anchors, targets):
    collated = collate_targets(targets, predictions.rpn_deltas)
    terms = method.loss(predictions, anchors, collated, *CODERS)
    return {name: (total.item(), count.item()) for name, (total, count) in terms.items()}


def wanted_deltas(anchor, box, scale):
    """Faster R-CNN, section 3.1.2, number by number."""
    (ax, ay, aw, ah), (x, y, w, h) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (anchor, box)
    )
    deltas = [(x - ax) / aw, (y - ay) / ah, math.log(w / aw), math.log(h / ah)]
    return torch.tensor([d / s for d, s in zip(deltas, scale, strict=True)], dtype=torch.float64)


def naive_losses(predictions, anchors, targets):
    """Loops over images, anchors and regions, as the papers say it."""
    sums = dict.fromkeys(("loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box"), 0.0)
    anchor_count = region_count = 0
    for i, target in enumerate(targets):
        crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).bool()
        boxes, labels = target["boxes"][~crowd], target["labels"][~crowd]
        crowds = target["boxes"][crowd]

        def in_crowd(box, crowds=crowds):
            area = (box[2] - box[0]) * (box[3] - box[1])
            for c in crowds:
                side = (torch.minimum(box[2:], c[2:]) - torch.maximum(box[:2], c[:2])).clamp(min=0)
                if side.prod() / area > 0.5:
                    return True
            return False

        iou = box_iou(boxes, anchors.boxes)
        for a, anchor in enumerate(anchors.boxes):
            claims = [g for g in range(len(boxes)) if 0 < iou[g, a] == iou[g].max()]
            best = int(iou[:, a].argmax()) if len(boxes) else None
            if claims:
                match = claims[-1]
            elif best is not None and iou[best, a] >= 0.7:
                match = best
            elif (best is not None and iou[best, a] >= 0.3) or in_crowd(anchor):
                continue
            else:
                match = None
            anchor_count += 1
            logit = predictions.rpn_logits[i, a]
            sums["loss_rpn_cls"] += F.softplus(logit if match is None else -logit).item()
            if match is not None:
                wanted = wanted_deltas(anchor, boxes[match], (1.0,) * 4)
                distance = F.smooth_l1_loss(
                    predictions.rpn_deltas[i, a], wanted, beta=1 / 9, reduction="sum"
                )
                sums["loss_rpn_box"] += distance.item()

        for r, region in enumerate(predictions.regions[i]):
            if not region.any():
                continue
            iou = box_iou(boxes, region[None])[:, 0]
            match = int(iou.argmax()) if len(boxes) and iou.max() >= 0.5 else None
            if match is None and in_crowd(region):
                continue
            region_count += 1
            label = 0 if match is None else 1 + int(labels[match])
            sums["loss_cls"] -= predictions.logits[i, r].log_softmax(0)[label].item()
            if match is not None:
                wanted = wanted_deltas(region, boxes[match], (0.1, 0.1, 0.2, 0.2))
                found = predictions.deltas[i, r, label - 1]
                sums["loss_box"] += F.smooth_l1_loss(
                    found, wanted, beta=1 / 9, reduction="sum"
                ).item()
    counts = dict.fromkeys(sums, anchor_count)
    counts |= {"loss_cls": region_count, "loss_box": region_count}
    return {name: (sums[name], counts[name]) for name in sums}


@pytest.mark.parametrize("crowd", [False, True])
def test_losses_are_those_of_naive_loops(crowd):
    batch = a_batch(crowd)
    found, expected = losses_of(TAKE_ALL, *batch), naive_losses(*batch)
    assert list(found) == list(expected)
    for name, (total, count) in expected.items():
        assert found[name][0] == pytest.approx(total, rel=1e-10), name
        assert found[name][1] == count, name
    assert expected["loss_rpn_box"][0] > 0
    assert expected["loss_box"][0] > 0


def test_chunks_of_the_tables_do_not_change_the_losses(monkeypatch):
    batch = a_batch(crowd=True)
    whole = losses_of(TAKE_ALL, *batch)
    monkeypatch.setattr(boxes_module, "TABLE_CELLS", 50)
    for name, terms in losses_of(TAKE_ALL, *batch).items():
        assert terms == pytest.approx(whole[name], rel=1e-12), name


def test_the_loss_counts_the_samples_of_each_image():
    torch.manual_seed(0)
    method = FasterRCNN(rpn_samples=20)
    terms = losses_of(method, *a_batch())
    assert terms["loss_rpn_cls"][1] == terms["loss_rpn_box"][1] == 3 * 20


@pytest.mark.parametrize("wild", [-1e4, 1e4])
def test_wild_predictions_have_finite_losses_and_gradients(wild):
    predictions, anchors, targets = a_batch()
    names = ("rpn_logits", "rpn_deltas", "logits", "deltas")
    leaves = {n: torch.full_like(getattr(predictions, n), wild).requires_grad_() for n in names}
    collated = collate_targets(targets, predictions.rpn_deltas)
    terms = TAKE_ALL.loss(predictions._replace(**leaves), anchors, collated, *CODERS)
    sum(total for total, _ in terms.values()).backward()
    assert all(total.isfinite() for total, _ in terms.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_regions_are_sampled_from_proposals_and_true_boxes():
    torch.manual_seed(0)
    predictions, _, targets = a_batch()
    collated = collate_targets(targets, predictions.regions)
    method = FasterRCNN(roi_samples=16)
    regions = method.sample_regions(predictions.regions, collated)
    assert regions.shape == (3, 16, 4)
    for i, target in enumerate(targets):
        match = method.match_regions(regions[i : i + 1], collate_targets([target], regions))
        count = len(target["boxes"])
        assert 2 * count <= (match >= 0).sum() or (match >= 0).sum() == 4  # a quarter at most
        candidates = torch.cat([predictions.regions[i], target["boxes"]])
        real = regions[i][regions[i].any(dim=1)]
        assert (real[:, None] == candidates).all(dim=2).any(dim=1).all()


def test_an_image_with_few_candidates_has_regions_without_area():
    proposals = torch.tensor([[[0.0, 0, 20, 20], [5, 5, 30, 30]]])
    targets = collate_targets(
        [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}], proposals
    )
    regions = FasterRCNN(roi_samples=8).sample_regions(proposals, targets)
    assert regions.any(dim=2).sum() == 2
    match = FasterRCNN().match_regions(regions, targets)
    assert sorted(match[0].tolist()) == [IGNORE] * (match.shape[1] - 2) + [NEGATIVE] * 2


def test_a_region_in_a_crowd_is_no_background():
    box = torch.tensor([[0.0, 0, 100, 100], [10, 10, 30, 30]])
    target = {"boxes": box, "labels": torch.tensor([0, 1]), "iscrowd": torch.tensor([1, 0])}
    regions = torch.tensor([[[50.0, 50, 80, 80], [10, 10, 30, 32], [200, 200, 210, 220]]])
    match = FasterRCNN().match_regions(regions, collate_targets([target], regions))
    assert match.tolist() == [[IGNORE, 0, NEGATIVE]]


def test_only_deltas_code_its_boxes():
    with pytest.raises(ConfigError, match=r"coder.type: fasterrcnn has 'delta'"):
        create_model("fasterrcnn_r18_fpn", coder={"type": "distance"})
