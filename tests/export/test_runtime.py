import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import sepc_zoo
from sepc_zoo.config import override
from sepc_zoo.data.images import read_image
from sepc_zoo.data.pixels import resize_image
from sepc_zoo.inference import detections
from sepc_zoo.inference.preprocess import open_image, plan_resize
from sepc_zoo.registry import authors_config, model_config

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from commands import assert_refused, call
from exported_files import SHARES, input_rule, write_exported
from new_process import run_python
from tiny_exports import tiny_detector

from sepc_zoo.export import runtime
from sepc_zoo.export.loaded import with_fixed_input
from sepc_zoo.export.runtime import FileError, load, main, resize, write_runtime

CONFIG = override(model_config("retinanet_r18_fpn"), {"weights": {"image_size": [64, 96]}})
CONFIGS = {
    "default": CONFIG,
    "authors": authors_config("fsaf_r50_sepc"),
    "openmmlab": model_config("retinanet_r50_fpn.mmdet_1x"),
    "torchvision": model_config("fasterrcnn_r50_fpn.tv_coco"),
    "stretched": override(CONFIG, {"weights": {"keep_ratio": False}}),
}
ORIENTATION = 0x0112
SIDES = st.integers(1, 90)


def channels_last(tensor):
    return tensor.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def pixels():
    """A blocky image ``(50, 90, 3)``."""
    blocks = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((10, 10, 1), dtype=np.uint8))


@pytest.fixture
def image(pixels):
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("model") / "cats.onnx", input_rule(CONFIG))


@pytest.fixture(scope="module")
def model(file):
    return load(file, threads=1)


# Resizing


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_resized_bytes_equal_pytorchs_to_the_last_grey_level(h, w, height, width, c, smooth, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)
    expected = resize_image(torch.from_numpy(image).permute(2, 0, 1), (height, width), smooth)
    assert np.array_equal(resize(image, (height, width), smooth), channels_last(expected))


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 2**32 - 1))
def test_resized_floats_equal_pytorchs(h, w, height, width, smooth, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.float32)
    expected = resize_image(torch.from_numpy(image).permute(2, 0, 1), (height, width), smooth)
    found = resize(image, (height, width), smooth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, channels_last(expected), atol=1e-3)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("size", [(97, 131), (800, 1067), (2000, 2600)])
def test_images_of_usual_sizes_are_resized_alike(size, smooth):
    image = np.random.default_rng(0).integers(0, 256, (1211, 1613, 3), dtype=np.uint8)
    expected = resize_image(torch.from_numpy(image).permute(2, 0, 1), size, smooth)
    assert np.array_equal(resize(image, size, smooth), channels_last(expected))


@pytest.mark.parametrize("fixed", [None, (480, 640), (640, 480)])
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_size_of_an_input_is_the_models(name, fixed, height, width):
    config, rule = CONFIGS[name], input_rule(CONFIGS[name])
    if fixed:
        config = with_fixed_input(config, *fixed)
        rule |= dict(zip(("height", "width"), fixed, strict=True))
    plan = plan_resize((height, width), config)
    scale, size = runtime.plan_resize((height, width), rule)
    assert size == plan.input_size
    assert plan.inclusive_scale in (None, scale)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_input_is_padded_to_the_multiple_and_the_least_side(name, pixels):
    rule = input_rule(CONFIGS[name], min_side=257)
    batch = runtime.to_input(pixels, (60, 300), rule)
    multiple = rule["pad_multiple"]
    assert batch.shape == (1, -(-257 // multiple) * multiple, -(-300 // multiple) * multiple, 3)
    assert batch.dtype == rule["dtype"]
    expected = plan_resize((50, 90), CONFIGS[name]).__class__(
        (50, 90), (60, 300), rule["antialias"], rule["resize_floats"]
    )
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_allclose(
        batch[0, :60, :300], channels_last(expected.to_input(tensor)), atol=1e-3
    )


@pytest.mark.parametrize(
    ("keep_ratio", "expected"), [(True, (64, 115)), (False, (64, 128))], ids=["kept", "stretched"]
)
def test_an_image_fits_inside_of_a_fixed_height_and_width(keep_ratio, expected, pixels):
    rule = input_rule(CONFIG, height=64, width=128, keep_ratio=keep_ratio)
    _, size = runtime.plan_resize((50, 90), rule)
    assert size == expected
    assert runtime.plan_resize((90, 50), rule)[1] == ((64, 36) if keep_ratio else (64, 128))
    assert runtime.to_input(pixels, size, rule).shape == (1, 64, 128, 3)


# Reading


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


FILES = {
    "rgb.jpg": lambda image: image,
    "gray.jpg": lambda image: image.convert("L"),
    "rgb.png": lambda image: image,
    "gray.png": lambda image: image.convert("L"),
    "deep.png": lambda image: Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 250),
    "bilevel.png": lambda image: image.convert("1"),
    "palette.png": lambda image: image.quantize(16),
    "rgba.png": with_alpha,
    "la.png": lambda image: with_alpha(image.convert("L")),
    "rgb.webp": lambda image: image,
    "palette.gif": lambda image: image.quantize(16),
    "rgb.bmp": lambda image: image,
    "rgb.tif": lambda image: image,
    "deep.tif": lambda image: Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 250),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILES)
