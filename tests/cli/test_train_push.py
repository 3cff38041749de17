"""`train --push-to-hub`, over HTTP."""

import shlex

import pytest
from huggingface_hub import ModelCard
from made_up_models import same_tensors

from sepc_zoo.cli import main
from sepc_zoo.factory import load_model

ID = "zoo/shapes"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def train(shapes, tmp_path):
    """A tiny run whose best model goes to the hub: its status, and its folder."""

    def run():
        output = tmp_path / "a run"
        model = ["--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16"]
        length = ["--max-steps", "1", "--batch-size", "2", "--image-size", "64", "64"]
        machine = ["--workers", "0", "--device", "cpu", "--push-to-hub", ID]
        data = ["--data", str(shapes), "--output", str(output)]
        return main(["train", *data, *model, *length, *machine]), output

    return run


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))


def assert_same_model(model, other):
    assert model.config == other.config
    assert same_tensors(model, other)


@pytest.mark.usefixtures("logged_in")
def test_the_best_model_of_a_run_is_on_the_hub_with_its_metrics(hub, train, capsys):
    status, output = train()
    assert status == 0
    assert f"on the hub: {hub.endpoint}/{ID}/commit/" in capsys.readouterr().out
    assert_same_model(load_model(output / "best"), load_model(f"hf-hub:{ID}"))
    files = hub.repository(ID).contents()
    assert files["metrics.json"] == (output / "best" / "metrics.json").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert "ap" in {result.metric_type for result in card.data.eval_results}
    assert "## Training" in card.content


def test_a_run_that_cannot_be_pushed_is_kept_and_says_how_to_push_it_later(
    hub, train, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("mallory"))
    status, output = train()
    assert status == 1
    *_, reason, later = capsys.readouterr().err.splitlines()
    assert reason.startswith(f"not on the hub: {ID} is not yours to write to")
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    _, _, command = later.partition("later: sepc-zoo ")
    assert main(shlex.split(command)) == 0
    assert_same_model(load_model(output / "best"), load_model(f"hf-hub:{ID}"))


@pytest.mark.usefixtures("logged_in", "waits")
def test_a_hub_in_trouble_costs_a_run_nothing(hub, train, capsys):
    hub.misbehave(status=500)
    status, output = train()
    assert status == 1
    assert f"sepc-zoo push '{output / 'best'}' {ID}" in capsys.readouterr().err
    hub.behave()
    load_model(output / "best")
    assert (output / "best" / "metrics.json").is_file()


@pytest.mark.parametrize("name", ["shapes", "zoo/sha pes", "zoo/a/b", "/shapes"])
def test_a_name_of_no_repository_is_refused_before_a_run(name, tmp_path, capsys):
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["train", "--output", str(output), "--push-to-hub", name])
    assert end.value.code == 2
    assert f"--push-to-hub is {name!r}, no name of a repository" in capsys.readouterr().err
    assert not output.exists()
