import sys
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from sepc_zoo.data.headers import plain_jpeg_size
from sepc_zoo.data.images import (
    ImageError,
    check_image,
    fitting_reduction,
    list_images,
    pixels_of_pil,
    read_image,
    read_orientation,
    read_size,
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
    expected = torch.from_numpy((samples >> 8).astype(np.uint8))
    for channels in (1, 3):
        read = read_image(tmp_path / f"deep.{suffix}", channels=channels)
        assert torch.equal(read, expected.expand(channels, -1, -1))


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


def written_tiff(path, channels, dtype=np.uint8, planar="contig", photometric="minisblack", **more):
    """Write random samples ``(C, H, W)``; return what a model gets of them."""
    tifffile = pytest.importorskip("tifffile")
    high = np.iinfo(dtype).max + 1
    samples = np.random.default_rng(0).integers(0, high, (channels, HEIGHT, WIDTH)).astype(dtype)
    stored = samples if planar == "separate" else np.moveaxis(samples, 0, -1)
    tifffile.imwrite(path, stored, planarconfig=planar, photometric=photometric, **more)
    return torch.from_numpy((samples >> (8 if dtype == np.uint16 else 0)).astype(np.uint8))


@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [4, 5, 8])
def test_the_channels_of_a_tiff_are_read_as_they_are(
    channels, dtype, planar, photometric, tmp_path
):
    path = tmp_path / "bands.tif"
    expected = written_tiff(path, channels, dtype, planar, photometric)
    assert torch.equal(read_image(path, channels=channels), expected)
    assert check_image(path) == read_size(path) == (HEIGHT, WIDTH)


def test_samples_may_have_their_high_byte_first(tmp_path):
    expected = written_tiff(tmp_path / "bands.tif", 5, np.uint16, byteorder=">")
    assert torch.equal(read_image(tmp_path / "bands.tif", channels=5), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 6])
def test_pages_of_a_tiff_are_channels(channels, dtype, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    path, high = tmp_path / "pages.tif", np.iinfo(dtype).max + 1
    pages = np.random.default_rng(0).integers(0, high, (channels, HEIGHT, WIDTH)).astype(dtype)
    tifffile.imwrite(path, pages, photometric="minisblack")
    expected = torch.from_numpy((pages >> (8 if dtype == np.uint16 else 0)).astype(np.uint8))
    assert torch.equal(read_image(path, channels=channels), expected)
    assert torch.equal(read_image(path, channels=None), expected)
    monkeypatch.setattr("sepc_zoo.data.images.find_spec", lambda _: None)  # no tifffile
    assert torch.equal(read_image(path, channels=None), expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_many_channels_is_turned_upright(orientation, tmp_path):
    tags = [(ORIENTATION, "H", 1, orientation, True)]
    stored = written_tiff(tmp_path / "bands.tif", 5, extratags=tags)
    read = read_image(tmp_path / "bands.tif", channels=5)
    for channel, samples in zip(read, stored, strict=True):
        image = Image.fromarray(samples.numpy())
        image.getexif()[ORIENTATION] = orientation
        assert np.array_equal(channel, ImageOps.exif_transpose(image))
    size = check_image(tmp_path / "bands.tif")
    assert size == read_size(tmp_path / "bands.tif") == tuple(read.shape[1:])
    assert read_size(tmp_path / "bands.tif", upright=False) == (HEIGHT, WIDTH)
    assert read_orientation(tmp_path / "bands.tif") == orientation


@pytest.mark.parametrize("name", sorted(MODES.keys() - {"cmyk.tif"}))
def test_one_channel_is_grey_and_a_fourth_the_transparency(name, original, tmp_path):
    path = tmp_path / name
    MODES[name](original).save(path)
    rgb, grey = read_image(path), read_image(path, channels=1)
    luminance = np.asarray(Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L"))
    assert grey.shape == (1, HEIGHT, WIDTH)
    assert np.abs(grey[0].numpy() - luminance.astype(int)).max() <= 2  # decoders may round apart
    if name.endswith(".tif"):
        with pytest.raises(ImageError, match="has 3 channels, but the model takes 4"):
            read_image(path, channels=4)
        return
    four = read_image(path, channels=4)
    assert (four[:3].int() - rgb.int()).abs().max() <= 2
    with Image.open(path) as image:
        alpha = image.convert("RGBA").getchannel("A")
    assert np.array_equal(four[3], alpha)
    assert (four[3].min() < 128) == (name in ("rgba.png", "la.png", "rgba.webp"))


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_a_tiff_of_other_channels_is_refused_by_name(channels, tmp_path):
    written_tiff(tmp_path / "bands.tif", 5)
    message = rf"bands\.tif: has 5 channels, but the model takes {channels}"
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "bands.tif", channels=channels)


def test_many_channels_are_refused_of_a_format_that_cannot_have_them(original, tmp_path):
    original.save(tmp_path / "rgb.png")
    with pytest.raises(ImageError, match=r"rgb\.png: the model takes 5 channels"):
        read_image(tmp_path / "rgb.png", channels=5)


def test_an_image_to_draw_is_rgb_or_all_channels_of_a_tiff_without_rgb(original, tmp_path):
    expected = written_tiff(tmp_path / "bands.tif", 5)
    with_alpha(original).save(tmp_path / "rgba.png")
    assert torch.equal(read_image(tmp_path / "bands.tif", channels=None), expected)
    rgb = read_image(tmp_path / "rgba.png")
    assert torch.equal(read_image(tmp_path / "rgba.png", channels=None), rgb)


def test_tifffile_is_asked_for_where_it_is_needed_and_missing(tmp_path, monkeypatch):
    written_tiff(tmp_path / "bands.tif", 5)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for read in (read_size, check_image, lambda path: read_image(path, channels=5)):
        with pytest.raises(ImageError, match=r'bands\.tif: .* pip install "sepc_zoo\[tiff\]"'):
            read(tmp_path / "bands.tif")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9])
