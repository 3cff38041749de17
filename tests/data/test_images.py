import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.images import (
    ImageError,
    check_image,
    fitting_reduction,
    list_images,
    normalize,
    pad_and_stack,
    read_image,
    read_size,
    resize_image,
    resize_scale,
    resized_size,
    rgb_of_pil,
)

HEIGHT, WIDTH = 48, 64
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def original() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3))
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8))


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def rotated_by_exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


MODES = {
    "rgb.jpg": lambda image: image,
    "gray.jpg": lambda image: image.convert("L"),
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "rgb.png": lambda image: image,
    "gray.png": lambda image: image.convert("L"),
    "bilevel.png": lambda image: image.convert("1"),
    "palette.png": lambda image: image.quantize(16),
    "rgba.png": with_alpha,
    "la.png": lambda image: with_alpha(image.convert("L")),
    "rgb.webp": lambda image: image,
    "rgba.webp": with_alpha,
    "palette.gif": lambda image: image.quantize(16),
    "rgb.bmp": lambda image: image,
    "rgb.tif": lambda image: image,
    "cmyk.tif": lambda image: image.convert("CMYK"),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_equals_pils_conversion_to_rgb(name, original, tmp_path):
    path = tmp_path / name
    MODES[name](original).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    read = read_image(path)
    assert read.dtype == torch.uint8
    assert read.shape == (3, HEIGHT, WIDTH)
    assert np.abs(read.permute(1, 2, 0).numpy() - expected).max() <= 2  # decoders may round apart


def test_a_cmyk_jpeg_keeps_its_colours(original, tmp_path):
    original.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    read = read_image(tmp_path / "cmyk.jpg").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(read - np.asarray(original)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_the_high_byte(suffix, tmp_path):
    samples = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 21
    Image.fromarray(samples).save(tmp_path / f"deep.{suffix}")
    read = read_image(tmp_path / f"deep.{suffix}")
    assert read.dtype == torch.uint8
    assert torch.equal(read, torch.from_numpy((samples >> 8).astype(np.uint8)).expand(3, -1, -1))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(suffix, original, tmp_path):
    path = tmp_path / f"animation.{suffix}"
    frames = [ImageOps.mirror(original)]
    original.save(path, save_all=True, append_images=frames, lossless=True)
    read = read_image(path).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(read - np.asarray(original)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(suffix, orientation, original, tmp_path):
    path = tmp_path / f"turned.{suffix}"
    original.save(path, exif=rotated_by_exif(orientation), quality=100)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    read = read_image(path)
    assert np.abs(read.permute(1, 2, 0).numpy() - expected).max() <= 2
    assert read_size(path) == check_image(path) == tuple(read.shape[-2:])


def test_the_stored_size_ignores_exif(original, tmp_path):
    original.save(tmp_path / "turned.jpg", exif=rotated_by_exif(6))
    assert read_size(tmp_path / "turned.jpg") == (WIDTH, HEIGHT)
    assert read_size(tmp_path / "turned.jpg", upright=False) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_leaves_the_image_upright(suffix, original, tmp_path):
    path = tmp_path / f"odd.{suffix}"
    original.save(path, exif=b"Exif\x00\x00nonsense")
    assert read_size(path) == (HEIGHT, WIDTH)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)


def test_an_orientation_in_xmp_only_is_ignored_for_image_and_size(original, tmp_path):
    xmp = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    original.save(tmp_path / "xmp.png", pnginfo=info)
    assert read_size(tmp_path / "xmp.png") == (HEIGHT, WIDTH)
    assert read_image(tmp_path / "xmp.png").shape == (3, HEIGHT, WIDTH)


def test_transparency_of_a_palette_is_dropped_without_a_warning(original, tmp_path):
    original.quantize(16).save(tmp_path / "palette.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(tmp_path / "palette.png")
    expected = np.asarray(original.quantize(16).convert("RGB"))
    assert torch.equal(read.permute(1, 2, 0), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("function", [read_image, check_image])
def test_a_file_of_float_samples_is_refused(function, tmp_path):
    Image.new("F", (WIDTH, HEIGHT)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: an image of float samples"):
        function(tmp_path / "float.tif")


def test_an_image_of_float_samples_is_refused():
    with pytest.raises(ValueError, match="float samples"):
        rgb_of_pil(Image.new("F", (WIDTH, HEIGHT)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_reading_a_truncated_file_is_an_error_that_names_it(suffix, kept, tmp_path):
    path = tmp_path / f"short.{suffix}"
    Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ImageError, match=f"short.{suffix}: "):
        read_image(path)


def test_a_png_with_damaged_pixels_is_an_error_that_names_it(original, tmp_path):
    path = tmp_path / "damaged.png"
    original.save(path)
    data = path.read_bytes()
    pixels, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    path.write_bytes(data[:pixels] + bytes(end - pixels) + data[end:])
    with pytest.raises(ImageError, match=r"damaged\.png: "):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_checking_finds_truncated_files(suffix, kept, tmp_path):
    path = tmp_path / f"short.{suffix}"
    Image.effect_noise((200, 100), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ImageError, match=f"short.{suffix}: "):
        check_image(path)


def test_a_thumbnails_end_does_not_hide_a_truncation(original, tmp_path):
    original.save(tmp_path / "thumbnail.jpg")
    thumbnail = (tmp_path / "thumbnail.jpg").read_bytes()
    path = tmp_path / "short.jpg"
    Image.effect_noise((200, 100), 50).save(path, comment=thumbnail)
    path.write_bytes(path.read_bytes()[: len(thumbnail) + 1000])
    with pytest.raises(ImageError, match="truncated"):
        check_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [10, 100_000])
def test_bytes_behind_the_end_are_tolerated(suffix, size, original, tmp_path):
    path = tmp_path / f"long.{suffix}"
    original.save(path)
    path.write_bytes(path.read_bytes() + bytes(size))
    assert check_image(path) == (HEIGHT, WIDTH)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("function", [read_image, read_size, check_image])
@pytest.mark.parametrize(
    "content", [None, b"", b"some text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_that_is_no_image_is_an_error_that_names_it(function, content, tmp_path):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.jpg: \w+"):
        function(path)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)


def test_checking_costs_little(tmp_path):
    path = tmp_path / "large.jpg"
    Image.effect_noise((1920, 1080), 50).convert("RGB").save(path)
    start = time.perf_counter()
    for _ in range(20):
        check_image(path)
    assert (time.perf_counter() - start) / 20 < 0.005  # seconds; decoding takes ten times as long


def test_images_are_listed_by_suffix_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "._a.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]


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


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_can_be_read_at_a_fraction_of_its_size(
    reduction, mode, orientation, original, tmp_path
):
    path = tmp_path / "image.jpg"
    smooth = original.resize((8 * WIDTH, 8 * HEIGHT), Image.Resampling.BICUBIC)
    smooth.convert(mode).save(path, exif=rotated_by_exif(orientation), quality=95)
    whole, small = read_image(path), read_image(path, reduction)
    assert [reduction * side for side in small.shape[-2:]] == [*whole.shape[-2:]]
    expected = torch.nn.functional.avg_pool2d(whole.float(), reduction)
    assert (small - expected).abs().mean() < 1  # of 255


def test_other_formats_ignore_the_reduction(original, tmp_path):
    original.save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", 2).shape == (3, HEIGHT, WIDTH)


def test_a_truncated_jpeg_is_an_error_at_a_fraction_of_its_size(tmp_path):
    path = tmp_path / "short.jpg"
    Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"short\.jpg: "):
        read_image(path, 2)


@pytest.mark.parametrize(
    ("size", "least", "reduction"),
    [
        ((480, 640), (240, 320), 2),
        ((480, 640), (241, 322), 1),
        ((480, 640), (100, 133), 4),
        ((427, 640), (100, 150), 1),  # no half of 427
        ((3000, 4000), (100, 133), 8),
        ((3000, 4000), (1, 1), 8),
        ((20, 30), (800, 1200), 1),
    ],
)
def test_a_reduction_divides_the_sides_and_keeps_the_minimum(size, least, reduction):
    assert fitting_reduction(size, least) == reduction


def test_stacking_pads_with_zeros_to_the_right_and_below():
    stacked = pad_and_stack([torch.ones(3, 10, 40), torch.ones(3, 33, 5)], multiple=32)
    assert stacked.shape == (2, 3, 64, 64)
    assert stacked[0, :, :10, :40].all()
    assert stacked[1, :, :33, :5].all()
    assert stacked.sum() == 3 * (10 * 40 + 33 * 5)


def test_stacking_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        pad_and_stack([], multiple=32)
