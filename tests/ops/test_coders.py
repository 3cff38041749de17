import math

import pytest
import torch

from sepc_zoo.config import DeltaCoder, DistanceCoder, DistributionCoder
from sepc_zoo.ops.coders import (
    MAX_SIDE_RATIO,
    decode,
    decode_delta,
    decode_distance,
    encode,
    encode_delta,
    encode_distance,
    expected_bins,
)

SCALES = ((1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2))


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)

    def some():
        corner = torch.rand(200, 2, generator=generator, dtype=torch.float64) * 300
        size = torch.rand(200, 2, generator=generator, dtype=torch.float64) * 100 + 8
        return torch.cat([corner, corner + size], dim=1)

    return some(), some()


@pytest.mark.parametrize("scale", SCALES)
def test_decode_delta_is_the_inverse_of_encode_delta(pairs, scale):
    anchors, boxes = pairs
    deltas = encode_delta(anchors, boxes, scale)
    torch.testing.assert_close(decode_delta(anchors, deltas, scale), boxes)


@pytest.mark.parametrize("scale", SCALES)
def test_encode_delta_is_the_inverse_of_decode_delta(pairs, scale):
    anchors, _ = pairs
    deltas = torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    again = encode_delta(anchors, decode_delta(anchors, deltas, scale), scale)
    torch.testing.assert_close(again, deltas)


def test_decode_distance_is_the_inverse_of_encode_distance(pairs):
    anchors, boxes = pairs
    torch.testing.assert_close(decode_distance(anchors, encode_distance(anchors, boxes)), boxes)


def test_zero_delta_is_the_anchor(pairs):
    anchors, _ = pairs
    torch.testing.assert_close(decode_delta(anchors, torch.zeros_like(anchors)), anchors)


def test_delta_is_in_sides_of_the_anchor():
    anchor = torch.tensor([0.0, 0.0, 10.0, 20.0])
    box = torch.tensor([5.0, 0.0, 15.0, 40.0])
    torch.testing.assert_close(encode_delta(anchor, box), torch.tensor([0.5, 0.5, 0, math.log(2)]))


def test_tblr_is_top_bottom_left_right_in_sides_of_the_anchor():
    anchor = torch.tensor([0.0, 0.0, 8.0, 8.0])  # centre 4, 4
    box = torch.tensor([2.0, 0.0, 20.0, 12.0])
    assert encode_distance(anchor, box).tolist() == [0.5, 1.0, 0.25, 2.0]
    beside = torch.tensor([6.0, 0.0, 20.0, 12.0])  # the centre lies to its left
    assert encode_distance(anchor, beside).tolist() == [0.5, 1.0, -0.25, 2.0]


def test_wild_deltas_decode_to_finite_boxes():
    anchor = torch.tensor([0.0, 0.0, 10.0, 10.0])
    box = decode_delta(anchor, torch.tensor([0.0, 0.0, 1e4, -1e4]))
    assert box.isfinite().all()
    assert (box[2] - box[0]).item() == pytest.approx(10 * MAX_SIDE_RATIO)
    assert (box[3] - box[1]).item() == pytest.approx(10 / MAX_SIDE_RATIO, abs=1e-5)


@pytest.mark.parametrize("decode", [decode_delta, decode_distance])
def test_decoding_a_batch_is_decoding_each_image(decode, pairs):
    anchors, _ = pairs
    deltas = torch.rand(3, 200, 4, dtype=torch.float64)
    batch = decode(anchors.expand(3, -1, -1), deltas)
    for image, of_image in zip(batch, deltas, strict=True):
        assert torch.equal(image, decode(anchors, of_image))


@pytest.mark.parametrize(
    "coder", [DistanceCoder(unit=4.0), DistanceCoder(order="ltrb", in_pixels=True)]
)
def test_distances_of_any_coder_decode_to_the_box(coder, pairs):
    anchors, boxes = pairs
    torch.testing.assert_close(decode(coder, anchors, encode(coder, anchors, boxes)), boxes)


def test_distances_have_the_order_and_the_unit_of_their_coder():
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([4.0, 8, 25, 50])
    pixels = DistanceCoder(order="ltrb", in_pixels=True)
    assert encode(pixels, anchor, box).tolist() == [1, 2, 20, 40]
    assert encode(DistanceCoder(order="ltrb", unit=2.0), anchor, box).tolist() == pytest.approx(
        [1 / 20, 2 / 40, 20 / 20, 40 / 40]
    )
    assert encode(DistanceCoder(), anchor, box).tolist() == pytest.approx([0.1, 2, 0.1, 2])
    bins = encode(DistributionCoder(unit=0.5), anchor, box)
    assert bins.tolist() == pytest.approx([0.2, 0.2, 4, 4])


def test_a_distribution_decodes_to_its_expectation(pairs):
    anchors, boxes = pairs
    coder = DistributionCoder(bins=60, unit=1.0)
    bins = encode(coder, anchors, boxes).clamp(min=0, max=58.9)
    low = bins.floor().long()
    probs = torch.zeros(*bins.shape, 60, dtype=bins.dtype)
    probs.scatter_(-1, low[..., None], (1 - bins + low)[..., None])
    probs.scatter_(-1, low[..., None] + 1, (bins - low)[..., None])
    logits = probs.clamp(min=1e-300).log().flatten(-2)
    torch.testing.assert_close(expected_bins(logits, 60), bins)
    inside = (encode(coder, anchors, boxes) == bins).all(dim=1)
    assert inside.any()
    torch.testing.assert_close(decode(coder, anchors, logits)[inside], boxes[inside])


def test_sides_may_shrink_without_bound():
    anchor, deltas = torch.tensor([0.0, 0, 32, 32]), torch.tensor([0.0, 0, -9, 9])
    box = decode(DeltaCoder(clamp_shrinking=False), anchor, deltas)
    width, height = (box[2:] - box[:2]).tolist()
    assert width == pytest.approx(32 * math.exp(-9), rel=1e-3)
    assert height == pytest.approx(32 * 62.5)
    width, height = (decode(DeltaCoder(), anchor, deltas)[2:] - 16).mul(2).tolist()
    assert width == pytest.approx(32 / 62.5, rel=1e-3)
