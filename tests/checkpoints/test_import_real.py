"""A checkpoint of each publisher in its real shapes, from a server to a new offline process."""

import hashlib
import io
import shutil

import pytest
import torch
from imported_models import digest
from module_files import import_file
from new_process import run_python
from openmmlab_goldens import published_shapes, repeatable_weights
from publisher_server import Publisher

from sepc_zoo import create_model
from sepc_zoo.checkpoints import sources
from sepc_zoo.checkpoints.convert import CONVERTERS
from sepc_zoo.published import PUBLISHED

pytestmark = pytest.mark.slow
SALT = "x"
# The publisher's name of the model, and the folder of the reference that describes it.
MODELS = {
    "fcos_r50_fpn.mmdet_caffe_1x": ("fcos_r50-caffe_fpn_gn-head_1x_coco", "openmmlab"),
    "gfl_resnet50c_sepc_lite.universenet_2008s_mini": (
        "universenet50_2008s_fp16_4x4_mstrain_480_960_2x_coco",
        "universenet",
    ),
    "fasterrcnn_r50_fpn.tv_coco_v2": ("fasterrcnn_resnet50_fpn_v2", "torchvision"),
}
LOAD = """
import sys
from imported_models import digest
from sepc_zoo import create_model
print(digest(create_model(sys.argv[1], pretrained=True)))
"""


def published_state(reference, name):
    theirs, folder = MODELS[name]
    if folder == "torchvision":
        module = import_file(reference / folder / "repeatable_weights.py")
        return module.state_dict(theirs, SALT)
    module = repeatable_weights(reference, folder)
    return module.repeatable_state_dict(published_shapes(reference)[theirs], SALT)


@pytest.fixture
def publisher(tmp_path, monkeypatch, hub):  # noqa: ARG001
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "home"))
    with Publisher() as server:
        monkeypatch.setenv("SEPC_ZOO_MIRROR", server.address)
        yield server
    shutil.rmtree(tmp_path / "home")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_and_then_found_offline(name, publisher, shared_reference, monkeypatch):
    state = published_state(shared_reference, name)
    file, row = io.BytesIO(), PUBLISHED[name]
    is_bare = row.publisher == "torchvision"
    torch.save(state if is_bare else {"meta": {"epoch": 12}, "state_dict": state}, file)
    content = file.getvalue()
    row = row._replace(sha256=hashlib.sha256(content).hexdigest()[:8])
    monkeypatch.setitem(PUBLISHED, name, row)
    publisher.files[sources.file_name(row)] = content
    expected = digest(CONVERTERS[row.publisher](state, name))
    assert digest(create_model(name, pretrained=True)) == expected
    publisher.close()
    assert run_python("-c", LOAD, name, HF_HUB_OFFLINE="1").stdout.split() == [expected]
