import filecmp

import numpy as np
import pytest
from PIL import Image

from sepc_zoo.data import read_data, write_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=40, val=3, seed=1)


def test_the_data_set_is_read_without_a_problem(root):
    train, val = read_data(root, "train"), read_data(root, "val")
    assert (len(train.records), len(val.records)) == (40, 3)
    assert train.label_names == val.label_names == ("disc", "square", "triangle", "star")
    assert train.records[0].size == (192, 192)


def test_all_classes_and_very_different_sizes_occur(root):
    records = read_data(root, "train").records
    assert {label for record in records for label in record.labels.tolist()} == {0, 1, 2, 3}
    sides = [side for r in records for side in (r.boxes[:, 2:] - r.boxes[:, :2]).amax(1).tolist()]
    assert 7 <= min(sides) < 16
    assert 80 < max(sides) <= 121
    assert all(len(record.boxes) for record in records)


def test_boxes_fit_their_shapes(root):
    """Along each side of a box, the colours inside and outside differ somewhere."""
    record = next(r for r in read_data(root, "train").records if len(r.boxes) == 1)
    pixels = np.asarray(Image.open(record.path)).astype(int)
    x1, y1, x2, y2 = (int(value) for value in record.boxes[0])
    assert np.abs(pixels[y1 + 2, x1:x2] - pixels[max(y1 - 3, 0), x1:x2]).sum(1).max() > 60
    assert np.abs(pixels[y1:y2, x2 - 3] - pixels[y1:y2, min(x2 + 2, 191)]).sum(1).max() > 60


def test_a_seed_draws_the_same_again(root, tmp_path):
    write_shapes(tmp_path / "again", train=2, val=1, seed=1)
    write_shapes(tmp_path / "other", train=2, val=1, seed=2)
    picture = "train/000002.jpg"
    assert filecmp.cmp(root / picture, tmp_path / "again" / picture, shallow=False)
    assert not filecmp.cmp(root / picture, tmp_path / "other" / picture, shallow=False)


def test_usual_drawings_do_not_change(tmp_path):
    """The study's results are published: they hold for these boxes."""
    root = write_shapes(tmp_path / "s", train=1, val=0, size=(128, 128), sides=(4.0, 85.0))
    record = read_data(root, "train").records[0]
    assert record.labels.tolist() == [3, 0, 1, 1, 3, 0]
    assert record.boxes.tolist() == [
        *([9, 37, 32, 59], [111, 111, 122, 122], [71, 97, 95, 121]),
        *([118, 22, 123, 27], [18, 120, 24, 126], [82, 51, 126, 94]),
    ]


def test_texture_and_contrast_make_shapes_easier_to_see(tmp_path):
    plain = write_shapes(tmp_path / "s", train=3, val=0, sides=(40, 60), texture=0, contrast=150)
    for record in read_data(plain, "train").records:
        pixels = np.asarray(Image.open(record.path)).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        assert np.abs(pixels[:2] - ground).max() <= 3  # a row without shapes has one colour
        for x1, y1, x2, y2 in record.boxes.int().tolist():
            center = pixels[(y1 + y2) // 2, (x1 + x2) // 2]
            assert np.linalg.norm(center - ground) > 140


def test_an_existing_folder_is_not_overwritten(root):
    with pytest.raises(FileExistsError, match="is there already"):
        write_shapes(root)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="non-negative"):
        write_shapes(tmp_path / "shapes", seed=-1)
    assert list(tmp_path.iterdir()) == []