def test_every_mode_is_read_as_the_model_reads_it(name, channels, image, tmp_path):
    if channels == 4 and name.endswith(".tif"):
        pytest.skip("four channels of a TIFF are its own")
    path = tmp_path / name
    FILES[name](image).save(path)
    expected = channels_last(read_image(path, channels=channels))
    assert np.array_equal(runtime.read_image(path, channels), expected)
    assert np.array_equal(runtime.decode_image(path.read_bytes(), channels=channels), expected)
    with Image.open(path) as opened:
        assert np.array_equal(runtime.pixels_of_pil(opened, channels), expected)


def test_a_cmyk_jpeg_keeps_its_colours(image, tmp_path):
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    expected = channels_last(read_image(tmp_path / "cmyk.jpg")).astype(int)
    found = runtime.read_image(tmp_path / "cmyk.jpg")
    assert np.abs(found - expected).max() <= 2  # the decoders of CMYK round apart


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_is_turned_upright(suffix, orientation, image, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif)
    assert np.array_equal(runtime.read_image(path), channels_last(read_image(path)))
    with Image.open(path) as opened:
        ((found, _),), _ = runtime.open_images(opened)
        assert np.array_equal(found, channels_last(open_image(opened).pixels))


def test_broken_exif_and_an_orientation_in_xmp_leave_an_image_upright(image, tmp_path):
    image.save(tmp_path / "exif.png", exif=b"Exif\x00\x00nonsense")
    xmp = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    image.save(tmp_path / "xmp.png", pnginfo=info)
    for name in ("exif.png", "xmp.png"):
        assert np.array_equal(runtime.read_image(tmp_path / name), np.array(image))


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_arrays_of_all_types_have_the_pixels_that_the_model_sees(channels):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    sources = [array, array / 255, array / np.float32(255), array.astype(np.uint16) * 256 + 255]
    sources += [np.asfortranarray(array), array[::-1]]
    sources += [array[:, :, 0]] if channels == 1 else []
    for source in sources:
        ((found, path),), single = runtime.open_images(source, channels)
        assert np.array_equal(found, channels_last(open_image(source, channels).pixels))
        assert (path, single) == (None, True)


def test_a_model_of_three_channels_takes_grey_and_transparent_arrays(pixels):
    for source in (pixels[:, :, 0], pixels[:, :, :1], np.dstack([pixels, pixels[:, :, 0]])):
        ((found, _),), _ = runtime.open_images(source)
        assert np.array_equal(found, channels_last(open_image(source).pixels))


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (None, TypeError, "NoneType: expected a file, folder"),
        (5, TypeError, "int"),
        (b"image", FileError, "5 bytes: not an image"),
        ({"a": 1}, TypeError, "dict"),
        (np.zeros(8, np.uint8), ValueError, "1 or 3 channels"),
        (np.zeros((8, 8, 5), np.uint8), ValueError, r"1 or 3 channels, got \(8, 8, 5\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, "channels last"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "the image is empty"),
        (np.full((8, 8, 3), -1.0), ValueError, "0..1.*not a normalised input"),
        (np.full((8, 8, 3), np.nan), ValueError, "0..1"),
        (np.zeros((8, 8, 3), np.int64), ValueError, "uint8, uint16 or float.*int64"),
        (np.zeros((8, 8, 3), bool), ValueError, "bool"),
        (Image.new("F", (8, 8)), ValueError, "float samples"),
    ],
)
def test_what_is_no_image_is_refused(source, error, match, model):
    with pytest.raises(error, match=match):
        model.predict(source)


