"""Small data sets for the tests of readers, and what is wrong with them."""

import pytest
from PIL import Image

from sepc_zoo.data import DataError, read_data


def write_image(path, size=(64, 48), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **kwargs)


def problems_of(root, split="train", **kwargs):
    with pytest.raises(DataError) as caught:
        read_data(root, split, **kwargs)
    return tuple(map(str, caught.value.problems))
