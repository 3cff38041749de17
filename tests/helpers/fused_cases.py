"""Pyramids on which the fused deformable convolution is compared with torchvision's operator."""

import torch
import torchvision

SIZES = ((9, 11), (5, 4), (1, 1))
IMAGES, CHANNELS, OUT_CHANNELS = 2, 20, 24


def strange_offsets(shape, generator):
    """About two pixels; some are whole, some as far as can be."""
    offset = 2 * torch.randn(shape, generator=generator)
    offset[:, 4:6] = offset[:, 4:6].round()
    for i, value in enumerate((1e6, -1e6, torch.inf, -torch.inf)):
        offset[:, 3 * i, ::3, ::2] = value
    return offset


def pyramid(stride, padding, sizes=SIZES):
    """Maps, their offsets, weight and bias, all float32."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(shape, generator=generator)

    maps = [some(IMAGES, CHANNELS, *size) for size in sizes if min(size) + 2 * padding >= 3]
    offsets = []
    for x in maps:
        height, width = ((side + 2 * padding - 3) // stride + 1 for side in x.shape[2:])
        offsets.append(strange_offsets((IMAGES, 18, height, width), generator))
    return maps, offsets, 0.1 * some(OUT_CHANNELS, CHANNELS, 3, 3), some(OUT_CHANNELS)


def reference(maps, offsets, weight, bias, stride, padding):
    """torchvision's operator in float64, which knows no infinite offset."""
    return [
        torchvision.ops.deform_conv2d(
            x.double(),
            offset.double().nan_to_num(posinf=1e6, neginf=-1e6),
            weight.double(),
            bias.double(),
            stride,
            padding,
        )
        for x, offset in zip(maps, offsets, strict=True)
    ]


def with_gradients(convolve, maps, offsets, weight, bias, stride, padding):
    """The results, then the gradients of maps, offsets, weight and bias."""
    inputs = [x.detach().clone().requires_grad_() for x in (*maps, *offsets, weight, bias)]
    count = len(maps)
    out = convolve(inputs[:count], inputs[count : 2 * count], *inputs[-2:], stride, padding)
    generator = torch.Generator().manual_seed(1)
    towards = [torch.randn(y.shape, generator=generator).to(weight.dtype).to(y) for y in out]
    return [*out, *torch.autograd.grad(out, inputs, towards)]
