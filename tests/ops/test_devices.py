"""Operators that other runtimes have too give what this library's own forms give."""

import torch

from sepc_zoo.ops.deform_conv import deform_conv2d
from sepc_zoo.ops.devices import standard_operators, uses_standard_operators
from sepc_zoo.ops.roi_align import roi_align


def test_standard_operators_are_used_inside_of_the_context_alone():
    assert not uses_standard_operators()
    with standard_operators():
        assert uses_standard_operators()
    assert not uses_standard_operators()


def test_a_deformable_convolution_has_the_same_values():
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, 8, 9), torch.randn(2, 4, 3, 4)]
    offsets = [torch.randn(2, 18, *x.shape[2:]) for x in maps]
    arguments = maps, offsets, torch.randn(5, 4, 3, 3), torch.randn(5), 1, 1
    own = deform_conv2d(*arguments)
    with standard_operators():
        standard = deform_conv2d(*arguments)
    for x, y in zip(own, standard, strict=True):
        assert torch.allclose(x, y, atol=1e-4)


def test_pooled_regions_have_the_same_values():
    torch.manual_seed(0)
    corner = 40 * torch.rand(6, 2)
    rows = torch.cat([torch.arange(6)[:, None] % 2, corner, corner + 5 + 20 * torch.rand(6, 2)], 1)
    arguments = torch.randn(2, 4, 8, 8), rows, 3, 1 / 8, 2, True
    with standard_operators():
        standard = roi_align(*arguments)
    assert torch.allclose(roi_align(*arguments), standard, atol=1e-5)
