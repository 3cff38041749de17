import numpy as np
import pytest
import torch
from PIL import Image

from sepc_zoo.factory import create_model


@pytest.fixture(scope="session")
def model():
    """A small model in eval mode with random weights that detect something in noise."""
    torch.manual_seed(0)
    model = create_model(
        "retinanet_r18_sepc_lite",
        channels=16,
        label_names=["cat", "dog", "bird"],
        neck={"blocks": 1},
        weights={"image_size": [64, 128]},
    ).eval()
    torch.nn.init.normal_(model.head.cls.weight, std=1.0)
    torch.nn.init.normal_(model.head.box.weight, std=0.3)
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture(scope="session")
def pixels():
    """A blocky image ``(50, 90, 3)``."""
    blocks = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((10, 10, 1), dtype=np.uint8))


@pytest.fixture
def image(pixels):
    return Image.fromarray(pixels)
