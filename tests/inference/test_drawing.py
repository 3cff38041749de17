import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from sepc_zoo.inference.drawing import (
    choose_font,
    class_color,
    close_up,
    contact_sheet,
    draw_batch,
    draw_boxes,
    fit,
    shorten,
    text_color,
)

RED = (255, 0, 0)


@pytest.fixture
def black():
    return torch.zeros(3, 60, 100, dtype=torch.uint8)


def red_pixels(image):
    return (np.asarray(image) == RED).all(axis=2)


def test_the_image_itself_stays_unchanged(black):
    image = Image.fromarray(black.permute(1, 2, 0).numpy())
    for source in (black, image):
        draw_boxes(source, torch.tensor([[10.0, 10, 50, 50]]), [""], [RED])
    assert black.sum() == 0
    assert np.asarray(image).sum() == 0


def test_box_covers_its_pixels_and_no_more(black):
    drawn = red_pixels(draw_boxes(black, torch.tensor([[10.0, 20, 50, 40]]), [""], [RED]))
    rows, columns = drawn.nonzero()
    assert (columns.min(), columns.max() + 1) == (10, 50)
    assert (rows.min(), rows.max() + 1) == (20, 40)
    assert not drawn[25:35, 15:45].any()  # an outline


@pytest.mark.parametrize(
    "box",
    [[-50.0, -50, 500, 500], [200.0, 200, 300, 300], [30.0, 30, 30, 30], [50.0, 40, 20, 10]],
    ids=["larger", "outside", "a point", "reversed"],
)
def test_odd_boxes_are_drawn_without_an_error(black, box):
    assert draw_boxes(black, torch.tensor([box]), ["thing 0.50"], [RED]).size == (100, 60)


def test_no_boxes_leave_the_image_unchanged(black):
    assert np.asarray(draw_boxes(black, torch.zeros(0, 4), [], [])).sum() == 0


def test_numbers_of_boxes_and_captions_must_agree(black):
    with pytest.raises(ValueError, match="zip"):
        draw_boxes(black, torch.zeros(1, 4), [], [RED])


def test_lines_are_as_wide_as_asked(black):
    box = torch.tensor([[10.0, 10, 50, 50]])
    drawn = red_pixels(draw_boxes(black, box, [""], [RED], line=4))
    assert drawn[30, 10:20].tolist() == [True] * 4 + [False] * 6


BOXES = [[400.0, 300, 440, 330], [0, 0, 1, 1], [0, 0, 800, 600], [799, 0, 800, 600], [9, 9, 9, 9]]


@pytest.mark.parametrize("box", [*BOXES, [-200.0, 100, 900, 120], [5000, 5000, 5100, 5100]])
def test_a_close_up_fits_its_size_and_shows_its_box(box):
    picture = close_up(
        torch.zeros(3, 600, 800, dtype=torch.uint8), torch.tensor([box]), [RED], (400, 300), focus=1
    )
    assert picture.width == 400 or picture.height == 300
    assert picture.width <= 400
    assert picture.height <= 300
    assert red_pixels(picture).any()


def test_a_close_up_is_of_the_last_boxes_at_twice_their_size():
    """The image is bright where the cut should be, and dark around it."""
    image = torch.zeros(3, 900, 1200, dtype=torch.uint8)
    image[:, 250:550, 300:700] = 255
    boxes = torch.tensor([[0.0, 0, 1200, 900], [400, 325, 600, 475]])
    picture = close_up(image, boxes, [RED, RED], (200, 150), focus=1)
    assert picture.size == (200, 150)
    assert (np.asarray(picture)[2:-2, 2:-2, 0] == 255).all()


def test_a_close_up_keeps_the_images_proportions_at_its_border():
    image = torch.zeros(3, 1000, 100, dtype=torch.uint8)
    picture = close_up(image, torch.tensor([[0.0, 0, 100, 1000]]), [RED], (400, 300), focus=1)
    assert picture.size == (30, 300)