def test_channels_that_a_file_cannot_have_are_an_error(image, tmp_path):
    image.save(tmp_path / "x.png")
    with pytest.raises(FileError, match=r"x\.png: the model takes 7 channels; give an array"):
        runtime.read_image(tmp_path / "x.png", 7)


def test_an_unreadable_file_is_named(model, tmp_path):
    (tmp_path / "b.png").write_bytes(b"broken")
    for name in ("b.png", "nowhere.png"):
        for source in (tmp_path / name, str(tmp_path / name), [tmp_path / name]):
            with pytest.raises(FileError, match=name):
                model.predict(source)


def test_an_unreadable_file_of_a_folder_is_left_out_with_a_warning(model, image, tmp_path):
    for name in ("a.png", "c.png", "d.png"):
        image.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    data = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"left out: .*[bc]\.png") as caught:
        assert [found.image.name for found in model.predict(tmp_path)] == ["a.png", "d.png"]
    assert len(caught) == 2


# Results


def found_by_both(image):
    boxes = [[4, 8, 20, 30.5], [30, 10, 60, 40], [-5, 2, 300, 45.2], [1, 2, 3, 4]]
    scores, labels, names = [0.875, 0.5, 0.25, 0.1], [0, 1, 0, 1], ("a cat", "dog\nor wolf")
    ours = runtime.Detections(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.array(labels),
        names,
        (17, None),
        image,
    )
    theirs = detections.Detections(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(scores),
        torch.tensor(labels),
        names,
        (17, None),
        image if isinstance(image, Path) else torch.from_numpy(image).permute(2, 0, 1),
    )
    return ours, theirs


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(48, 64), (300, 500)])
def test_results_are_named_written_and_drawn_as_those_of_a_model(size, channels):
    array = np.random.default_rng(0).integers(0, 99, (*size, channels), dtype=np.uint8)
    ours, theirs = found_by_both(array)
    assert ours.summary() == theirs.summary()
    assert ours.to_coco(7) == theirs.to_coco(7)
    assert [*ours] == [*theirs]
    assert np.array_equal(np.asarray(ours.draw()), np.asarray(theirs.draw()))
    assert np.array_equal(np.asarray(ours[:0].draw()), np.asarray(theirs[:0].draw()))


def test_results_are_drawn_on_their_file(image, tmp_path):
    image.save(tmp_path / "x.png")
    ours, theirs = found_by_both(tmp_path / "x.png")
    assert np.array_equal(np.asarray(ours.draw()), np.asarray(theirs.draw()))
    for suffix in runtime.IMAGE_SUFFIXES:
        ours.save(tmp_path / f"deeper/ours{suffix}")
        theirs.save(tmp_path / f"deeper/theirs{suffix}")
        written = (tmp_path / f"deeper/ours{suffix}").read_bytes()
        assert written == (tmp_path / f"deeper/theirs{suffix}").read_bytes()
    with pytest.raises(ValueError, match=r"use one of .*\.jpg"):
        ours.save(tmp_path / "x.txt")


def test_slices_masks_and_indices_give_results(pixels):
    ours, theirs = found_by_both(pixels)
    for index in (slice(0, 3, 2), ours.labels == 0, np.array([0, 2]), [0, 2]):
        assert [*ours[index]] == [theirs[0], theirs[2]]
    assert ours[-1] == theirs[-1]
    assert repr(ours).startswith("Detections(4: a cat 0.88, ")


def test_the_constants_of_the_copy_are_those_of_the_package():
    from sepc_zoo.data import images
    from sepc_zoo.inference import drawing

    for name in ("IMAGE_SUFFIXES", "TRANSPOSES", "READ_ERRORS"):
        assert getattr(runtime, name) == getattr(images, name)
    assert runtime.PALETTE == drawing.PALETTE


