import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from test_convert import their_state

from sepc_zoo import create_model
from sepc_zoo.authors import import_model, refuse_page
from sepc_zoo.commands import main
from sepc_zoo.convert import CheckpointError, from_authors, read_authors_checkpoint
from sepc_zoo.hub import imported_folder
from sepc_zoo.zoo import AUTHORS_WEIGHTS

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


def test_a_checkpoint_with_code_in_it_is_refused(drive):
    folder, url = drive
    torch.save({"state_dict": {}, "hook": print}, folder / drive_id(NAME))
    with pytest.raises(CheckpointError, match="not a checkpoint that is safe to read"):
        import_model(NAME, url=url)


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


def test_a_checkpoint_is_no_page(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pth")
    refuse_page(tmp_path / "checkpoint.pth", "")


def test_a_file_that_is_not_there_says_how_to_get_it(drive):
    with pytest.raises(CheckpointError, match=r"cannot be downloaded.*--file"):
        import_model(NAME, url=drive[1])


def test_all_goes_on_where_one_fails(drive, capsys):
    assert main(["import", "all", "--url", drive[1]]) == 1
    assert capsys.readouterr().err.count("not done:") == 13