@pytest.mark.parametrize("corner", [(0.0, 0.0), (190.0, 0.0), (0.0, 140.0), (190.0, 140.0)])
def test_a_caption_lies_inside_the_picture(corner):
    """Wherever the box, the caption has the same number of pixels: none is cut off."""
    image = torch.zeros(3, 150, 200, dtype=torch.uint8)
    small = torch.tensor([[*corner, corner[0] + 9, corner[1] + 9]])
    middle = torch.tensor([[90.0, 70, 99, 79]])
    tags = []
    for box in (small, middle):
        tagged = np.asarray(draw_boxes(image, box, ["giraffe 0.99"], [RED])).any(axis=2)
        tags.append((tagged.any(axis=0).sum(), tagged.any(axis=1).sum()))
    assert tags[0][0] == tags[1][0]
    assert tags[0][1] >= tags[1][1] - 9  # inside the box rather than above it


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_a_line_break_in_a_caption_is_drawn_as_a_space(black, line_break):
    box = torch.tensor([[0.0, 30, 90, 60]])
    broken = draw_boxes(black, box, [f"red{line_break}cat"], [RED])
    assert np.array_equal(broken, draw_boxes(black, box, ["red cat"], [RED]))


def test_captions_contrast_with_every_class_color():
    """At least 4.5, as WCAG asks of text."""

    def luminance(color):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color]
        return np.dot((0.2126, 0.7152, 0.0722), linear)

    for label in range(20):
        color = class_color(label)
        pair = sorted(
            luminance(np.array(c) / 255) for c in (color, ImageColor.getrgb(text_color(color)))
        )
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, color


# Machado, Oliveira and Fernandes (2009): how linear RGB looks to others.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
    "deuteranopia": [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def lab(linear):
    """CIELAB of linear RGB (n, 3)."""
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]
    xyz = linear.clip(0, 1) @ np.transpose(to_xyz)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("vision", VISION)
def test_the_first_class_colors_are_far_apart_to_every_eye(vision):
    """A distance of 10 is told apart at a glance; that of red and green to few is 2."""
    values = np.array([class_color(label) for label in range(8)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = lab(linear @ np.transpose(VISION[vision]))
    distances = np.linalg.norm(seen[:, None] - seen, axis=2)[~np.eye(8, dtype=bool)]
    assert distances.min() > 25


def test_colors_differ_and_are_stable():
    assert len({class_color(label) for label in range(20)}) == 20
    assert class_color(3) == class_color(3)


def plate(caption, size=(300, 60)):
    """The drawn caption, in black and white."""
    box = torch.tensor([[0.0, 40, 290, 60]])
    drawn = draw_boxes(torch.zeros(3, *size[::-1], dtype=torch.uint8), box, [caption], [RED])
    return np.asarray(drawn)[:40]


@pytest.mark.parametrize("name", ["Bär", "grün", "ёж", "γάτα", "naïve"])
def test_names_that_are_not_ascii_have_letters_and_no_boxes(name):
    pytest.importorskip("matplotlib")  # which brings a font
    missing = "\uffff" * sum(not character.isascii() for character in name)
    others = "".join(character for character in name if character.isascii())
    assert not np.array_equal(plate(name), plate(others + missing))
    font = choose_font(frozenset(name), 11.0)
    boxes = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(character)) != boxes for character in name)


def test_a_long_caption_is_shortened_to_the_image_and_keeps_its_score():
    long, short = plate("Central American spider monkey of the forest 0.87", (120, 60)), plate("x")
    assert long.shape == (40, 120, 3)
    reds = red_pixels(long)
    assert reds[:, -3:].any()
    assert short.any()
    font = choose_font(frozenset("a"), 11.0)
    text = shorten("Central American spider monkey 0.87", font, 100)
    assert font.getlength(text) <= 100
    assert text.startswith("Cen")
    assert text.endswith("… 0.87")
    assert shorten("cat 0.87", font, 100) == "cat 0.87"


