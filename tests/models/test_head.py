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


def test_group_norm_stands_behind_each_convolution_which_then_has_a_bias_only_if_asked():
    for norm_bias in (False, True):
        tower = make_head(convs=2, norm="group", norm_bias=norm_bias).cls_tower
        kinds = [type(layer) for layer in tower]
        assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
        assert all((conv.bias is not None) == norm_bias for conv in tower[::3])


def test_each_level_scales_its_boxes(pyramid):
    plain, scaled = make_head(), make_head(box_scales=True)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    expected = plain(pyramid, pyramid)
    assert torch.equal(scaled(pyramid, pyramid).deltas, expected.deltas)
    factors = [1.0, 2.0, 3.0, 4.0, 5.0]
    for scale, factor in zip(scaled.scales, factors, strict=True):
        scale.data.fill_(factor)
    levels = expected.deltas.split(expected.level_lengths, dim=1)
    torch.testing.assert_close(
        scaled(pyramid, pyramid).deltas,
        torch.cat([level * factor for level, factor in zip(levels, factors, strict=True)], dim=1),
    )


@pytest.mark.parametrize("branch", ["cls", "box"])
def test_quality_is_read_off_its_branch(branch, pyramid):
    head, other = make_head(convs=1, quality=branch), [x + 1 for x in pyramid]
    quality = head(pyramid, pyramid).quality
    assert quality.shape == head(pyramid, pyramid).logits.shape[:2]
    assert torch.equal(head(other, pyramid).quality, quality) == (branch == "box")
    assert torch.equal(head(pyramid, other).quality, quality) == (branch == "cls")


def test_an_exponential_is_finite_and_in_single_precision():
    head = make_head(box_activation="exp")
    wild = [torch.full((1, 8, 2, 2), 1e4)]
    nn.init.ones_(head.box.weight)
    assert head(wild, wild).deltas.isfinite().all()
    half = make_head(box_activation="exp").bfloat16()
    images = [torch.zeros(1, 8, 2, 2, dtype=torch.bfloat16)]
    assert half(images, images).deltas.dtype == torch.float32
    assert (half(images, images).deltas == 1).all()