# Files of models


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"raw": True}, "export it without --raw"), ({"format": 2}, "metadata of format 2")],
)
def test_a_file_that_cannot_be_run_says_why(changes, says, tmp_path):
    path = write_exported(tmp_path / "x.onnx", input_rule(CONFIG), **changes)
    with pytest.raises(FileError, match=rf"x\.onnx: .*{says}"):
        load(path)


def test_a_file_that_is_no_model_is_named(file, tmp_path, capsys):
    import onnx

    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:400])
    stranger = onnx.load(file)
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    for name in ("text.onnx", "cut.onnx", "stranger.onnx", "missing.onnx"):
        with pytest.raises(FileError, match=name):
            load(tmp_path / name)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.onnx"), "a.jpg"])
    said = capsys.readouterr().err
    assert "missing.onnx: no such file; `sepc-zoo export` writes one" in said


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_boxes_are_in_the_pixels_of_the_image(batch, dtype, pixels, tmp_path):
    rule = input_rule(CONFIG, batch=batch, dtype=dtype, pad_multiple=1, min_side=1)
    model = load(write_exported(tmp_path / "x.onnx", rule), threads=1)
    found = model.predict(pixels, score_threshold=0.05)
    expected = SHARES[:2] * np.array([90, 50, 90, 50])
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)
    assert found.labels.tolist() == [1, 0]
    mean = resize(pixels, runtime.plan_resize((50, 90), rule)[1], True).mean() / 255
    np.testing.assert_allclose(found.scores, [mean, mean / 2], rtol=1e-5)
    assert len(model.predict(pixels, score_threshold=0.75 * mean)) == 1
    assert [row["category_id"] for row in found.to_coco(3)] == [17]


def test_inclusive_boxes_return_as_those_of_the_model(pixels, tmp_path):
    config = authors_config("fsaf_r50_sepc")
    rule = input_rule(config)
    found = load(write_exported(tmp_path / "x.onnx", rule), threads=1).predict(pixels, 0.01)
    plan = plan_resize((50, 90), config)
    height, width = plan.input_size
    inside = torch.from_numpy(SHARES[:2]) * torch.tensor([width, height, width, height])
    np.testing.assert_allclose(found.boxes, plan.to_image(inside), rtol=1e-5)


def test_every_kind_of_source_gives_the_same_result(model, image, pixels, tmp_path):
    image.save(tmp_path / "x.png")
    expected = model.predict(pixels, 0.05)
    data = (tmp_path / "x.png").read_bytes()
    single = [tmp_path / "x.png", str(tmp_path / "x.png"), data, image, pixels / 255]
    found = [model.predict(source, 0.05) for source in single]
    for source in ([pixels], (image,), iter([data]), tmp_path):
        found += model.predict(source, 0.05)
    assert len(found) == 9
    for one in found:
        assert [*one] == [*expected]


# Alone


def test_the_module_loads_nothing_but_its_three_libraries():
    code = (
        "import sys; sys.modules['torch'] = None; import sepc_zoo.export.runtime; "
        "print(*sys.modules)"
    )
    loaded = {*run_python("-c", code).stdout.split()}
    assert {name for name in loaded if name.startswith("sepc_zoo")} == {
        "sepc_zoo",
        "sepc_zoo.export",
        "sepc_zoo.export.runtime",
        "sepc_zoo.lazy",
    }
    assert not loaded & {"torchvision", "timm", "msgspec", "huggingface_hub"}


