import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from sepc_zoo.config import override
from sepc_zoo.data.images import ImageError
from sepc_zoo.inference.preprocess import open_image, open_images, plan_resize
from sepc_zoo.registry import authors_config, model_config


def opened(source):
    return open_image(source).pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_a_png_has_the_same_pixels_as_file_and_as_pil_image(image, mode, tmp_path):
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "x.png")
    pixels = opened(image)
    assert pixels.shape == (3, 50, 90)
    assert torch.equal(opened(tmp_path / "x.png"), pixels)
    assert torch.equal(opened(str(tmp_path / "x.png")), pixels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_16_bit_images_keep_their_high_byte(image, pixels, tmp_path):
    gray = np.array(image.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    deep.save(tmp_path / "x.png")
    for source in (deep, tmp_path / "x.png"):
        assert torch.equal(opened(source), opened(gray))
    assert torch.equal(opened(pixels.astype(np.uint16) * 256 + 255), opened(pixels))


def test_the_bytes_of_a_file_have_the_same_pixels(image, tmp_path):
    for suffix in ("png", "jpg"):
        image.save(tmp_path / f"x.{suffix}")
        file = tmp_path / f"x.{suffix}"
        assert torch.equal(opened(file.read_bytes()), opened(file))
    with pytest.raises(ImageError, match="3 bytes: not an image"):
        opened(b"abc")


def test_an_iterator_of_images_is_opened_one_by_one(image, tmp_path):
    image.save(tmp_path / "x.png")
    taken = []
    sources = (taken.append(i) or tmp_path / "x.png" for i in range(3))
    images, single = open_images(sources)
    assert not single
    assert torch.equal(next(images).pixels, opened(image))
    assert taken == [0]
    assert len(list(images)) == 2


@pytest.fixture
def server(tmp_path):
    """A folder as a web server on the loopback has it; its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_is_read_from_its_url(image, server, tmp_path):
    image.save(tmp_path / "x.png")
    assert torch.equal(opened(f"{server}/x.png"), opened(image))


@pytest.mark.parametrize(
    ("path", "says"),
    [("/none.png", "404"), (":99999/x.png", "99999"), ("/text.txt", "not an image")],
)
def test_a_url_without_an_image_is_an_error_that_names_it(path, says, server, tmp_path):
    (tmp_path / "text.txt").write_text("no image")
    url = f"http://127.0.0.1{path}" if path.startswith(":") else server + path
    with pytest.raises(ImageError, match=says) as caught:
        opened(url)
    assert url in str(caught.value)


def test_a_download_is_of_bounded_size(image, server, tmp_path, monkeypatch):
    image.save(tmp_path / "x.png")
    monkeypatch.setattr("sepc_zoo.inference.preprocess.MAX_DOWNLOAD", 100)
    with pytest.raises(ImageError, match="larger than 100 bytes"):
        opened(f"{server}/x.png")


def test_arrays_and_tensors_of_all_types_and_layouts_have_the_same_pixels(image, pixels):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    sources = [pixels, pixels / 255, tensor, tensor / 255, tensor.double() / 255]
    sources += [np.asfortranarray(pixels), pixels[::-1][::-1], tensor.contiguous()]
    sources += [np.concatenate([pixels, pixels[:, :, :1]], axis=2)]  # RGBA
    assert all(torch.equal(opened(source), opened(image)) for source in sources)


def test_gray_pixels_are_repeated_in_all_channels(image):
    gray = image.convert("L")
    array = np.array(gray)
    tensor = torch.from_numpy(array)
    for source in (array, array[:, :, None], tensor, tensor[None], tensor[None].expand(3, -1, -1)):
        assert torch.equal(opened(source), opened(gray))


def test_a_read_only_array_gives_no_warning(image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(np.asarray(image))


def test_the_callers_pixels_are_left_unchanged(model, pixels):
    for source in (pixels.copy(), torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        before = source.copy() if isinstance(source, np.ndarray) else source.clone()
        model.predict(source)
        assert (source == before).all()


def test_an_image_is_turned_upright(image):
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert torch.equal(opened(turned), opened(image))


def test_a_file_keeps_its_path(image, tmp_path):
    image.save(tmp_path / "x.png")
    assert open_image(str(tmp_path / "x.png")).path == tmp_path / "x.png"
    assert open_image(image).path is None


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "b.png").write_bytes(b"broken")
    for source in (tmp_path / "b.png", [tmp_path / "b.png"], tmp_path / "nowhere.png"):
        with pytest.raises(ImageError, match=r"(b|nowhere)\.png"):
            list(open_images(source)[0])


def test_a_broken_or_damaged_file_of_a_folder_is_left_out_with_a_warning(image, tmp_path):
    for name in ("a.png", "c.png", "d.png"):
        image.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    data = (tmp_path / "c.png").read_bytes()
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    (tmp_path / "c.png").write_bytes(data[:start] + bytes(end - start) + data[end:])
    images, single = open_images(tmp_path)
    with pytest.warns(UserWarning, match=r"left out: .*[bc]\.png") as caught:
        assert [image.path.name for image in images] == ["a.png", "d.png"]
    assert len(caught) == 2
    assert not single


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (None, TypeError, "NoneType: expected a file, folder"),
        (5, TypeError, "int"),
        (b"image", ImageError, "not an image"),
        ({"a": 1}, TypeError, "dict"),
        (torch.zeros(4, 8, 8), ImageError, r"1 or 3 channels, got \(4, 8, 8\)"),
        (torch.zeros(8), ImageError, "1 or 3 channels"),
        (np.zeros((8, 8, 5), np.uint8), ImageError, "1 or 3 channels"),
        (np.zeros((3, 8, 8), np.uint8), ImageError, "an ndarray last"),
        (torch.zeros(8, 8, 3), ImageError, "channels first"),
        (torch.zeros(3, 0, 8), ImageError, "the image is empty"),
        (np.zeros((0, 60, 5)), ImageError, "the image is empty"),
        (torch.randn(3, 8, 8), ImageError, "0..1.*not a normalised input"),
        (torch.full((3, 8, 8), torch.nan), ImageError, "0..1"),
        (torch.full((3, 8, 8), 200.0), ImageError, "0..1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ImageError, "uint8, uint16 or float.*int64"),
        (Image.new("F", (8, 8)), ImageError, "float samples"),
        (np.zeros((8, 8, 3), bool), ImageError, "bool"),
    ],
)
def test_what_is_no_image_is_refused(source, error, match):
    with pytest.raises(error, match=match):
        open_images(source)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_a_model_of_other_channels_gets_them_from_arrays_and_tensors(channels):
    tensor = torch.randint(256, (channels, 50, 90), dtype=torch.uint8)
    array = tensor.permute(1, 2, 0).numpy()
    sources = [tensor, array, array / 255, array.astype(np.uint16) * 256 + 255]
    sources += [tensor[0], array[:, :, 0]] if channels == 1 else []
    for source in sources:
        assert torch.equal(open_image(source, channels).pixels, tensor)
    (first, second), single = open_images(tensor.expand(2, -1, -1, -1), channels)
    assert torch.equal(first.pixels, second.pixels)
    assert not single
    with pytest.raises(ImageError, match="an image with 7 channels, got"):
        open_image(tensor, 7)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_png_has_the_same_channels_as_file_and_as_pil_image(channels, image, tmp_path):
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "x.png")
    pixels = open_image(image, channels).pixels
    assert pixels.shape == (channels, 50, 90)
    assert torch.equal(open_image(tmp_path / "x.png", channels).pixels, pixels)
    if channels == 4:
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))


# Resizing


def test_the_input_is_the_whole_image():
    """A box around the input is a box around the image."""
    resize = plan_resize((480, 643), model_config("fsaf_r18_fpn"))
    assert resize.input_size == (800, 1072)
    assert resize.to_input(torch.zeros(3, 480, 643, dtype=torch.uint8)).shape == (3, 800, 1072)
    box = resize.to_image(torch.tensor([[0.0, 0.0, 1072, 800]]))
    torch.testing.assert_close(box, torch.tensor([[0.0, 0.0, 643, 480]]))


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((480, 643), (512, 512), (512, 512)),
        ((100, 60), (224, 224), (224, 224)),
        ((480, 643), (300, 400), (300, 400)),
        ((643, 480), (300, 400), (400, 300)),
    ],
)
def test_an_image_is_stretched_where_its_ratio_is_not_kept(size, bounds, expected):
    config = override(model_config("fsaf_r18_fpn"), {"weights": {"keep_ratio": False}})
    resize = plan_resize(size, override(config, {"weights": {"image_size": bounds}}))
    assert resize.input_size == plan_resize(size, config, bounds).input_size == expected
    assert resize.to_input(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, *expected)
    (height, width), whole = expected, [[0.0, 0.0, *size[::-1]]]
    box = resize.to_image(torch.tensor([[0.0, 0.0, width, height]]))
    torch.testing.assert_close(box, torch.tensor(whole))


def test_the_authors_boxes_include_their_last_pixel():
    """Such coordinates are divided by the scale: x2 -> (x2 - 1) / scale + 1."""
    resize = plan_resize((400, 500), authors_config("fsaf_r50_sepc"))  # doubled
    boxes = resize.to_image(torch.tensor([[10.0, 20.0, 101.0, 201.0]]))
    assert boxes.tolist() == [[5.0, 10.0, 51.0, 101.0]]


def test_torchvisions_inputs_are_cut_to_whole_pixels_and_resized_in_floats():
    config = model_config("fasterrcnn_r50_fpn.tv_coco")
    plan = plan_resize((480, 640), config)
    assert plan.input_size == (800, 1066)
    assert plan_resize((480, 640), model_config("fasterrcnn_r50_fpn")).input_size == (800, 1067)
    pixels = torch.randint(256, (3, 480, 640), dtype=torch.uint8)
    found = plan.to_input(pixels)
    expected = torch.nn.functional.interpolate(
        pixels[None].float(), size=(800, 1066), mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(found, expected)
    boxes = plan.to_image(torch.tensor([[0.0, 0, 1066, 800]]))
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 640, 480]]))


def test_a_message_about_an_address_has_no_password():
    with pytest.raises(ImageError) as error:
        open_image("http://user:secret@127.0.0.1:9/a.jpg")
    assert "secret" not in str(error.value)
    assert "127.0.0.1:9/a.jpg" in str(error.value)
