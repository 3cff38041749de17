import json

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from sepc_zoo import hub
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.model_folder import misfits, save_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def model():
    return create_model("fsaf_r18_fpn", channels=16, stacked_convs=0, num_classes=2)


@pytest.fixture
def folder(model, tmp_path):
    return save_model(model, tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("the network was reached")

    monkeypatch.setattr(hub, "hf_hub_download", forbidden)


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


def test_the_card_says_what_the_hub_asks_for(folder):
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: sepc_zoo" in front
    assert "pipeline_tag: object-detection" in front
    assert "fsaf_r18_fpn" in card


def test_saving_makes_the_folders_it_needs(model, tmp_path):
    assert load_model(save_model(model, tmp_path / "a" / "b")).config == model.config


def test_saving_does_not_move_the_model(model, tmp_path):
    model = model.train()
    save_model(model, tmp_path)
    assert model.training
    model.eval()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_folder_without_one_of_its_files_is_no_model(folder, file):
    (folder / file).unlink()
    refused(folder, f"no model folder: it has no {file}")


@pytest.mark.usefixtures("no_network")
def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(HubError, match="nowhere is no model folder"):
        create_model(f"local-dir:{tmp_path}/nowhere")


def test_a_missing_tensor_is_named(folder):
    edit_state(folder, lambda state: state.pop("head.box.bias"))
    refused(folder, "missing: head.box.bias")


def test_a_tensor_left_over_is_named(folder):
    edit_state(folder, lambda state: state.update(extra=torch.zeros(1)))
    refused(folder, "left over: extra")


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    edit_state(folder, lambda state: state.update({"head.box.bias": torch.zeros(5)}))
    refused(folder, r"head.box.bias is \(5,\), not \(4,\)")


def test_a_long_list_of_misfits_is_cut(folder):
    edit_state(folder, lambda state: [state.pop(key) for key in list(state)[3:]])
    assert len(refused(folder, "and [0-9]+ more").splitlines()) == 22


def test_misfits_of_equal_states_are_none(model):
    assert misfits(model.state_dict(), model.state_dict()) == []


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


def test_a_config_of_a_newer_version_is_named(folder):
    content = json.loads((folder / CONFIG).read_text())
    content["model_args"]["telepathy"] = True
    (folder / CONFIG).write_text(json.dumps(content))
    refused(folder, "telepathy")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["fsaf_r18_sepc", "retinanet_r50_fpn", "fsaf_regnety_004_fpn"])
def test_weights_that_are_not_published_are_not_looked_for(name):
    with pytest.raises(HubError, match=rf"no weights of {name} are published.*list_models"):
        create_model(name, pretrained=True)


@pytest.mark.parametrize("name", ["fsaf_r50_sepc", "fsaf_r50_sepc.coco_1x"])
def test_published_weights_have_a_repository(name, folder, monkeypatch):
    asked = []

    def download(repo_id, file, **_kwargs):
        asked.append((repo_id, file))
        return str(folder / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert create_model(name, pretrained=True).config.num_classes == 2
    assert asked == [("sepc-zoo/fsaf_r50_sepc.coco_1x", file) for file in (CONFIG, WEIGHTS)]


def test_a_repository_is_asked_with_its_revision_and_the_users_options(folder, monkeypatch):
    asked = []

    def download(repo_id, file, **kwargs):
        asked.append((repo_id, kwargs))
        return str(folder / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    options = {"cache_dir": "/c", "revision": None, "token": "t", "local_files_only": True}
    create_model("hf-hub:org/name@v2", cache_dir="/c", token="t", local_files_only=True)
    assert asked[0] == ("org/name", options | {"revision": "v2"})
    load_model("org/name", cache_dir="/c", token="t", local_files_only=True)
    assert asked[-1] == ("org/name", options)


HUB_ERRORS = {
    "gated": (errors.GatedRepoError, "gated: ask for access"),
    "repository": (errors.RepositoryNotFoundError, "does not exist, is not published yet"),
    "revision": (errors.RevisionNotFoundError, "no such revision"),
    "http": (errors.HfHubHTTPError, "did not answer as expected"),
}


@pytest.mark.parametrize("kind", HUB_ERRORS)
def test_an_answer_of_the_hub_says_what_to_do(kind, monkeypatch):
    error, match = HUB_ERRORS[kind]

    def download(*_args, **_kwargs):
        raise error.__new__(error, "404")  # its constructor wants an answer of the hub

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(HubError, match=f"org/name at revision v2.*{match}"):
        create_model("hf-hub:org/name@v2")


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (errors.LocalEntryNotFoundError("x"), "not in the cache and the hub cannot be reached"),
        (errors.EntryNotFoundError("x"), "no model of this library"),
        (ConnectionError("cut"), "did not answer as expected: cut"),
    ],
)
def test_a_failed_download_says_what_to_do(error, match, monkeypatch):
    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(HubError, match=match):
        create_model("hf-hub:org/name")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:org/na me", "hf-hub:-x/y"])
def test_a_name_of_no_repository_is_refused_without_asking(name):
    with pytest.raises(HubError, match="expected org/name"):
        create_model(name)


def test_offline_without_a_cache_says_so(tmp_path):
    with pytest.raises(HubError, match="not in the cache"):
        create_model("hf-hub:org/name", cache_dir=tmp_path, local_files_only=True)


def test_every_file_of_a_model_folder_has_the_usual_permissions(folder):
    (folder / "plain").touch()
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
