import pytest

from sepc_zoo.data import DataError, read_data, write_shapes


def test_the_layout_tells_coco(tmp_path):
    write_shapes(tmp_path / "shapes", train=2, val=1, size=(48, 64))
    assert len(read_data(tmp_path / "shapes", "train").records) == 2


def test_the_layout_tells_voc(shared_data):
    assert len(read_data(shared_data / "bccd", "val").records) == 87


def test_an_unknown_layout_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError) as caught:
        read_data(tmp_path, "train")
    for text in ("annotations/instances_<split>", "ImageSets/Main", "labels.csv, photos/"):
        assert text in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_data(tmp_path / "nowhere", "train")


def test_a_missing_split_says_which_exist(tmp_path):
    write_shapes(tmp_path / "shapes", train=1, val=1, size=(48, 64))
    with pytest.raises(DataError, match="there are: train, val"):
        read_data(tmp_path / "shapes", "test")