def test_a_damaged_tiff_of_many_channels_is_named(kept, tmp_path):
    path = tmp_path / "bands.tif"
    written_tiff(path, 5, compression="zlib")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    for read in (check_image, lambda path: read_image(path, channels=5)):
        with pytest.raises(ImageError, match=r"bands\.tif: "):
            read(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_many_channels_of_other_samples_are_refused(dtype, tmp_path):
    written_tiff(tmp_path / "bands.tif", 5, np.uint8)
    tifffile = pytest.importorskip("tifffile")
    samples = np.zeros((5, HEIGHT, WIDTH), dtype)
    tifffile.imwrite(tmp_path / "bands.tif", samples, photometric="minisblack")
    with pytest.raises(ImageError, match=rf"{np.dtype(dtype)} samples; convert it to 8 bits"):
        read_image(tmp_path / "bands.tif", channels=5)


@pytest.mark.parametrize("function", [read_image, check_image])
def test_a_file_of_float_samples_is_refused(function, tmp_path):
    Image.new("F", (WIDTH, HEIGHT)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: an image of float samples"):
        function(tmp_path / "float.tif")


def test_an_image_of_float_samples_is_refused():
    with pytest.raises(ValueError, match="float samples"):
        pixels_of_pil(Image.new("F", (WIDTH, HEIGHT)))


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
@pytest.mark.parametrize("read", [read_image, partial(read_image, reduction=2), check_image])
def test_a_truncated_file_is_an_error_that_names_it(suffix, kept, read, tmp_path):
    path = tmp_path / f"short.{suffix}"
    Image.effect_noise((200, 100), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ImageError, match=f"short.{suffix}: "):
        read(path)


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
    with pytest.raises(ImageError, match="is a folder"):
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


JPEGS = {
    "plain": ("RGB", {}, True),
    "grey": ("L", {}, True),
    "progressive": ("RGB", {"progressive": True}, True),
    "with a profile": ("RGB", {"icc_profile": bytes(3000)}, True),
    "with a comment": ("RGB", {"comment": b"x" * 100}, True),
    "with a long comment": ("RGB", {"comment": b"x" * 9000}, False),
    "turned": ("RGB", {"exif": rotated_by_exif(6)}, False),
    "four channels": ("CMYK", {}, False),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_the_header_of_a_usual_jpeg_is_read_without_pil(kind, tmp_path):
    mode, options, is_usual = JPEGS[kind]
    path = tmp_path / "a.jpg"
    Image.new(mode, (64, 48)).save(path, **options)
    with path.open("rb") as file:
        assert plain_jpeg_size(file) == ((48, 64) if is_usual else None)
    assert check_image(path) == read_size(path)
    path.write_bytes(path.read_bytes()[:-9])
    with path.open("rb") as file:
        assert plain_jpeg_size(file) is None
