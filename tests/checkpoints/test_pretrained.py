"""``pretrained=True`` from the publisher's server to a model that a new process finds offline."""

import published_files
import pytest
import torch
from imported_models import digest
from new_process import run_python
from published_files import REAL, content, state, tiny_row
from publisher_server import Publisher

from sepc_zoo import HubError, create_model, load_model
from sepc_zoo.checkpoints import sources
from sepc_zoo.checkpoints.convert import CONVERTERS
from sepc_zoo.cli import main
from sepc_zoo.published import PUBLISHED, PUBLISHERS


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def publisher(hub, home, monkeypatch):  # noqa: ARG001
    """All publishers; the hub of this test has nothing."""
    before = dict(PUBLISHED)
    with Publisher() as server:
        monkeypatch.setenv("SEPC_ZOO_MIRROR", server.address)
        yield server
    PUBLISHED.clear()
    PUBLISHED.update(before)


def published(publisher, source):
    row = tiny_row(source, publisher.address)
    publisher.files[sources.file_name(row)] = content(row)
    return row


def new_processes(publisher, source, count=1, **environment):
    done = run_python(published_files.__file__, publisher.address, source, count, **environment)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("source", REAL)
def test_a_model_of_each_publisher_is_loaded_and_then_found_offline(
    publisher, home, source, capsys
):
    row = published(publisher, source)
    model = create_model(row.name, pretrained=True)
    said = capsys.readouterr().err
    assert f"downloading {row.name} from {publisher.address}/" in said
    assert PUBLISHERS[source].title in said
    assert PUBLISHERS[source].terms in said
    assert digest(model) == digest(CONVERTERS[source](state(row), row.name))
    assert (model.config.weights.tag, model.config.weights.authors_ap) == (row.tag, row.ap)
    assert [path.name for path in home.glob("[!.]*")] == [row.name]
    assert PUBLISHERS[source].terms in (home / row.name / "README.md").read_text()
    publisher.close()
    digests, said = new_processes(publisher, source, HF_HUB_OFFLINE="1")
    assert digests == [digest(model)]
    assert "downloading" not in said


def test_eight_processes_at_once_download_once(publisher):
    published(publisher, "openmmlab")
    publisher.manners.rate = 10**6  # slow enough that all ask while it is sent
    digests, said = new_processes(publisher, "openmmlab", 8)
    assert len(digests) == 8
    assert len(set(digests)) == 1
    assert len(publisher.requests) == 1
    assert said.count("downloading") == 1
    assert said.count("waiting for another process") >= 1


def test_the_hub_is_asked_first_and_once(publisher, hub, home, monkeypatch):
    row = published(publisher, "openmmlab")
    model = create_model(row.name, pretrained=True)
    assert len(hub.requests) == 1
    folder = home / row.name
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add_repository(f"zoo/{row.name}", files)
    monkeypatch.setenv("SEPC_ZOO_HUB_ORG", "zoo")
    monkeypatch.setenv("SEPC_ZOO_HOME", str(home / "new"))
    assert digest(create_model(row.name, pretrained=True)) == digest(model)
    assert len(publisher.requests) == 1
    assert not (home / "new").exists()


@pytest.mark.parametrize("fault", [{"status": 500}, {"hang_up": True}, {"status": 403}])
def test_a_hub_that_does_not_answer_is_gone_round(publisher, hub, fault):
    row = published(publisher, "openmmlab")
    hub.misbehave(**fault)
    create_model(row.name, pretrained=True)
    assert len(publisher.requests) == 1


def test_local_files_only_asks_nobody(publisher, hub):
    row = published(publisher, "openmmlab")
    with pytest.raises(HubError, match=f"or `sepc-zoo import {row.name}` once online"):
        create_model(row.name, pretrained=True, local_files_only=True)
    assert not publisher.requests
    assert not hub.requests


def test_without_a_tag_the_first_row_of_a_name_is_loaded(publisher):
    first = published(publisher, "openmmlab")
    second = first._replace(name=f"{first.architecture}.mmdet_2x", ap=first.ap + 1)
    PUBLISHED[second.name] = second
    model = create_model(first.architecture, pretrained=True)
    assert model.config.weights.tag == first.tag


def test_a_revision_is_one_of_the_hubs_alone(publisher):
    row = published(publisher, "openmmlab")
    with pytest.raises(HubError, match="does not exist"):
        create_model(row.name, pretrained=True, revision="v1")
    assert not publisher.requests


def test_all_models_of_a_publisher_are_imported_ahead_of_time(publisher, home, capsys, monkeypatch):
    rows = [published(publisher, source) for source in REAL]
    for name in set(PUBLISHED) - {row.name for row in rows}:
        monkeypatch.delitem(PUBLISHED, name)
    assert main(["import", "all", "--source", "torchvision"]) == 0
    assert [path.name for path in home.glob("[!.]*")] == [rows[-1].name]
    assert main(["import", "all"]) == 0
    assert len(publisher.requests) == 4
    assert main(["import", rows[0].name, "--source", "torchvision"]) == 2
    assert (
        "no weights of freeanchor_test_efficientnet_sepc.coco_1x are published by torchvision"
        in (capsys.readouterr().err)
    )


def test_imported_models_are_published_by_name(publisher, hub, home, monkeypatch):
    row = published(publisher, "torchvision")
    create_model(row.name, pretrained=True)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    assert main(["publish", row.name, "--org", "zoo"]) == 0
    model = load_model(f"hf-hub:zoo/{row.name}")
    assert digest(model) == digest(load_model(home / row.name))


def test_a_file_that_is_not_the_published_one_is_taken_with_a_word(publisher, tmp_path, capsys):
    row = published(publisher, "openmmlab")
    file = tmp_path / "mine.pth"
    torch.save(state(row) | {}, file)
    assert main(["import", row.name, "--file", str(file)]) == 0
    assert "is not the file that was published" in capsys.readouterr().err
    file.write_bytes(content(row))
    assert main(["import", row.name, "--file", str(file)]) == 0
    assert "is not the file that was published" not in capsys.readouterr().err
