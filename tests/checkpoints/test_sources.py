"""Published weights: downloaded by the real gdown, converted, kept and found."""

import shutil

import pytest
from attacks import Call
from authors_checkpoints import their_state, write_checkpoint
from drive_server import LOGIN, QUOTA, Drive, point_gdown_at
from made_up_models import same_tensors

from sepc_zoo import create_model, load_model
from sepc_zoo.checkpoints import sources
from sepc_zoo.checkpoints.convert.pickles import CheckpointError, read_state_dict
from sepc_zoo.checkpoints.convert.sepc_authors import from_authors
from sepc_zoo.checkpoints.sources import import_model, kept_folder, published_row
from sepc_zoo.cli import main
from sepc_zoo.errors import HubError
from sepc_zoo.published import PUBLISHED

NAME, OTHER = "fsaf_test_efficientnet_pconv", "fsaf_test_efficientnet_sepc"
pytestmark = pytest.mark.usefixtures("tiny_rows")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "home"))


@pytest.fixture
def drive(monkeypatch):
    with Drive() as server:
        point_gdown_at(server, monkeypatch)
        yield server


@pytest.fixture(scope="module")
def state(tiny_rows):  # noqa: ARG001
    return their_state(NAME)


@pytest.fixture
def file(tmp_path, state):
    return write_checkpoint(tmp_path / "checkpoint.pth", NAME, state)


@pytest.fixture
def on_drive(drive, file):
    drive.files[NAME] = file.read_bytes
    return drive


def kept(name):
    return kept_folder(published_row(name))


@pytest.mark.parametrize("options", [[], ["--url", "{server}/plain?id={{id}}&confirm=t"]])
def test_an_imported_model_is_found_offline(on_drive, state, capsys, monkeypatch, options):
    words = [text.format(server=on_drive.address) for text in options]
    assert main(["import", NAME, *words]) == 0
    assert str(kept(NAME)) in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, expected = create_model(NAME, pretrained=True), from_authors(state, NAME)
    assert model.config == expected.config
    assert same_tensors(model, expected)


def test_a_checkpoint_of_another_variant_is_refused_and_nothing_is_kept(file):
    with pytest.raises(CheckpointError, match=f"no checkpoint of {OTHER}"):
        import_model(OTHER, file)
    assert not kept(OTHER).exists()


def test_a_checkpoint_that_says_it_is_of_another_method_is_refused(tmp_path):
    config = "bbox_head=dict(type='FreeAnchorRetinaSepcHead',"
    file = write_checkpoint(tmp_path / "checkpoint.pth", NAME, {}, config=config)
    with pytest.raises(CheckpointError, match="of freeanchor, not of retinanet_r50_sepc"):
        read_state_dict(file, "retinanet_r50_sepc")
    assert read_state_dict(file, "freeanchor_r50_sepc") == {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(zipped, tmp_path, capsys):
    made = tmp_path / "made"
    file = write_checkpoint(tmp_path / "x.pth", NAME, {}, zipped, hook=Call(open, str(made), "w"))
    assert main(["import", NAME, "--file", str(file)]) == 2
    assert "not a checkpoint that is safe to read" in capsys.readouterr().err
    assert not made.exists()
    assert not kept(NAME).exists()


def test_an_import_that_dies_leaves_the_older_one(file, monkeypatch):
    folder = import_model(NAME, file)
    before = (folder / "model.safetensors").read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "verify", die)
    with pytest.raises(KeyboardInterrupt):
        import_model(NAME, file)
    assert [path.name for path in folder.parent.glob("[!.]*")] == [folder.name]
    assert not list(folder.parent.glob(".importing/*/*"))
    assert (folder / "model.safetensors").read_bytes() == before


PLAIN = "{address}/plain?id={{id}}"
USED_UP = "its download quota is used up for today"
PAGES = {
    "quota of Drive": (None, QUOTA, USED_UP),
    "login of Drive": (None, LOGIN, "it is gone, asks for a login, or was downloaded too often"),
    "quota": (PLAIN, "<!DOCTYPE html><p>download quota for this file", USED_UP),
    "login": (PLAIN, "<html><title>Google Drive - Sign in</title>", "asks for a login"),
    "other": (PLAIN, "\n<html>hello", "a web page came in place of the file"),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_place_of_the_file_is_recognised(page, drive):
    url, drive.pages[NAME], match = PAGES[page]
    with pytest.raises(HubError, match=f"^cannot download {NAME}.*{match}.*--file FILE$"):
        import_model(NAME, url=url and url.format(address=drive.address))


def test_a_file_that_is_not_there_says_how_to_get_it(drive):
    for url in (None, f"{drive.address}/plain?id={{id}}"):
        with pytest.raises(HubError, match=r"cannot download .*--file"):
            import_model(NAME, url=url)


def test_all_goes_on_where_one_fails(drive, capsys, state, tmp_path):
    file = write_checkpoint(tmp_path / "checkpoint.pth", NAME, state)
    drive.files[NAME] = file.read_bytes
    theirs = [row for row in PUBLISHED.values() if row.publisher == "sepc"]
    drive.pages = {r.url.partition("id=")[2]: QUOTA for r in theirs if r.architecture != NAME}
    assert main(["import", "all", "--source", "sepc"]) == 1
    out, err = capsys.readouterr()
    assert err.count("not done:") == len(theirs) - 1
    assert f"{NAME}.coco_1x: {kept(NAME)}" in out


def test_an_imported_model_can_be_put_on_the_hub(hub, file, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    assert main(["import", NAME, "--file", str(file), "--push", "zoo"]) == 0
    assert f"{hub.endpoint}/zoo/{NAME}.coco_1x/commit/" in capsys.readouterr().out
    pushed = hub.repository(f"zoo/{NAME}.coco_1x").contents()
    folder = kept(NAME)
    for name in ("config.json", "model.safetensors"):
        assert pushed[name] == (folder / name).read_bytes()
    shutil.rmtree(folder)
    monkeypatch.setenv("SEPC_ZOO_HUB_ORG", "zoo")
    assert create_model(NAME, pretrained=True).config == load_model(f"zoo/{folder.name}").config


def test_an_import_that_the_hub_does_not_take_is_kept_and_can_be_pushed_later(
    hub, file, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("mallory"))
    assert main(["import", NAME, "--file", str(file), "--push", "zoo"]) == 1
    out, err = capsys.readouterr()
    folder = kept(NAME)
    assert f"--model {NAME}" in out
    assert f"{NAME}: not on the hub: zoo/{folder.name} is not yours to write to" in err
    assert f"push it later: sepc-zoo push {folder} zoo/{folder.name}" in err
    assert load_model(folder).config.architecture == NAME
