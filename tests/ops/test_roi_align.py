import pytest
import torch
import torchvision.ops

from sepc_zoo.ops.roi_align import roi_align

MAP = torch.randn(2, 5, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows():
    """Regions inside of the map, over its borders, beyond them, and thinner than a pixel."""
    generator = torch.Generator().manual_seed(1)
    corner = 130 * torch.rand(60, 2, generator=generator, dtype=torch.float64) - 30
    sides = torch.rand(60, 2, generator=generator, dtype=torch.float64) ** 4 * 150
    image = torch.arange(60, dtype=torch.float64)[:, None] % 2
    return torch.cat([image, corner, corner + sides], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "ratio"), [(7, 2), (3, 1), (1, 3)])
def test_regions_and_gradients_are_torchvisions(size, ratio, aligned):
    results = []
    for function in (roi_align, torchvision.ops.roi_align):
        x = MAP.clone().requires_grad_()
        pooled = function(x, rows(), size, 0.125, ratio, aligned)
        (pooled * torch.linspace(0, 1, pooled.numel()).view(pooled.shape)).sum().backward()
        results.append((pooled, x.grad))
    (ours, gradient), (theirs, wanted) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_the_memory_format_of_the_map_does_not_matter():
    x = MAP.contiguous(memory_format=torch.channels_last)
    pooled = [roi_align(y, rows(), 7, 0.125, 2, aligned=True) for y in (MAP, x)]
    assert torch.equal(*pooled)
    assert pooled[0].is_contiguous()


def test_no_regions_give_an_empty_map():
    x = MAP.clone().requires_grad_()
    pooled = roi_align(x, rows()[:0], 7, 0.125, 2, aligned=True)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert not x.grad.any()
