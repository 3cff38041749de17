import json
import os
import pickle

import pytest
import torch
from authors_checkpoints import META, their_name, their_state

from sepc_zoo.checkpoints.convert.openmmlab import renames
from sepc_zoo.checkpoints.convert.pickles import CheckpointError, read_state_dict
from sepc_zoo.checkpoints.convert.sepc_authors import BOX_CHANNELS, from_authors
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.factory import create_model
from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import UnknownModelError, authors_config

SEPC_NAMES = [row.name for row in PUBLISHED.values() if row.publisher == "sepc"]
pytestmark = pytest.mark.usefixtures("tiny_rows")


@pytest.fixture(scope="module")
def state(tiny_rows):  # noqa: ARG001
    return their_state("fsaf_test_efficientnet_sepc")


@pytest.mark.parametrize("name", SEPC_NAMES)
def test_names_of_every_published_model_go_there_and_back(name):
    with torch.device("meta"):
        keys = list(build(authors_config(name)).state_dict())
    assert list(renames(map(their_name, keys)).values()) == keys
    assert len({their_name(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "name",
    [
        "fsaf_test_efficientnet_sepc",
        "fsaf_test_efficientnet_fpn",
        "retinanet_test_efficientnet_sepc_lite",
    ],
)
def test_every_tensor_arrives_where_it_belongs(name):
    state = their_state(name)
    model = from_authors(state, name)
    ours = model.state_dict()
    assert len(ours) == len(state)
    for key, value in ours.items():
        theirs = their_name(key)
        if name.endswith("_fpn"):
            theirs = theirs.replace("neck.0.", "neck.")
        if not (key.startswith("head.box.") and name.startswith("fsaf")):
            assert torch.equal(value, state[theirs]), key


def test_only_fsaf_changes_the_order_of_its_box_channels(state):
    """Bottom, top, left, right there; top, bottom, left, right here."""
    ours = from_authors(state, "fsaf_test_efficientnet_sepc").head.box
    for name in ("weight", "bias"):
        theirs = state[f"bbox_head.retina_reg.{name}"]
        for here, there in enumerate([1, 0, 2, 3]):
            assert torch.equal(getattr(ours, name)[here], theirs[there])
    assert list(BOX_CHANNELS) == ["fsaf"]


def test_both_conventions_of_the_authors_stay_in_the_config(state):
    config = from_authors(state, "fsaf_test_efficientnet_sepc").config
    assert config.neck.padding == 0
    assert config.inclusive_boxes
    assert not config.weights.antialias
    assert config == authors_config("fsaf_test_efficientnet_sepc")


def test_the_model_comes_in_eval_mode(state):
    assert not any(
        module.training for module in from_authors(state, "fsaf_test_efficientnet_sepc").modules()
    )


def test_the_callers_state_is_left_alone(state):
    before = dict(state)
    from_authors(state, "fsaf_test_efficientnet_sepc")
    assert list(state) == list(before)
    assert all(state[key] is before[key] for key in state)


def test_a_converted_folder_builds_the_model_again_bit_for_bit(state, tmp_path):
    model = from_authors(state, "fsaf_test_efficientnet_sepc.coco_1x")
    again = create_model(f"local-dir:{save_model(model, tmp_path)}")
    assert again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_args"]["neck"]["padding"] == 0
    assert content["model_args"]["inclusive_boxes"] is True


def test_a_prefix_of_parallel_training_is_dropped(state):
    wrapped = {f"module.{key}": value for key, value in state.items()}
    ours, theirs = (
        from_authors(s, "fsaf_test_efficientnet_sepc").state_dict() for s in (state, wrapped)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_missing_tensor_is_named_as_ours(state):
    state = {k: v for k, v in state.items() if k != "neck.1.cconv.conv_offset.bias"}
    with pytest.raises(CheckpointError, match=r"missing: neck.cls_branch.conv.offset.bias"):
        from_authors(state, "fsaf_test_efficientnet_sepc")


def test_a_tensor_left_over_is_named(state):
    with pytest.raises(CheckpointError, match="left over: momentum"):
        from_authors(state | {"momentum": torch.zeros(1)}, "fsaf_test_efficientnet_sepc")


def test_a_misshapen_tensor_is_named_with_both_shapes(state):
    wrong = state | {"bbox_head.retina_cls.bias": torch.zeros(20)}
    with pytest.raises(CheckpointError, match=r"head.cls.bias is \(20,\), not \(80,\)"):
        from_authors(wrong, "fsaf_test_efficientnet_sepc")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("fsaf_test_efficientnet_sepc_lite", "left over: neck.pconvs.0.from_coarser.offset"),
        ("fsaf_test_efficientnet_pconv", "left over: neck.pconvs.0.norm"),
        ("fsaf_test_efficientnet_fpn", "missing: head.cls_tower.0.weight"),
        ("retinanet_test_efficientnet_sepc", r"head.cls.weight is \(80, 8, 3, 3\), not \(720,"),
    ],
)
def test_a_checkpoint_of_another_variant_is_refused_by_its_tensors(state, name, tensor):
    with pytest.raises(CheckpointError, match=rf"no checkpoint of {name}:(.|\n)*{tensor}"):
        from_authors(state, name)


@pytest.mark.parametrize(
    "name", ["fsaf_r18_sepc", "retinanet_r50_fpn", "fsaf_test_efficientnet_sepc.other"]
)
def test_only_published_models_are_converted(name):
    with pytest.raises(UnknownModelError):
        from_authors({}, name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_an_mmcv_checkpoint_is_read_with_its_meta(zipped, tmp_path):
    weights = {"backbone.conv1.weight": torch.rand(2, 3)}
    content = {"meta": META, "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    state = read_state_dict(tmp_path / "x.pth")
    assert list(state) == list(weights)
    assert torch.equal(state["backbone.conv1.weight"], weights["backbone.conv1.weight"])


def test_a_bare_state_dict_is_read(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    assert list(read_state_dict(tmp_path / "x.pth")) == ["a"]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_checkpoint_does_not_run(zipped, tmp_path):
    content = {"meta": Evil(tmp_path / "ran"), "state_dict": {"a": torch.ones(1)}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"x.pth: not a checkpoint that is safe to read"):
        read_state_dict(tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"y.pth"):
        read_state_dict(tmp_path / "y.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [[], 5, torch.ones(2), {"state_dict": [1]}, {"state_dict": {"a": 1}}, {"a": "b"}]
)
def test_a_file_without_tensors_by_name_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth: has no state_dict of tensors"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_truncated_checkpoint_is_refused(zipped, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for keep in [*range(0, 400, 7), len(data) // 2, len(data) - 10]:
        path.write_bytes(data[:keep])
        with pytest.raises(CheckpointError, match=r"x.pth"):
            read_state_dict(path)


def test_noise_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    generator = torch.Generator().manual_seed(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}", b"\x80\x02ccopy_reg\n"):
        for _ in range(20):
            noise = torch.randint(0, 256, (300,), generator=generator, dtype=torch.uint8)
            path.write_bytes(start + bytes(noise.tolist()))
            with pytest.raises(CheckpointError, match=r"x.pth"):
                read_state_dict(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            read_state_dict(path)
