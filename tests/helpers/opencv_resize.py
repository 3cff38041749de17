"""OpenCV's bilinear resizing of bytes to the last bit, which no dependency of ours offers."""

import torch
from torch import Tensor


def resize_like_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(3, H, W)`` uint8 to ``size`` (height, width), with weights of 11 bits."""
    (height, width), image = image.shape[-2:], image.long()
    left, right, left_share, right_share = _neighbours(width, size[1])
    rows = image[..., left] * left_share + image[..., right] * right_share
    top, bottom, top_share, bottom_share = _neighbours(height, size[0])
    upper = ((rows[..., top, :] >> 4) * top_share[:, None]) >> 16
    lower = ((rows[..., bottom, :] >> 4) * bottom_share[:, None]) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _neighbours(old: int, new: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels around each new one, and their weights in parts of 2048."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) / (new / old) - 0.5).float()
    before = place.floor()
    share = place - before
    before = before.long()
    pixels = before.clamp(0, old - 1), (before + 1).clamp(0, old - 1)
    return *pixels, ((1 - share) * 2048).round().long(), (share * 2048).round().long()