def test_fitted_boxes_stay_on_what_they_mark():
    image = torch.zeros(3, 60, 120, dtype=torch.uint8)
    image[:, 10:30, 40:80] = 255
    for size in ((480, 360), (60, 60)):
        picture, boxes = fit(image, torch.tensor([[40.0, 10, 80, 30]]), size)
        bright = np.asarray(picture)[..., 0] > 127
        rows, columns = bright.nonzero()
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[0].tolist() == pytest.approx(edges, abs=1)
        assert picture.width == size[0]


def test_contact_sheet_holds_all_images():
    images = [Image.new("RGB", size, RED) for size in ((40, 30), (30, 60), (10, 10))] * 2
    areas = 480 * 360 + 180 * 360 + 360 * 360
    assert red_pixels(contact_sheet(images)).sum() == 2 * areas  # in two rows


def test_headings_stand_above_the_columns():
    images = [Image.new("RGB", (480, 360), RED)] * 2
    plain, headed = contact_sheet(images), contact_sheet(images, headings=["ground truth", ""])
    added = headed.height - plain.height
    assert added > 10
    above = np.asarray(headed)[: added + 8]
    assert (above[:, :488] < 128).any()
    assert (above[:, 496:] == 255).all()
    assert np.array_equal(np.asarray(headed)[added:][8:], np.asarray(plain)[8:])


def test_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


MEAN, STD = (0.5, 0.4, 0.2), (0.2, 0.1, 0.25)


def drawn_batch(boxes=(), labels=(), iscrowd=(), device="cpu"):
    """Draw a batch of a white image, 300 x 480, with 60 rows of padding below."""
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    images = torch.zeros(1, 3, 360, 480)
    images[:, :, :300] = white.view(3, 1, 1)
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(iscrowd, dtype=torch.int64),
    }
    on_device = {name: column.to(device) for name, column in target.items()}
    sheet = draw_batch(images.to(device), [on_device], MEAN, STD, ("cat", "dog"))
    gap = (sheet.width - 480) // 2
    return np.asarray(sheet)[gap : gap + 360, gap : gap + 480]


def test_a_batch_has_the_images_own_colors_and_the_mean_as_padding():
    drawn = drawn_batch()
    assert (drawn[:300] == 255).all()
    assert (np.abs(drawn[300:] - np.array(MEAN) * 255) <= 1).all()


def test_the_boxes_of_a_batch_have_the_colors_of_their_classes():
    drawn = drawn_batch([[100.0, 100, 200, 250]], [1], [0])
    rows, columns = (drawn[100:] == class_color(1)).all(axis=2).nonzero()  # below the tag
    assert (columns.min(), columns.max() + 1) == (100, 200)
    assert rows.max() + 101 == 250


def test_a_crowd_has_a_longer_caption():
    box, label = [[100.0, 100, 200, 250]], [1]
    plate = [(drawn_batch(box, label, [k])[:100] != 255).any(axis=(0, 2)).sum() for k in (0, 1)]
    assert plate[1] > 1.5 * plate[0]


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_are_drawn_as_the_first_three_or_one_and_brightened(channels):
    image = torch.tensor([10, 20, 5, 40, 90, 99][:channels], dtype=torch.uint8)
    image = image.view(-1, 1, 1).repeat(1, 60, 100)
    drawn = np.asarray(draw_boxes(image, torch.zeros(0, 4), [], []))
    expected = [128, 255, 64] if channels > 2 else [255, 255, 255]
    assert (drawn == expected).all()
    mean, std = (0.5,) * channels, (0.1,) * channels
    normalised = (image / 255 - 0.5) / 0.1
    target = {name: torch.zeros(0) for name in ("labels", "iscrowd")} | {"boxes": torch.zeros(0, 4)}
    sheet = np.asarray(draw_batch(normalised[None], [target], mean, std, ()))
    assert (sheet == expected).all(axis=2).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_is_drawn_as_on_the_cpu():
    content = [[100.0, 100, 200, 250]], [1], [1]
    assert np.array_equal(drawn_batch(*content, device="cuda"), drawn_batch(*content))
