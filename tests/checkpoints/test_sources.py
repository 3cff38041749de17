import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from authors_checkpoints import their_state
from drive_server import LOGIN, QUOTA, Drive, point_gdown_at

from sepc_zoo import create_model, load_model
from sepc_zoo.checkpoints import sources as authors
from sepc_zoo.checkpoints.convert.sepc_authors import (
    CheckpointError,
    from_authors,
    read_authors_checkpoint,
)
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import imported_folder
from sepc_zoo.checkpoints.sources import import_model
from sepc_zoo.cli import main
from sepc_zoo.registry import AUTHORS_WEIGHTS

NAME = "fsaf_r50_pconv"
META = {"epoch": 12, "iter": 43980, "mmdet_version": "1.1.0"}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def drive(tmp_path):
    """A folder whose files are served on the loopback, and its address."""
    folder = tmp_path / "drive"
    folder.mkdir()
    handler = functools.partial(Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/{{id}}"
        server.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "home"))


def drive_id(name):
    return AUTHORS_WEIGHTS[name][1]


@pytest.mark.slow
def test_an_imported_model_is_found_offline(drive, capsys, monkeypatch):
    folder, url = drive
    state = their_state(NAME)
    torch.save({"meta": META, "state_dict": state}, folder / drive_id(NAME))
    assert main(["import", NAME, "--url", url]) == 0
    assert str(imported_folder(f"{NAME}.coco_1x")) in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = create_model(NAME, pretrained=True)
    expected = from_authors(state, NAME)
    assert model.config == expected.config
    for ours, theirs in zip(
        model.state_dict().values(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_checkpoint_of_another_variant_is_refused_and_nothing_is_kept(tmp_path):
    torch.save({"meta": META, "state_dict": their_state(NAME)}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of fsaf_r50_sepc:"):
        import_model("fsaf_r50_sepc", tmp_path / "checkpoint.pth")
    assert not imported_folder("fsaf_r50_sepc.coco_1x").exists()


def test_a_checkpoint_that_says_it_is_of_another_method_is_refused(tmp_path):
    meta = META | {"config": "bbox_head=dict(type='FreeAnchorRetinaSepcHead',"}
    torch.save({"meta": meta, "state_dict": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="of freeanchor, not of retinanet_r50_sepc"):
        read_authors_checkpoint(tmp_path / "checkpoint.pth", "retinanet_r50_sepc")
    assert read_authors_checkpoint(tmp_path / "checkpoint.pth", "freeanchor_r50_sepc") == {}


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return open, (str(self.made), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(zipped, tmp_path, capsys):
    file, made = tmp_path / "checkpoint.pth", tmp_path / "made"
    content = {"state_dict": {}, "hook": Code(made)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert main(["import", NAME, "--file", str(file)]) == 2
    assert "not a checkpoint that is safe to read" in capsys.readouterr().err
    assert not made.exists()
    assert not imported_folder(f"{NAME}.coco_1x").exists()


@pytest.mark.slow
def test_an_import_that_dies_leaves_nothing_that_loads_wrongly(tmp_path, monkeypatch):
    torch.save({"meta": META, "state_dict": their_state(NAME)}, tmp_path / "checkpoint.pth")
    import_model(NAME, tmp_path / "checkpoint.pth")
    folder = imported_folder(f"{NAME}.coco_1x")
    before = (folder / "model.safetensors").read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(authors, "verify", die)
    with pytest.raises(KeyboardInterrupt):
        import_model(NAME, tmp_path / "checkpoint.pth")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == before


PAGES = {
    "quota": (b"<!DOCTYPE html><p>download quota for this file", "its download quota is used up"),
    "login": (b"<html><title>Google Drive - Sign in</title>", "it asks for a login"),
    "other": (b"\n<html>hello", "a web page came in place of the file"),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_place_of_the_file_is_recognised(page, drive):
    folder, url = drive
    content, match = PAGES[page]
    (folder / drive_id(NAME)).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{match}.*--file"):
        import_model(NAME, url=url)


DRIVE_PAGES = {
    "quota": (QUOTA, "its download quota is used up for today"),
    "login": (LOGIN, "it asks for a login, or too many have downloaded it"),
}


@pytest.mark.parametrize("page", DRIVE_PAGES)
def test_a_page_of_google_drive_itself_is_recognised(page, monkeypatch):
    with Drive() as google:
        point_gdown_at(google, monkeypatch)
        google.pages[drive_id(NAME)], match = DRIVE_PAGES[page]
        with pytest.raises(CheckpointError, match=f"^Google Drive does not give.*{match}.*--file$"):
            import_model(NAME)


@pytest.mark.slow
def test_an_imported_model_can_be_put_on_the_hub(hub, drive, monkeypatch, capsys):
    folder, url = drive
    torch.save({"meta": META, "state_dict": their_state(NAME)}, folder / drive_id(NAME))
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert main(["import", NAME, "--url", url, "--push", "zoo"]) == 0
    assert f"{hub.endpoint}/zoo/{NAME}.coco_1x/commit/" in capsys.readouterr().out
    pushed = hub.repository(f"zoo/{NAME}.coco_1x").contents()
    kept = imported_folder(f"{NAME}.coco_1x")
    for file in ("config.json", "model.safetensors"):
        assert pushed[file] == (kept / file).read_bytes()
    shutil.rmtree(kept)
    monkeypatch.setenv("SEPC_ZOO_HUB_ORG", "zoo")
    assert create_model(NAME, pretrained=True).config == load_model(f"zoo/{kept.name}").config


def test_an_import_that_the_hub_does_not_take_is_kept_and_can_be_pushed_later(
    hub, tmp_path, monkeypatch, capsys
):
    small = create_model("retinanet_mnv4s_pconv", channels=8, num_classes=3)
    kept = tmp_path / "kept"
    monkeypatch.setattr(authors, "import_model", lambda *_: save_model(small, kept))
    monkeypatch.setenv("HF_TOKEN", hub.add_user("mallory"))
    assert main(["import", NAME, "--push", "zoo"]) == 1
    out, err = capsys.readouterr()
    assert f"use it: sepc-zoo predict IMAGE --model {NAME}" in out
    assert f"{NAME}: not on the hub: zoo/kept is not yours to write to" in err
    assert f"push it later: sepc-zoo push {tmp_path / 'kept'} zoo/kept" in err


def test_a_file_that_is_not_there_says_how_to_get_it(drive):
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*--file"):
        import_model(NAME, url=drive[1])


def test_all_goes_on_where_one_fails(drive, capsys):
    assert main(["import", "all", "--url", drive[1]]) == 1
    assert capsys.readouterr().err.count("not done:") == 13
