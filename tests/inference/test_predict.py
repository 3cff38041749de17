import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sepc_zoo.data.images import ImageError
from sepc_zoo.factory import create_model
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.preprocess import Photo, to_photo
from sepc_zoo.registry import authors_config

SIZE = (50, 90)  # height, width


@pytest.fixture(scope="module")
def model():
    """Small, and sure enough of itself to find something in noise."""
    torch.manual_seed(0)
    model = create_model(
        "retinanet_r18_sepc_lite",
        channels=16,
        label_names=["cat", "dog"],
        neck={"blocks": 1},
        weights={"image_size": [64, 128]},
    )
    torch.nn.init.normal_(model.head.cls.weight, std=1.0)
    torch.nn.init.normal_(model.head.box.weight, std=0.3)
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture(scope="module")
def pixels():
    blocks = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((10, 10, 1), dtype=np.uint8))


@pytest.fixture
def photo(pixels):
    return Image.fromarray(pixels)


def same(found, other):
    return all(
        torch.equal(getattr(found, k), getattr(other, k)) for k in ("boxes", "scores", "labels")
    )


def test_a_photo_gives_detections(model, photo):
    found = model.predict(photo)
    assert isinstance(found, Detections)
    assert len(found) > 3
    assert found.label_names == ("cat", "dog")
    assert (found.scores.diff() <= 0).all()
    assert not found.scores.requires_grad


def test_boxes_lie_in_the_photo(model, pixels):
    for height, width in ((50, 90), (90, 50), (37, 53), (500, 81), (1, 1), (3, 300)):
        photo = Image.fromarray(pixels).resize((width, height))
        boxes = model.predict(photo, score_threshold=0.0).boxes
        assert len(boxes) > 0
        assert boxes.min() >= 0
        assert boxes[:, [0, 2]].max() <= width
        assert boxes[:, [1, 3]].max() <= height


def test_boxes_are_in_the_photos_pixels(model, photo):
    """Twice the photo is the same input, and every box twice as large."""
    small = photo.resize((64, 64), Image.Resampling.NEAREST)
    large = photo.resize((64, 64), Image.Resampling.NEAREST).resize(
        (128, 128), Image.Resampling.NEAREST
    )
    found = model.predict(small, score_threshold=0.5)
    again = model.predict(large, score_threshold=0.5)
    assert abs(len(found) - len(again)) <= 0.2 * len(found)  # the resizing blurs a little
    assert again.boxes.max() > 65


