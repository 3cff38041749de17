import hashlib
import json

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from sepc_zoo.checkpoints import hub
from sepc_zoo.checkpoints.folder import misfits, save_model
from sepc_zoo.checkpoints.hub import push_folder
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def model():
    return create_model("fsaf_r18_fpn", channels=16, head={"convs": 0}, num_classes=2)


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
    "minutes of building": ("resnet18", {"layers": [16384] * 4}, "more than 5000 modules"),
    "terabytes beside the weights": ("coatnet_0_rw_224", {"img_size": 8192}, "bytes of tables"),
    "layers of nothing": ("convnext_atto", {"dims": [0] * 4}, "groups must be a positive"),
    "arguments of ours": ("resnet18", {"self": 1, "name": 2}, "self.* are no model's"),
    "a list for a number": ("mobilenetv2_100", {"bn_eps": []}, "not supported between"),
    "no such model": ("resnet19", {}, "Unknown model"),
}


@pytest.mark.parametrize("case", ABSURD_BACKBONES)
def test_an_absurd_backbone_is_refused_by_the_name_of_the_file(folder, case):
    backbone, kwargs, match = ABSURD_BACKBONES[case]
    content = json.loads((folder / CONFIG).read_text())
    content["model_args"] |= {"backbone": {"name": backbone, "kwargs": kwargs}}
    (folder / CONFIG).write_text(json.dumps(content))
    refused(folder, f"{CONFIG} is no config of a model: .*{match}")


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


def test_a_config_of_a_newer_version_says_to_upgrade(folder):
    content = json.loads((folder / CONFIG).read_text())
    content["model_args"]["telepathy"] = True
    (folder / CONFIG).write_text(json.dumps(content))
    refused(folder, "newer version.*telepathy.*pip install -U")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["fsaf_r18_sepc", "retinanet_r50_fpn", "fsaf_regnety_004_fpn"])
def test_weights_that_are_not_published_are_not_looked_for(name):
    with pytest.raises(HubError, match=rf"no weights of {name} are published.*list_models"):
        create_model(name, pretrained=True)


class Answer:
    """What the hub's client raises and shows of an answer."""

    def __init__(self, status_code):
        self.status_code = status_code


def refusal(kind, status_code=404):
    error = kind.__new__(kind, "refused")  # its constructor wants a whole answer
    error.response = Answer(status_code)
    return error


@pytest.fixture
def answering(folder, monkeypatch, tmp_path):
    """A hub that has the model; what it is asked for, and where it says no."""
    asked, refusals = [], {}
    cache = tmp_path / "snapshots" / "abc"
    cache.mkdir(parents=True)
    for file in folder.glob("*.*"):
        (cache / file.name).write_bytes(file.read_bytes())

    def tell(_url, **_):
        if "tell" in refusals:
            raise refusals["tell"]

    def download(repo_id, file, **options):
        asked.append((repo_id, file, options))
        if "download" in refusals or options["local_files_only"]:
            raise refusals.get("download", errors.LocalEntryNotFoundError("x"))
        return str(cache / file)

    monkeypatch.setattr(hub, "get_hf_file_metadata", tell)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "list_files", lambda _: refusals.get("files", []))
    monkeypatch.setattr(hub, "revisions", lambda _: "there are main")
    return asked, refusals


@pytest.mark.parametrize("name", ["fsaf_r50_sepc", "fsaf_r50_sepc.coco_1x"])
def test_published_weights_have_a_repository(name, answering):
    asked, _ = answering
    assert create_model(name, pretrained=True).config.num_classes == 2
    repositories = [(repo_id, file) for repo_id, file, _ in asked]
    assert repositories == [("sepc-zoo/fsaf_r50_sepc.coco_1x", file) for file in (CONFIG, WEIGHTS)]


def test_another_organisation_can_be_asked(answering, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_HUB_ORG", "mine")
    create_model("fsaf_r50_sepc", pretrained=True)
    assert answering[0][0][0] == "mine/fsaf_r50_sepc.coco_1x"


def test_a_repository_is_asked_with_its_revision_and_the_users_options(answering):
    asked, _ = answering
    create_model("hf-hub:org/name@v2", cache_dir="/c", token="t")
    options = {"cache_dir": "/c", "token": "t", "local_files_only": False}
    assert asked == [
        ("org/name", CONFIG, options | {"revision": "v2"}),
        ("org/name", WEIGHTS, options | {"revision": "abc"}),  # the commit of the config
    ]


def test_imported_weights_are_found_without_the_hub(model, monkeypatch, tmp_path):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "get_hf_file_metadata", None)
    save_model(model, tmp_path / "fsaf_r50_sepc.coco_1x")
    assert create_model("fsaf_r50_sepc", pretrained=True).config == model.config


