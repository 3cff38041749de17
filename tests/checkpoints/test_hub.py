"""Models go to a hub and come from it, over HTTP, by the real client."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_cases import tiny_model
from hub_server import client_environment, forget_connections
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from sepc_zoo import HubError, create_model, load_model, push_to_hub
from sepc_zoo.checkpoints import hub as our_hub
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli import main
from sepc_zoo.files import write_json
from sepc_zoo.registry import NECKS

METRICS = {"AP": 0.31, "AP50": 0.52, "AP75": 0.3, "APs": -1.0, "per_class": {}}
IN_NEW_PROCESS = """
import sys, torch
from sepc_zoo import load_model
model = load_model(sys.argv[1])
with torch.no_grad():
    torch.save(tuple(model(torch.load(sys.argv[2])))[:2], sys.argv[3])
"""


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def token(hub):
    return hub.add_user("alice", organizations=["zoo"])


@pytest.fixture
def pushed(hub, token, model):
    push_to_hub(model, "zoo/cells", token=token, metrics=METRICS, dataset="cells")
    return hub.repository("zoo/cells")


def images():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def outputs(model):
    with torch.no_grad():
        predictions = model(images())
    return predictions.logits, predictions.deltas


def assert_same_model(model, other):
    assert other.config == model.config
    for ours, theirs in zip(outputs(model), outputs(other), strict=True):
        assert torch.equal(ours, theirs)


def refused(source, match, **kwargs):
    with pytest.raises(HubError, match=match):
        create_model(source, **kwargs)


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("method", ["retinanet", "freeanchor", "fsaf"])
def test_every_method_and_neck_comes_back_as_it_went(method, neck, hub, token):
    model = create_model(f"{method}_test_efficientnet_{neck}", channels=8, num_classes=3)
    assert "/commit/" in push_to_hub(model, "zoo/model", token=token)
    assert_same_model(model, create_model("hf-hub:zoo/model"))
    assert len(hub.repository("zoo/model").commits) == 2  # the hub's own first one, and ours


@pytest.mark.slow
def test_a_new_process_gets_the_same_model(hub, pushed, model, tmp_path):
    torch.save(images(), tmp_path / "in.pt")
    files = (tmp_path / "in.pt", tmp_path / "out.pt")
    command = [sys.executable, "-c", IN_NEW_PROCESS, f"hf-hub:{pushed.id}", *map(str, files)]
    environment = client_environment(hub, tmp_path / "home")
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run(command, check=True, env=environment, timeout=120)
    for ours, theirs in zip(outputs(model), torch.load(files[1]), strict=True):
        assert torch.equal(ours, theirs)


def test_branches_tags_and_commits_can_be_asked_for(token, model, pushed):
    first = HfApi(token=token).model_info(pushed.id).sha
    HfApi(token=token).create_tag(pushed.id, tag="v1")
    other = tiny_model()
    push_to_hub(other, pushed.id, revision="dev", token=token)
    push_to_hub(other, pushed.id, token=token)
    for revision in ("v1", first):
        assert_same_model(model, create_model(f"hf-hub:{pushed.id}@{revision}"))
        assert_same_model(model, load_model(pushed.id, revision=revision))
    for revision in ("dev", "main"):
        assert_same_model(other, create_model(f"hf-hub:{pushed.id}@{revision}"))


def test_a_pull_request_leaves_the_repository_as_it_was(token, model, pushed):
    other = tiny_model()
    address = push_to_hub(other, pushed.id, create_pr=True, token=token)
    assert "/discussions/1" in address
    assert_same_model(model, create_model(f"hf-hub:{pushed.id}"))
    assert_same_model(other, create_model(f"hf-hub:{pushed.id}@refs/pr/1"))


def test_a_private_model_needs_a_token(token, model):
    push_to_hub(model, "zoo/secret", private=True, token=token)
    assert_same_model(model, create_model("hf-hub:zoo/secret", token=token))
    refused("hf-hub:zoo/secret", "or is private and you are not logged in", token=False)


def test_what_is_in_the_cache_needs_no_hub(hub, model, pushed):
    create_model(f"hf-hub:{pushed.id}")
    hub.close()
    for options in ({}, {"local_files_only": True}):
        assert_same_model(model, create_model(f"hf-hub:{pushed.id}", **options))


def test_offline_mode_asks_nobody(hub, model, pushed, monkeypatch):
    create_model(f"hf-hub:{pushed.id}")
    before = len(hub.seen())
    refused("hf-hub:zoo/other", "local_files_only or HF_HUB_OFFLINE", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_connections()  # some versions read the mode only for new ones
    assert_same_model(model, create_model(f"hf-hub:{pushed.id}"))
    refused("hf-hub:zoo/other", "local_files_only or HF_HUB_OFFLINE")
    assert len(hub.seen()) == before


@pytest.fixture
def hashed(monkeypatch):
    """The weights files that are hashed."""
    files = []
    sha = our_hub.sha_fileobj
    monkeypatch.setattr(our_hub, "sha_fileobj", lambda file: (files.append(file), sha(file))[1])
    return files


def weights_in_cache():
    return next(Path(constants.HF_HUB_CACHE).glob("**/snapshots/*/model.safetensors")).resolve()


def test_weights_are_hashed_once(model, pushed, hashed):
    for _ in range(3):
        assert_same_model(model, create_model(f"hf-hub:{pushed.id}"))
    assert len(hashed) == 1


def test_weights_whose_time_is_new_are_hashed_again(model, pushed, hashed):
    create_model(f"hf-hub:{pushed.id}")
    os.utime(weights_in_cache(), (0, 0))
    for _ in range(2):
        assert_same_model(model, create_model(f"hf-hub:{pushed.id}", local_files_only=True))
    assert len(hashed) == 2


def test_a_damaged_file_is_downloaded_again_at_the_next_try(hub, model, pushed):
    hub.misbehave("*/model.safetensors", method="GET", wrong_bytes=True, times=1)
    refused(f"hf-hub:{pushed.id}", "is damaged")
    assert_same_model(model, create_model(f"hf-hub:{pushed.id}"))


def test_a_cache_that_takes_no_markers_is_hashed_each_time(model, pushed, hashed, monkeypatch):
    def forbid(*_):
        raise PermissionError

    monkeypatch.setattr(our_hub, "write_atomically", forbid)
    for _ in range(2):
        assert_same_model(model, create_model(f"hf-hub:{pushed.id}"))
    assert len(hashed) == 2


def test_a_cache_of_ones_own(model, pushed, tmp_path):
    own = {"cache_dir": tmp_path / "own"}
    assert_same_model(model, create_model(f"hf-hub:{pushed.id}", **own))
    assert [path.name for path in own["cache_dir"].glob("models--*")] == ["models--zoo--cells"]
    assert_same_model(model, create_model(f"hf-hub:{pushed.id}", **own, local_files_only=True))
    refused(f"hf-hub:{pushed.id}", "is not in the cache", local_files_only=True)


def test_a_token_that_is_given_goes_with_every_request(hub, token, pushed):
    hub.requests.clear()
    create_model(f"hf-hub:{pushed.id}", token=token)
    assert {request.token for request in hub.seen("*", "*/resolve/*")} == {token}


def test_a_token_of_the_environment_is_used_unless_told_otherwise(hub, token, pushed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    for option, expected in ({}, {token}), ({"token": False}, {None}):
        hub.requests.clear()
        create_model(f"hf-hub:{pushed.id}", **option)
        assert {request.token for request in hub.seen("*", "*/resolve/*")} == expected


def test_progress_is_shown_unless_it_is_switched_off(pushed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # as on a terminal
    create_model(f"hf-hub:{pushed.id}", cache_dir=tmp_path / "shown")
    assert re.search(r"safetensors\S*: +100%", capsys.readouterr().err)
    disable_progress_bars()
    try:
        create_model(f"hf-hub:{pushed.id}", cache_dir=tmp_path / "hidden")
    finally:
        enable_progress_bars()
    assert capsys.readouterr().err == ""


def test_published_weights_come_from_the_organisation(token, model, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path))
    monkeypatch.setenv("SEPC_ZOO_HUB_ORG", "zoo")
    repo_id = "zoo/fsaf_r50_sepc.coco_1x"
    push_to_hub(model, repo_id, token=token)
    HfApi(token=token).create_tag(repo_id, tag="v1")
    assert_same_model(model, create_model("fsaf_r50_sepc", pretrained=True))
    other = tiny_model()
    save_model(other, tmp_path / "fsaf_r50_sepc.coco_1x")  # as an import does
    assert_same_model(other, create_model("fsaf_r50_sepc", pretrained=True))
    assert_same_model(model, create_model("fsaf_r50_sepc", pretrained=True, revision="v1"))


def test_the_card_has_our_metrics_and_tells_how_to_load(pushed):
    text = pushed.contents()["README.md"].decode()
    card = ModelCard(text).data
    assert (card.library_name, card.pipeline_tag) == ("sepc_zoo", "object-detection")
    metrics = {result.metric_type: result.metric_value for result in card.eval_results}
    assert metrics == {"ap": 0.31, "ap50": 0.52, "ap75": 0.3}
    assert 'create_model("hf-hub:zoo/cells")' in text


def test_a_config_that_is_wrong_keeps_the_weights_from_being_fetched(hub, pushed):
    content = json.loads(pushed.contents()["config.json"]) | {"num_classes": 10**9}
    wrong = {"config.json": json.dumps(content).encode()}
    hub.add_repository("zoo/absurd", pushed.contents() | wrong)
    refused("hf-hub:zoo/absurd", "num_classes")
    assert hub.bytes_served("zoo/absurd/model.safetensors") == 0


def test_info_of_a_model_on_the_hub_downloads_no_weights(hub, pushed, capsys):
    assert main(["info", f"hf-hub:{pushed.id}"]) == 0
    out = capsys.readouterr().out
    assert "retinanet_test_efficientnet_pconv" in out
    assert "missing" not in out
    assert hub.bytes_served(f"{pushed.id}/model.safetensors") == 0


def test_the_commands_push_and_publish(hub, token, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    for name, ap in (("first", 0.2), ("second", 0.4)):
        folder = save_model(model, tmp_path / name / "best", metrics=METRICS | {"AP": ap})
        write_json(folder / "metrics.json", METRICS | {"AP": ap})
    assert main(["push", str(tmp_path / "first" / "best"), "zoo/pushed"]) == 0
    assert "hf-hub:zoo/pushed" in capsys.readouterr().out
    assert_same_model(model, create_model("hf-hub:zoo/pushed"))
    folders = [str(tmp_path / name / "best") for name in ("first", "second")]
    assert main(["publish", *folders, "--org", "zoo"]) == 0
    page = hub.repository("zoo/README", "space").contents()["README.md"].decode()
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0] for row in rows] == ["| [second", "| [first"]
    assert_same_model(model, create_model("hf-hub:zoo/second"))


def test_a_license_goes_into_the_card_and_changes_nothing_else(
    hub, token, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    folder = str(save_model(model, tmp_path, metrics=METRICS))
    assert main(["push", folder, "zoo/plain"]) == 0
    assert main(["push", folder, "zoo/plain", "--revision", "mit", "--license", "mit"]) == 0
    plain, licensed = (
        ModelCard(hub.repository("zoo/plain").contents(revision)["README.md"].decode())
        for revision in ("main", "mit")
    )
    assert licensed.text.strip() == plain.text.strip()
    assert licensed.data.to_dict() == plain.data.to_dict() | {"license": "mit"}


def test_pushing_no_model_folder_is_refused(hub, tmp_path, capsys):
    assert main(["push", str(tmp_path), "zoo/nothing"]) == 2
    assert "is no model folder" in capsys.readouterr().err
    assert not hub.seen("POST", "*")