def test_a_copy_runs_beside_a_file_where_the_package_is_not_installed(file, image, tmp_path):
    assert write_runtime(tmp_path) == tmp_path / "detect.py"
    image.save(tmp_path / "x.png")
    code = (
        "import runpy, sys; sys.modules.update(torch=None, sepc_zoo=None); "
        "sys.argv[1:] = sys.argv[2:]; runpy.run_path('detect.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "detect.py", file, "x.png", "--score-threshold", "0.1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("x.png: 2: dog 0.")
    assert (tmp_path / "predictions" / "x_boxes.png").is_file()


def test_the_command_writes_pictures_and_coco_results(file, image, tmp_path, capsys):
    for name in ("one/a.png", "two/a.jpg", "two/b.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    sources = [str(tmp_path / "one" / "a.png"), str(tmp_path / "two"), str(tmp_path / "one")]
    output = tmp_path / "out"
    assert main([str(file), *sources, "--output", str(output), "--score-threshold", "0.1"]) == 0
    written = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert written["images"] == [
        {"id": 1, "file_name": "one/a.png"},
        {"id": 2, "file_name": "two/a.jpg"},
        {"id": 3, "file_name": "two/b.gif"},
    ]
    assert written["categories"] == [{"id": 17, "name": "cat"}, {"id": None, "name": "dog"}]
    assert [row["image_id"] for row in written["annotations"]] == [1, 2, 3]
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.*")} == {
        *("detections.json", "one/a_boxes.png", "two/a_boxes.jpg", "two/b_boxes.gif")
    }
    assert capsys.readouterr().out.splitlines()[-1].endswith("detections.json with 3 boxes")


def test_a_bad_image_costs_the_others_nothing(file, image, tmp_path, capsys):
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    assert main([str(file), str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "not done: " in (text := capsys.readouterr().err)
    assert "b.png: not an image" in text
    written = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert [entry["file_name"] for entry in written["images"]] == ["a.png"]


@pytest.mark.parametrize("arguments", [["missing.onnx", "x.png"], ["model", "empty"]])
def test_wrong_usage_is_told_in_a_line(arguments, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as caught:
        main([str(file) if name == "model" else name for name in arguments])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert "missing.onnx" in last or "no images in empty" in last


def test_a_palette_with_transparency_gives_no_warning(image, tmp_path):
    image.quantize(16).save(tmp_path / "palette.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = runtime.read_image(tmp_path / "palette.png")
    assert np.array_equal(found, np.asarray(image.quantize(16).convert("RGB")))


# Real files


@pytest.mark.parametrize("other", [["--format", "pt2"], ["--raw"]])
def test_files_that_it_cannot_run_get_no_runtime(other, capsys):
    with pytest.raises(SystemExit):
        call("export", "--model", "x", "--output", "x", "--with-runtime", *other)
    assert_refused(capsys, "--with-runtime", "needs --format onnx, without --raw")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_sepc", "fasterrcnn_fpn"])
def test_an_exported_model_finds_in_images_what_it_found_before(name, tmp_path):
    trained = tiny_detector(name, weights={"image_size": (128, 192)})
    model, file = sepc_zoo.save_model(trained, tmp_path / "model"), tmp_path / "x.onnx"
    assert call("export", "--model", model, "--output", file, "--with-runtime") == 0
    assert (tmp_path / "detect.py").read_bytes() == Path(runtime.__file__).read_bytes()
    exported = load(file, threads=1)
    for seed, size in enumerate([(150, 210), (300, 200), (97, 131)]):
        small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "x.jpg")
        expected = trained.predict(tmp_path / "x.jpg", 0.1)
        found = exported.predict(tmp_path / "x.jpg", 0.1)
        assert len(found) > 5
        assert found.labels.tolist() == expected.labels.tolist()
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.1)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


FAKE = """
import os

print(os.environ.get("ORT_DISABLE_TELEMETRY"), end="")


def __getattr__(name):
    return object
"""


def test_the_maker_of_onnxruntime_gets_no_reports(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(FAKE)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    write_runtime(tmp_path)
    for code in ("import sepc_zoo.export.onnx, onnxruntime", "import detect"):
        command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
        assert run_python("-c", command).stdout == "1"


def test_the_maker_of_openvino_gets_no_reports():
    code = (
        "import sepc_zoo.export, openvino.tools.ovc.telemetry_utils as ovc; print(ovc.tm.__name__)"
    )
    assert run_python("-c", code).stdout.endswith("telemetry_stub\n")


def test_detect_py_of_another_project_is_not_overwritten(tmp_path):
    write_runtime(tmp_path)
    write_runtime(tmp_path)
    (tmp_path / "detect.py").write_text("mine = 1")
    with pytest.raises(FileError, match="another file of this name"):
        write_runtime(tmp_path)
