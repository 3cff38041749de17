import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.pixels import normalize, pad_and_stack, resize_image, resize_scale, resized_size


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # the short side decides
        ((300, 1000), (800, 1333), (400, 1333)),  # the long side decides
        ((640, 480), (240, 320), (320, 240)),
        ((1, 1000), (32, 32), (1, 32)),  # at least one pixel
    ],
)
def test_resizing_keeps_the_aspect_within_both_sides(size, limits, expected):
    assert resized_size(*size, *limits) == expected


def test_the_scale_is_that_of_the_resized_size():
    assert resize_scale(480, 640, 240, 400) == 0.5


def test_resizing_gives_uint8_of_the_size():
    image = resize_image(torch.full((3, 20, 30), 200, dtype=torch.uint8), (10, 7), antialias=True)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 10, 7)
    assert (image == 200).all()


def test_normalising_gives_the_mean_zero_and_a_deviation_one():
    image = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = normalize(image, [(1, 1)], mean=(0.2, 0.2, 0.5), std=(0.1, 0.2, 0.5))
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.flatten(), torch.tensor([0.0, 1.0, 1.0]))


def test_normalising_equals_torchvisions_to_the_last_bit():
    images = torch.arange(256).to(torch.uint8).expand(2, 3, 4, -1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = TF.normalize(images.float() / 255, list(mean), list(std))
    expected[0, :, 3:] = 0
    expected[1, :, :, 200:] = 0
    assert torch.equal(normalize(images, [(3, 256), (4, 200)], mean, std), expected)


def test_normalised_images_have_the_default_or_the_given_dtype():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert normalize(image, [(2, 2)], (0.5,) * 3, (0.5,) * 3, torch.float16).dtype == torch.float16
    torch.set_default_dtype(torch.float64)
    try:
        image = normalize(image, [(2, 2)], (0.5,) * 3, (0.5,) * 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert image.dtype == torch.float64


def test_stacking_pads_with_zeros_to_the_right_and_below():
    stacked = pad_and_stack([torch.ones(3, 10, 40), torch.ones(3, 33, 5)], multiple=32)
    assert stacked.shape == (2, 3, 64, 64)
    assert stacked[0, :, :10, :40].all()
    assert stacked[1, :, :33, :5].all()
    assert stacked.sum() == 3 * (10 * 40 + 33 * 5)


def test_images_of_any_number_of_channels_are_stacked_and_normalised():
    images = [torch.full((5, 3, 4), 51, dtype=torch.uint8), torch.zeros(5, 2, 6, dtype=torch.uint8)]
    batch = pad_and_stack(images, multiple=2)
    assert batch.shape == (2, 5, 4, 6)
    mean, std = (0.2, 0.1, 0.2, 0.0, 0.2), (0.1, 0.1, 0.5, 0.2, 1.0)
    first = normalize(batch, [(3, 4), (2, 6)], mean, std)[0]
    torch.testing.assert_close(first[:, 0, 0], torch.tensor([0.0, 1, 0, 1, 0]))
    assert (first[:, 3:] == 0).all()


def test_stacking_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        pad_and_stack([], multiple=32)