@pytest.mark.parametrize("threshold", [0.06, 0.3, 0.6, 1.0])
def test_scores_are_at_least_the_threshold(model, photo, threshold):
    scores = model.predict(photo, score_threshold=threshold).scores
    assert (scores >= threshold).all()
    assert threshold == 1.0 or len(scores) > 0


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_a_png_gives_the_same_as_file_and_as_pil_image(model, photo, mode, tmp_path):
    image = photo.quantize(16) if mode == "P" else photo.convert(mode)
    image.save(tmp_path / "x.png")
    found = model.predict(image)
    assert len(found) > 0
    assert same(found, model.predict(tmp_path / "x.png"))
    assert same(found, model.predict(str(tmp_path / "x.png")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_16_bits_a_pixel_give_the_same_as_file_and_as_pil_image(model, photo, tmp_path):
    deep = Image.fromarray(np.array(photo.convert("L")).astype(np.uint16) * 257)
    deep.save(tmp_path / "x.png")
    found = model.predict(deep)
    assert len(found) > 0
    assert same(found, model.predict(tmp_path / "x.png"))
    assert same(found, model.predict(photo.convert("L")))


def test_every_kind_of_pixels_gives_the_same(model, photo, pixels):
    expected = model.predict(photo)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [pixels, pixels / 255, tensor, tensor / 255, tensor.double() / 255]
    kinds += [np.asfortranarray(pixels), pixels[::-1][::-1], tensor.contiguous()]
    assert all(same(model.predict(kind), expected) for kind in kinds)


def test_the_alpha_of_an_array_is_dropped(model, photo, pixels):
    alpha = np.random.default_rng(0).integers(0, 256, (*SIZE, 1), dtype=np.uint8)
    assert same(model.predict(np.concatenate([pixels, alpha], axis=2)), model.predict(photo))


def test_an_array_of_16_bits_gives_its_high_byte(model, photo, pixels):
    assert same(model.predict(pixels.astype(np.uint16) * 256 + 255), model.predict(photo))


def test_gray_pixels_are_those_of_a_gray_photo(model, photo):
    gray = photo.convert("L")
    array = np.array(gray)
    tensor = torch.from_numpy(array)
    expected = model.predict(gray)
    for kind in (array, array[:, :, None], tensor, tensor[None], tensor[None].expand(3, -1, -1)):
        assert same(model.predict(kind), expected)


def test_a_read_only_array_is_taken_without_a_warning(model, photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(np.asarray(photo))


def test_the_callers_pixels_are_left_alone(model, pixels):
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    before = tensor.clone()
    model.predict(tensor)
    assert torch.equal(tensor, before)


def test_a_photo_is_turned_upright(model, photo):
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[0x0112] = 6
    found = model.predict(turned)
    assert found.boxes[:, 0].max() > SIZE[0]  # wide again


def test_a_list_gives_a_list(model, photo, pixels, tmp_path):
    photo.save(tmp_path / "x.png")
    found = model.predict([photo, tmp_path / "x.png", pixels])
    assert [type(f) for f in found] == [Detections] * 3
    assert same(found[0], found[1])
    assert model.predict([]) == []
    assert len(model.predict((photo,))) == 1


def test_a_batch_tensor_gives_a_list(model, photo, pixels):
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    found = model.predict(batch)
    assert len(found) == 2
    assert all(same(f, model.predict(photo)) for f in found)


def test_a_folder_gives_a_list_by_name(model, photo, tmp_path):
    for name in ("b.png", "a.jpg", "c.bmp"):
        photo.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = model.predict(tmp_path)
    assert [f.image.name for f in found] == ["a.jpg", "b.png", "c.bmp"]
    assert [f.image.name for f in model.predict(str(tmp_path))] == ["a.jpg", "b.png", "c.bmp"]


def test_an_unreadable_file_of_a_folder_is_told_and_the_others_are_done(model, photo, tmp_path):
    for name in ("a.png", "c.png"):
        photo.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"left out: .*b\.png"):
        found = model.predict(tmp_path)
    assert [f.image.name for f in found] == ["a.png", "c.png"]


def test_a_damaged_file_of_a_folder_is_told_and_the_others_are_done(model, photo, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        photo.save(tmp_path / name)
    data = (tmp_path / "b.png").read_bytes()
    pixels, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    (tmp_path / "b.png").write_bytes(data[:pixels] + bytes(end - pixels) + data[end:])
    with pytest.warns(UserWarning, match=r"left out: .*b\.png"):
        found = model.predict(tmp_path)
    assert [f.image.name for f in found] == ["a.png", "c.png"]


def test_an_unreadable_file_is_named(model, tmp_path):
    (tmp_path / "b.png").write_bytes(b"broken")
    for source in (tmp_path / "b.png", [tmp_path / "b.png"], tmp_path / "nowhere.png"):
        with pytest.raises(ImageError, match=r"(b|nowhere)\.png"):
            model.predict(source)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (None, TypeError, "NoneType: expected a file, folder"),
        (5, TypeError, "int"),
        ({"a": 1}, TypeError, "dict"),
        (torch.zeros(4, 8, 8), ValueError, r"1 or 3 channels, got \(4, 8, 8\)"),
        (torch.zeros(8), ValueError, "1 or 3 channels"),
        (np.zeros((8, 8, 5), np.uint8), ValueError, "1 or 3 channels"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, "an ndarray last"),
        (torch.zeros(8, 8, 3), ValueError, "channels first"),
        (torch.zeros(3, 0, 8), ValueError, "1 or 3 channels"),
        (torch.randn(3, 8, 8), ValueError, "0..1.*not a normalised input"),
        (torch.full((3, 8, 8), torch.nan), ValueError, "0..1"),
        (torch.full((3, 8, 8), 200.0), ValueError, "0..1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ValueError, "uint8, uint16 or float.*int64"),
        (Image.new("F", (8, 8)), ValueError, "float samples"),
        (np.zeros((8, 8, 3), bool), ValueError, "bool"),
    ],
)
def test_what_is_no_photo_is_refused(model, source, error, match):
    with pytest.raises(error, match=match):
        model.predict(source)


def modes(model):
    return [module.training for module in model.modules()]


def test_modes_are_restored_each_by_itself(model, photo):
    model.train()
    model.backbone.eval()  # the authors' training step
    before = modes(model)
    model.predict(photo)
    assert modes(model) == before
    with pytest.raises(TypeError):
        model.predict([photo, None])
    assert modes(model) == before
    model.eval()
    model.predict(photo)
    assert not any(modes(model))


def test_predicting_in_train_mode_gives_the_same_and_keeps_the_statistics(model, photo):
    expected = model.predict(photo)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert same(model.train().predict(photo), expected)
    model.eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_in_float64_predicts(photo):
    model = create_model(
        "fsaf_r18_pconv", channels=16, num_classes=1, weights={"image_size": [64, 128]}
    )
    assert isinstance(model.double().predict(photo), Detections)


def test_the_whole_input_is_the_whole_photo():
    """A box around the input is a box around the photo."""
    config = create_model("fsaf_r18_fpn", channels=16, stacked_convs=0).config
    photo = Photo(torch.zeros(3, 480, 643, dtype=torch.uint8))
    size = photo.to_input(config.weights).shape[1:]
    assert size == (800, 1072)
    whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    torch.testing.assert_close(
        to_photo(whole, photo.size, size, config), torch.tensor([[0.0, 0.0, 643.0, 480.0]])
    )


def test_the_authors_boxes_count_their_last_pixel():
    """Inclusive coordinates are divided by the scale: x2 -> (x2 - 1) / scale + 1."""
    config = authors_config("fsaf_r50_sepc")
    boxes = torch.tensor([[10.0, 20.0, 101.0, 201.0]])
    photo_size = (400, 500)  # doubled: the short side becomes 800
    found = to_photo(boxes, photo_size, (800, 1000), config)
    assert found.tolist() == [[5.0, 10.0, 51.0, 101.0]]
