import json

import pytest
import torch
from authors_checkpoints import their_name, their_state
from made_up_models import same_tensors

from sepc_zoo.checkpoints.convert.openmmlab import renames
from sepc_zoo.checkpoints.convert.pickles import CheckpointError
from sepc_zoo.checkpoints.convert.sepc_authors import BOX_CHANNELS, from_authors
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.factory import create_model
from sepc_zoo.models.build import build
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import UnknownModelError, authors_config

NAME = "fsaf_test_efficientnet_sepc"
SEPC_NAMES = [row.name for row in PUBLISHED.values() if row.publisher == "sepc"]
pytestmark = pytest.mark.usefixtures("tiny_rows")


@pytest.fixture(scope="module")
def state(tiny_rows):  # noqa: ARG001
    return their_state(NAME)


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
    ours = from_authors(state, NAME).head.box
    for name in ("weight", "bias"):
        theirs = state[f"bbox_head.retina_reg.{name}"]
        for here, there in enumerate([1, 0, 2, 3]):
            assert torch.equal(getattr(ours, name)[here], theirs[there])
    assert list(BOX_CHANNELS) == ["fsaf"]


def test_both_conventions_of_the_authors_stay_in_the_config(state):
    config = from_authors(state, NAME).config
    assert config.neck.padding == 0
    assert config.inclusive_boxes
    assert not config.weights.antialias
    assert config == authors_config(NAME)


def test_the_model_comes_in_eval_mode(state):
    assert not any(module.training for module in from_authors(state, NAME).modules())


def test_the_callers_state_is_left_alone(state):
    before = dict(state)
    from_authors(state, NAME)
    assert list(state) == list(before)
    assert all(state[key] is before[key] for key in state)


def test_a_converted_folder_builds_the_model_again_bit_for_bit(state, tmp_path):
    model = from_authors(state, "fsaf_test_efficientnet_sepc.coco_1x")
    again = create_model(f"local-dir:{save_model(model, tmp_path)}")
    assert again.config == model.config
    assert same_tensors(model, again)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_args"]["neck"]["padding"] == 0
    assert content["model_args"]["inclusive_boxes"] is True


def test_a_prefix_of_parallel_training_is_dropped(state):
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert same_tensors(*(from_authors(s, NAME) for s in (state, wrapped)))


def test_tensors_that_do_not_fit_are_named_as_ours(state):
    wrong = state | {"bbox_head.retina_cls.bias": torch.zeros(20), "momentum": torch.zeros(1)}
    del wrong["neck.1.cconv.conv_offset.bias"]
    with pytest.raises(CheckpointError) as caught:
        from_authors(wrong, NAME)
    assert str(caught.value).splitlines()[1:] == [
        "  head.cls.bias is (20,), not (80,)",
        "  missing: neck.cls_branch.conv.offset.bias",
        "  left over: momentum",
    ]


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
