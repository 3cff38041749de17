import pytest
import torch
from torch import nn

from sepc_zoo.config import DenseHead
from sepc_zoo.models.heads.dense import Head

SIZES = ((4, 6), (2, 3), (1, 2), (1, 1), (1, 1))


@pytest.fixture
def pyramid():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES]


def make_head(**changes):
    return Head(8, num_anchors=3, num_classes=5, config=DenseHead(**({"convs": 0} | changes)))


def test_a_runs_over_levels_then_rows_then_columns_then_anchors(pyramid):
    head = make_head()
    predictions = head(pyramid, pyramid)
    maps = head.cls(pyramid[0])  # N, anchors * K, H, W
    row, column, anchor, label = 2, 4, 1, 3
    place = (row * 6 + column) * 3 + anchor
    torch.testing.assert_close(
        predictions.logits[:, place, label], maps[:, anchor * 5 + label, row, column]
    )
    start_of_p4 = 4 * 6 * 3
    maps = head.box(pyramid[1])
    torch.testing.assert_close(predictions.deltas[:, start_of_p4], maps[:, :4, 0, 0])


def test_sizes_are_those_of_the_maps(pyramid):
    assert make_head()(pyramid, pyramid).sizes == SIZES


def test_classes_and_boxes_come_from_their_own_pyramids(pyramid):
    head = make_head(convs=1)
    other = [x + 1 for x in pyramid]
    both, mixed = head(pyramid, pyramid), head(other, pyramid)
    assert torch.equal(both.deltas, mixed.deltas)
    assert not torch.equal(both.logits, mixed.logits)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_tower_has_as_many_convolutions_as_asked(depth):
    head = make_head(convs=depth)
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 * depth + 2


def test_a_new_head_scores_one_percent_and_means_the_anchor():
    predictions = make_head()([torch.zeros(1, 8, 2, 2)], [torch.zeros(1, 8, 2, 2)])
    torch.testing.assert_close(
        predictions.logits.sigmoid(), torch.full_like(predictions.logits, 0.01)
    )
    assert not predictions.deltas.any()


def test_the_box_bias_and_activation_are_the_methods(pyramid):
    head = make_head(box_bias=1.0, box_activation="relu")
    assert (head.box.bias == 1).all()
    assert head([-1e6 * x.abs() for x in pyramid], pyramid).deltas.min() >= 0
