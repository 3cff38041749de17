"""The fused kernel on the CPU, by Triton's interpreter; started by test_deform_conv_fused.py."""

import pytest
import torch
from fused_cases import pyramid, reference, with_gradients

from sepc_zoo.ops import deform_conv, deform_conv_triton

CASES = pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0)])


@pytest.fixture
def fused(monkeypatch):
    """The convolution of a pyramid, with the kernel in the place of what a CPU has."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows, offset, kernel, bias, *how):
            ctx.save_for_backward(rows, offset, kernel)
            ctx.how = how
            return deform_conv_triton.convolve(rows, offset, kernel.contiguous(), bias, *how)

        @staticmethod
        def backward(ctx, grad):
            rows, offset, kernel = ctx.saved_tensors
            found = deform_conv_triton.gradients(
                rows, offset, kernel.contiguous(), grad.contiguous(), *ctx.how
            )
            return (*found, grad.sum(dim=0), None, None, None, None)

    monkeypatch.setattr(deform_conv, "gather_and_multiply", Kernel.apply)
    return deform_conv.deform_conv2d


@CASES
def test_results_and_gradients_equal_the_reference_in_float64(fused, stride, padding):
    case = pyramid(stride, padding)
    ours = with_gradients(fused, *case, stride, padding)
    for y, exact in zip(ours, with_gradients(reference, *case, stride, padding), strict=True):
        assert (y - exact).abs().max() < 1e-5 * exact.abs().max().clamp(min=1)


def test_what_has_no_share_in_a_tap_does_not_count(fused):
    maps, offsets, weight, bias = pyramid(1, 1)
    offsets = [torch.zeros_like(offset) for offset in offsets]
    maps[0][:, :, -1] = torch.inf
    inner = fused(maps, offsets, weight, bias, 1, 1)[0][:, :, :-2]
    assert inner.isfinite().all()


def test_half_precision_rounds_samples_and_results_alone():
    dtype = torch.float16  # the interpreter of Triton 3.9 multiplies the bits of bfloat16
    maps, offsets, weight, bias = pyramid(1, 1, sizes=((5, 6),))
    maps, weight, bias = [x.to(dtype) for x in maps], weight.to(dtype), bias.to(dtype)
    rows, offset = deform_conv._rows_of(maps), deform_conv._rows_of(offsets)
    kernel = weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()
    y = deform_conv_triton.convolve(rows, offset, kernel, bias, (5, 6, 5, 6), len(maps[0]), 1, 1)
    [exact] = reference(maps, offsets, weight, bias, 1, 1)
    assert y.dtype == dtype
    exact = exact.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)


def test_an_offset_of_nan_gives_nan_in_its_place_alone(fused):
    maps, offsets, weight, bias = pyramid(1, 1)
    offsets = [torch.zeros_like(offset) for offset in offsets]
    offsets[0][0, 3, 2, 5] = torch.nan
    first, *others = fused(maps, offsets, weight, bias, 1, 1)
    assert first[0, :, 2, 5].isnan().all()
    assert first.isnan().sum() == len(weight)
    assert not any(y.isnan().any() for y in others)
