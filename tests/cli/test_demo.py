"""The page of `sepc-zoo demo`, the Space of `sepc-zoo push`, and the handler of endpoints."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import assert_refused, call
from hub_server import client_environment
from PIL import Image

from sepc_zoo.demo.handler import EndpointHandler
from sepc_zoo.factory import load_model


@pytest.fixture(scope="module")
def demo():
    """The module of the page; importing gradio takes seconds."""
    pytest.importorskip("gradio")
    from sepc_zoo.demo import page

    return page


@pytest.fixture
def detector(model):
    return load_model(model)


# The page


@pytest.mark.slow
def test_the_page_shows_what_predict_finds(demo, detector, images):
    path = images / "a.jpg"
    found = demo.detect(detector, str(path), "off")
    text, picture, rows, file = demo.show(found, 0.5)
    expected = detector.predict(path, 0.5)
    assert len(expected) > 0
    assert text == expected.summary()
    assert picture.size == (64, 64)
    assert [row[:2] for row in rows] == [[d.name, round(d.score, 3)] for d in expected]
    content = json.loads(Path(file).read_text())
    assert [row["label"] for row in content] == [d.name for d in expected]
    sides = [
        tuple(row["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")) for row in content
    ]
    assert sides == [d.box for d in expected]


@pytest.mark.slow
def test_the_choice_of_tiles_changes_what_is_found_in_a_large_image(demo, detector, tmp_path):
    path = tmp_path / "large.png"
    Image.effect_noise((400, 300), 90).convert("RGB").save(path)
    whole, same, tiles = (demo.detect(detector, str(path), tile) for tile in ("off", "640", "320"))
    assert whole.scores.tolist() == same.scores.tolist() != tiles.scores.tolist()


@pytest.mark.slow
def test_a_bad_upload_gives_a_message_without_folders_of_the_server(
    demo, detector, tmp_path, monkeypatch
):
    (tmp_path / "notes.jpg").write_text("no image")
    Image.new("RGB", (60, 50)).save(tmp_path / "huge.png")
    monkeypatch.setattr(demo, "MAX_PIXELS", 100)
    for name, reason in (
        ("notes.jpg", "not an image"),
        ("huge.png", "50 x 60 pixels are too many"),
    ):
        found = demo.detect(detector, str(tmp_path / name), "off")
        assert found.startswith(f"{name}: {reason}")
        assert demo.show(found, 0.3) == (found, None, [], None)
    assert demo.show(demo.detect(detector, None, "off"), 0.3) == ("", None, [], None)


@pytest.mark.slow
def test_examples_are_drawn_or_those_of_a_folder(demo, detector, images):
    drawn = demo.example_images(None)
    assert len(drawn) == 4
    assert Image.open(drawn[-1]).size == (1280, 960)
    assert demo.example_images(images) == [images / "a.jpg", images / "b.jpg"]
    page = demo.make_page(detector, images)
    assert not page.analytics_enabled
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.slow
def test_a_space_starts_from_its_own_files_and_asks_nobody(hub, model, images, tmp_path):
    """The hub is also the proxy of the server, and fails the test if anything reaches it."""
    client = pytest.importorskip("gradio_client")
    flags = ("--space", "zoo/demo", "--output", tmp_path / "space")
    assert call("push", model, "zoo/cells", *flags) == 0
    environment = client_environment(hub, tmp_path)
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, tmp_path / "space" / "app.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            line = next(line for line in server.stdout if "http://127.0.0.1:" in line)
            page = client.Client(line.split()[-1], verbose=False, analytics_enabled=False)
            page.predict(client.handle_file(images / "a.jpg"), "off", api_name="/detect")
            text, *_ = page.predict(0.5, api_name="/show")
        finally:
            server.terminate()
    assert text == load_model(model).predict(images / "a.jpg", 0.5).summary()
    assert hub.requests == []


def test_the_demo_says_which_library_is_missing(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sepc_zoo.demo.page", raising=False)
    assert call("demo", "--model", model) == 2
    assert_refused(capsys, 'pip install "sepc_zoo[demo]"')


# The Space and the handler on the hub


def test_push_uploads_a_space_beside_the_model(hub, model, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    assert call("push", model, "zoo/cells", "--space", "zoo/cells-demo", "--private") == 0
    files = hub.repository("zoo/cells-demo", "space").contents()
    assert {*files} == {"app.py", "requirements.txt", "README.md"}
    assert files["requirements.txt"].startswith(b"sepc_zoo[demo]>=")
    assert '"hf-hub:zoo/cells"' in files["app.py"].decode()
    compile(files["app.py"], "app.py", "exec")
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    expected = {"sdk": "gradio", "app_file": "app.py", "models": ["zoo/cells"]}
    assert front.items() >= expected.items()
    (created,) = [r.json() for r in hub.seen("POST", "*/create") if r.json()["type"] == "space"]
    assert created["sdk"] == "gradio"
    assert hub.repository("zoo/cells-demo", "space").private
    assert "handler.py" not in hub.repository("zoo/cells").contents()
    assert f"{hub.endpoint}/spaces/zoo/cells-demo/commit/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "name"),
    [(["cells"], "ORG/NAME is 'cells'"), (["zoo/cells", "--space", "demo"], "--space is 'demo'")],
)
def test_model_and_space_need_a_name(words, name, model, capsys):
    with pytest.raises(SystemExit):
        call("push", model, *words)
    assert_refused(capsys, f"{name}, no name of a repository")


def test_the_pushed_handler_runs_the_model_of_its_repository(
    hub, model, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=["zoo"]))
    assert call("push", model, "zoo/cells", "--handler") == 0
    for name, data in hub.repository("zoo/cells").contents().items():
        (tmp_path / name).write_bytes(data)
    assert (tmp_path / "requirements.txt").read_text().startswith("sepc_zoo>=")
    namespace: dict = {}
    exec((tmp_path / "handler.py").read_text(), namespace)
    data, image = (images / "a.jpg").read_bytes(), Image.open(images / "a.jpg")
    handler = namespace["EndpointHandler"](str(tmp_path))
    expected = load_model(model).predict(images / "a.jpg", 0.5)
    for inputs in (data, image, base64.b64encode(data).decode()):
        found = handler({"inputs": inputs, "parameters": {"threshold": 0.5}})
        assert [row["label"] for row in found] == [d.name for d in expected]
        assert [row["score"] for row in found] == [d.score for d in expected]
    assert len(handler({"inputs": data})) >= len(expected) > 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({}, "inputs are NoneType"),
        ({"inputs": "/etc/passwd"}, "not base64"),
        ({"inputs": "http://127.0.0.1/a.jpg"}, "not base64"),
        ({"inputs": b"no image"}, "not an image"),
        ({"inputs": b"", "parameters": {"threshold": "high"}}, "threshold is 'high'"),
    ],
)
def test_the_handler_refuses_what_is_no_image(model, data, reason):
    """Least of all it opens a path or an address."""
    with pytest.raises(ValueError, match=reason):
        EndpointHandler(str(model))(data)


def test_output_writes_the_files_without_a_hub(model, tmp_path):
    flags = ("--space", "zoo/demo", "--handler", "--output", tmp_path)
    assert call("push", model, "zoo/cells", *flags) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    model_files = (
        "config.json",
        "model.safetensors",
        "README.md",
        "handler.py",
        "requirements.txt",
    )
    assert written == {
        "app.py",
        "requirements.txt",
        "README.md",
        *(f"model/{f}" for f in model_files),
    }