REFUSALS = {
    "gated": (refusal(errors.GatedRepoError, 403), "org/name is gated: ask for access"),
    "unknown": (refusal(errors.RepositoryNotFoundError), "does not exist, or your token may not"),
    "private": (
        refusal(errors.RepositoryNotFoundError, 401),
        "is private and you are not logged in",
    ),
    "revision": (refusal(errors.RevisionNotFoundError), "no revision 'v2': there are main"),
    "file": (refusal(errors.RemoteEntryNotFoundError), f"at revision v2 has no {CONFIG}"),
    "wrong token": (refusal(errors.HfHubHTTPError, 401), "the token is not valid, log in again"),
    "disabled": (refusal(errors.HfHubHTTPError, 403), "lets nobody with this token have it"),
    "server": (refusal(errors.HfHubHTTPError, 500), "answered with error 500: try again later"),
    "network": (ConnectionError("cut"), r"cannot be reached \(cut\): load it once online"),
    "offline": (errors.OfflineModeIsEnabled("x"), "the hub was not to be asked"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_answer_of_the_hub_says_what_to_do(case, answering):
    error, match = REFUSALS[case]
    answering[1]["tell"] = error
    with pytest.raises(HubError, match=match) as caught:
        create_model("hf-hub:org/name@v2")
    assert "org/name" in str(caught.value)


def test_a_repository_with_only_a_pickle_says_how_to_convert_it(answering):
    answering[1].update(tell=refusal(errors.RemoteEntryNotFoundError), files=["a.pth", "b.txt"])
    with pytest.raises(HubError, match=r"but a\.pth: a pickle may run code.*sepc-zoo convert"):
        create_model("hf-hub:org/name")


def test_a_download_that_is_cut_says_so(answering):
    answering[1]["download"] = OSError("Consistency check failed")
    with pytest.raises(HubError, match="did not arrive whole: Consistency check failed"):
        create_model("hf-hub:org/name")


def test_published_weights_that_are_nowhere_can_be_imported(answering, monkeypatch, tmp_path):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "none"))
    answering[1]["tell"] = refusal(errors.RepositoryNotFoundError)
    match = "neither on the hub .* nor imported here .*sepc-zoo import fsaf_r50_sepc"
    with pytest.raises(HubError, match=match):
        create_model("fsaf_r50_sepc", pretrained=True)


def test_a_file_that_was_altered_in_the_cache_is_refused(tmp_path):
    content = b"config"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / digest).write_bytes(content)
    hub.check_hash(tmp_path / digest, hub.Request("org/name"))
    (tmp_path / digest).write_bytes(b"Config")
    with pytest.raises(HubError, match="not what the hub has"):
        hub.check_hash(tmp_path / digest, hub.Request("org/name"))


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


UPLOAD_FAULTS = {
    "too large": ("*", "PUT", {"status": 413}, "413"),
    "storage forbids": ("*", "PUT", {"status": 403}, "not yours to write to"),
    "cut while uploading": ("*", "PUT", {"hang_up": True}, "answer did not come"),
    "storage in trouble": ("*", "PUT", {"status": 500}, "500"),
    "no plan": ("*/objects/batch", "POST", {"status": 500}, "500"),
    "commit fails": ("*/commit/*", "POST", {"status": 500}, "500"),
    "commit cut": ("*/commit/*", "POST", {"hang_up": True}, "answer did not come"),
    "no repository": ("*/create", "POST", {"status": 429}, "429"),
    "nonsense": ("*/objects/batch", "POST", {"truncate": 5}, "answer did not come"),
}


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("case", UPLOAD_FAULTS)
def test_a_push_that_fails_says_why_and_leaves_nothing_behind(case, hub, folder):
    path, method, fault, match = UPLOAD_FAULTS[case]
    token = hub.add_user("alice", organizations=["zoo"])
    repository = hub.add_repository("zoo/cells", {"README.md": b"as it was"})
    hub.misbehave(path, method=method, **fault)
    with pytest.raises(HubError, match=match) as caught:
        push_folder(folder, "zoo/cells", token=token)
    assert "zoo/cells" in str(caught.value)
    assert repository.contents() == {"README.md": b"as it was"}


def test_a_push_whose_answer_is_lost_does_not_say_that_nothing_was_committed(hub, folder):
    token = hub.add_user("alice", organizations=["zoo"])
    hub.misbehave("*/commit/*", method="POST", truncate=0)
    with pytest.raises(HubError, match=r"look at .* whether it has the files"):
        push_folder(folder, "zoo/cells", token=token)
    assert "config.json" in hub.repository("zoo/cells").contents()


def test_an_unreachable_hub_is_not_said_to_lack_published_weights(answering, monkeypatch, tmp_path):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "none"))
    answering[1]["tell"] = refusal(errors.HfHubHTTPError, 500)
    with pytest.raises(HubError, match="error 500: try again later; or `sepc-zoo import") as caught:
        create_model("fsaf_r50_sepc", pretrained=True)
    assert "neither on the hub" not in str(caught.value)
