import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepc_zoo.checkpoints.folder import misfits, save_model
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def model():
    return create_model("fsaf_test_efficientnet_fpn", channels=8, head={"convs": 0}, num_classes=2)


@pytest.fixture
def folder(model, tmp_path):
    return save_model(model, tmp_path)


def edit_state(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def refused(folder, match):
    with pytest.raises(HubError, match=match) as error:
        load_model(folder)
    return str(error.value)


def test_a_folder_has_config_weights_and_card(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_saving_makes_the_folders_it_needs(model, tmp_path):
    assert load_model(save_model(model, tmp_path / "a" / "b")).config == model.config


def test_a_backbone_with_computed_tables_comes_back_as_it_went(tmp_path):
    sizes = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    model = create_model("fsaf_swin_tiny_fpn", backbone_kwargs=sizes, channels=8, num_classes=2)
    again = load_model(save_model(model, tmp_path))
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)


def test_a_loaded_model_knows_which_parameters_learn_and_how_its_backbone_pads(model, folder):
    again = load_model(folder)
    assert again.backbone.rounds_up == model.backbone.rounds_up is True
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())


def test_saving_does_not_move_the_model(model, tmp_path):
    model = model.train()
    save_model(model, tmp_path)
    assert model.training
    model.eval()


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_folder_without_one_of_its_files_is_no_model(folder, file):
    (folder / file).unlink()
    refused(folder, f"no model folder: it has no {file}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(HubError, match="nowhere is no model folder"):
        create_model(f"local-dir:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("head.box.bias"), "missing: head.box.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "left over: extra"),
        (
            lambda state: state.update({"head.box.bias": torch.zeros(5)}),
            r"head.box.bias is \(5,\), not \(4,\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, named, folder):
    edit_state(folder, change)
    refused(folder, named)


def spoil(value):
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([3]), value).view_as(tensor)


IMPOSSIBLE = {
    "integers": (lambda tensor: tensor.to(torch.int32), "of type int"),
    "bytes": (lambda tensor: tensor.to(torch.uint8), "of type int"),
    "truths": (lambda tensor: tensor > 0, "of type bool"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "of type complex"),
    "all NaN": (lambda tensor: torch.full_like(tensor, torch.nan), "NaN or infinite"),
    "all infinite": (lambda tensor: torch.full_like(tensor, -torch.inf), "NaN or infinite"),
    "one NaN": (spoil(torch.nan), "NaN or infinite"),
    "one infinite half": (lambda tensor: spoil(torch.inf)(tensor.half()), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_weights_that_cannot_be_right_are_refused_wherever_they_come_from(kind, folder, model):
    change, expected = IMPOSSIBLE[kind]
    key = "head.cls.weight"
    edit_state(folder, lambda state: state.update({key: change(state[key])}))
    refused(folder, f"{key} has values .*{expected}")
    state = {key: change(model.state_dict()[key])}
    assert len(misfits(state, {key: model.state_dict()[key]})) == 1  # what converters ask


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_taken(kind, folder):
    key = "head.cls.weight"
    edit_state(folder, lambda state: state.update({key: state[key].to(kind)}))
    assert load_model(folder).state_dict()[key].dtype == torch.float32


def test_a_long_list_of_misfits_is_cut(folder):
    edit_state(folder, lambda state: [state.pop(key) for key in list(state)[3:]])
    assert len(refused(folder, "and [0-9]+ more").splitlines()) == 22


def test_the_name_of_a_tensor_left_over_is_shown_without_codes_for_the_terminal(folder):
    edit_state(folder, lambda state: state.update({"\x1b[2J\n" + "x" * 9999: torch.zeros(1)}))
    text = refused(folder, r"left over: \\x1b\[2J\\nxxx")
    assert len(text) < 1000


IMPOSSIBLE_SHAPES = ([0, 2**63], [0, 2**64 - 1], [0, 2**62, 2**62])


@pytest.mark.parametrize("shape", IMPOSSIBLE_SHAPES)
def test_an_empty_tensor_of_impossible_sides_is_refused(folder, shape):
    header = {"head.box.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    write_header(folder, json.dumps(header))
    refused(folder, "impossible shape")


def test_a_file_of_very_many_tensors_is_refused(folder):
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    write_header(folder, "{" + ",".join(f'"{i}":{entry}' for i in range(30_000)) + "}")
    refused(folder, "has 30000 tensors, 20000 at most")


def write_header(folder, header):
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header.encode())


def test_a_config_of_gigabytes_is_not_read(folder):
    with (folder / CONFIG).open("wb") as file:
        file.truncate(2**40)
    refused(folder, f"{CONFIG} is no config of a model: it has more than")


# Of a backbone: each passes the checks of a config, and timm would build it or fail in its own way.
ABSURD_BACKBONES = {
    "minutes of building": ("resnet18", {"layers": [16384] * 4}, "too many layers"),
    "terabytes beside the weights": ("coatnet_0_rw_224", {"img_size": 8192}, "bytes of tables"),
    "layers of nothing": ("convnext_atto", {"dims": [0] * 4}, "groups must be a positive"),
    "arguments of ours": ("resnet18", {"self": 1, "name": 2}, "self.* select weights, not a model"),
    "a list for a number": ("test_efficientnet", {"bn_eps": []}, "fails on an image"),
    "no such model": ("resnet19", {}, "Unknown model"),
}


@pytest.mark.parametrize("case", ABSURD_BACKBONES)
def test_an_absurd_backbone_is_refused_by_the_name_of_the_file(folder, case):
    backbone, kwargs, match = ABSURD_BACKBONES[case]
    content = json.loads((folder / CONFIG).read_text())
    content["model_args"] |= {"backbone": {"name": backbone, "kwargs": kwargs}}
    (folder / CONFIG).write_text(json.dumps(content))
    refused(folder, f"{CONFIG} is no config of a model: .*{match}")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_damaged(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    refused(folder, "cannot be read as safetensors")


def test_a_pickle_is_no_safetensors(folder, model):
    torch.save(model.state_dict(), folder / WEIGHTS)
    refused(folder, "cannot be read as safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"architecture": 5}',
        "[" * 100_000,
        "{" + f'"num_classes": {"9" * 5000}' + "}",
        "\udcff",
    ],
    ids=["empty", "cut", "list", "null", "type", "deep", "huge number", "no utf-8"],
)
def test_a_broken_config_is_named(folder, text):
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, f"{CONFIG} is no config of a model")


def test_a_config_of_a_newer_version_says_to_upgrade(folder):
    content = json.loads((folder / CONFIG).read_text())
    content["model_args"]["telepathy"] = True
    (folder / CONFIG).write_text(json.dumps(content))
    refused(folder, "newer version.*telepathy.*pip install -U")


def test_every_file_of_a_model_folder_has_the_usual_permissions(folder):
    (folder / "plain").touch()
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
