import pytest
import torch
import torch.nn.functional as F

from sepc_zoo.ops import deform_conv

NO_BIAS = torch.zeros(6)


def deform_conv2d(x, offset, *args, **kwargs):
    return deform_conv.deform_conv2d([x], [offset], *args, **kwargs)[0]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    return some(2, 4, 9, 11), some(6, 4, 3, 3), some(6)


def no_offset(x, stride, padding):
    height, width = ((side + 2 * padding - 3) // stride + 1 for side in x.shape[-2:])
    return x.new_zeros(len(x), 18, height, width)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_zero_offsets_make_a_plain_convolution(case, stride, padding):
    x, weight, bias = case
    y = deform_conv2d(x, no_offset(x, stride, padding), weight, bias, stride, padding)
    expected = F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 1), (-1, 2)])
def test_whole_offsets_shift_the_image(case, dy, dx):
    x, weight, bias = case
    offset = no_offset(x, 1, 1)
    offset[:, 0::2], offset[:, 1::2] = dy, dx
    y = deform_conv2d(x, offset, weight, bias, 1, 1)
    expected = F.conv2d(x.roll((-dy, -dx), dims=(2, 3)), weight, bias, 1, 1)
    inner = (..., slice(3, -3), slice(3, -3))  # away from what rolled over the border
    torch.testing.assert_close(y[inner], expected[inner], rtol=1e-5, atol=1e-5)


def test_half_an_offset_is_bilinear(case):
    x, weight, _ = case
    offset = no_offset(x, 1, 1)
    offset[:, 1::2] = 0.5
    y = deform_conv2d(x, offset, weight, NO_BIAS, 1, 1)
    expected = F.conv2d((x + x.roll(-1, dims=3)) / 2, weight, None, 1, 1)
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(y[inner], expected[inner], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_function():
    generator = torch.Generator().manual_seed(0)

    def some(*shape, scale=1.0):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return x.requires_grad_()

    inputs = (some(1, 2, 4, 4), some(1, 18, 4, 4, scale=0.3), some(2, 2, 3, 3), some(2))
    assert torch.autograd.gradcheck(lambda *args: deform_conv2d(*args, 1, 1), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_result_has_the_type_of_the_input(case, dtype):
    x, weight, bias = (part.to(dtype) for part in case)
    y = deform_conv2d(x, no_offset(x, 1, 1), weight, bias, 1, 1)
    assert y.dtype == dtype
    expected = F.conv2d(x.float(), weight.float(), bias.float(), 1, 1)
    tolerance = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5  # one rounding
    torch.testing.assert_close(y, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_autocast_gives_what_a_convolution_gives(case):
    x, weight, bias = case
    with torch.autocast("cpu", torch.bfloat16):
        y = deform_conv2d(x, no_offset(x, 1, 1), weight, bias, 1, 1)
        assert y.dtype == F.conv2d(x, weight, bias, 1, 1).dtype == torch.bfloat16


def test_an_offset_of_nan_gives_nan_in_its_place_alone():
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    offset = torch.zeros(1, 18, 8, 8)
    offset[0, 3, 2, 5] = torch.nan
    y = deform_conv2d(x, offset, weight, NO_BIAS[:4], stride=1, padding=1)
    assert y[0, :, 2, 5].isnan().all()
    assert y.isnan().sum() == 4


def test_shapes_are_known_without_a_device(case):
    x, weight, bias = (part.to("meta") for part in case)
    assert deform_conv2d(x, no_offset(x, 2, 1), weight, bias, 2, 1).shape == (2, 6, 5, 6)
