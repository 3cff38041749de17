"""The server of examples/server, as its users start it, on the loopback."""

import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

import httpx
from attacks import Call
from exported_files import input_rule, write_exported

from sepc_zoo.config import override
from sepc_zoo.export.runtime import load, write_runtime
from sepc_zoo.registry import model_config

FOLDER = Path(__file__).parents[2] / "examples" / "server"
CONFIG = override(model_config("retinanet_r18_fpn"), {"weights": {"image_size": [64, 96]}})
MAX_REQUESTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What an export with its runtime and the example make up."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(FOLDER / "server.py", folder)
    write_runtime(folder)
    write_exported(folder / "model.onnx", input_rule(CONFIG))
    return folder


def environment(**settings):
    """Without the package, which a server's machine lacks."""
    return {name: v for name, v in os.environ.items() if name != "PYTHONPATH"} | settings


@contextmanager
def running(folder, **settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port)]
    with (
        subprocess.Popen(command, cwd=folder, env=environment(**settings)) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            while not is_up(client):
                assert process.poll() is None, "the server did not start"
                time.sleep(0.1)
            client.process = psutil.Process(process.pid)
            yield client
        finally:
            process.terminate()


def is_up(client):
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


@pytest.fixture(scope="module")
def client(folder):
    with running(folder, MAX_REQUESTS=str(MAX_REQUESTS), UPLOAD_SECONDS="6") as client:
        yield client


def encoded(format="png", size=(90, 50), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises so many pixels; its data end at once."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_health_says_which_model_answers(client):
    answer = client.get("/health").json()
    assert (answer["status"], answer["architecture"]) == ("ok", "retinanet_r18_fpn")
    assert answer["label_names"] == ["cat", "dog"]
    assert answer["versions"]["sepc_zoo"] == "0.1.0"


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_an_image_gets_what_the_runtime_finds(format, client, folder):
    data = encoded(format)
    answer = client.post("/detect", content=data, params={"score_threshold": 0.1})
    found = load(folder / "model.onnx", threads=1).predict(data, 0.1)
    assert answer.status_code == 200
    assert answer.json() == {
        "width": 90,
        "height": 50,
        "detections": [
            {"name": name, "label": label, "score": score, "box": [*box]}
            for box, score, label, name in found
        ],
    }
    assert len(found) == 2
    assert client.post("/detect", content=data, params={"score_threshold": 0.9}).json() == {
        "width": 90,
        "height": 50,
        "detections": [],
    }


def test_size_and_boxes_are_those_of_the_upright_image(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    answer = client.post("/detect", content=encoded("jpeg", exif=exif)).json()
    assert (answer["width"], answer["height"]) == (50, 90)
    assert answer["detections"][0]["box"] == pytest.approx([5, 18, 30, 72])


@pytest.mark.parametrize("threshold", ["2", "-1", "nan", "x"])
def test_a_wrong_threshold_is_refused(threshold, client):
    answer = client.post("/detect", content=encoded(), params={"score_threshold": threshold})
    assert answer.status_code == 422
    assert "score_threshold" in answer.text


BAD_UPLOADS = {
    "empty": (b"", 415, "no image file; expected JPEG, PNG, WEBP"),
    "text": (b"some text", 415, "no image file"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image file"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no image file"),
    "gif": (encoded("gif"), 415, "no image file"),
    "tiff": (encoded("tiff"), 415, "no image file"),
    "png without header": (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, "no image file"),
    "png without sides": (png_of_size(0, 50), 415, "no image file"),
    "png cut": (encoded("png")[:-3000], 422, "image"),
    "jpeg cut": (encoded("jpeg")[:-1000], 422, "truncated"),
    "png without data": (png_of_size(90, 50), 422, "image"),
    "bomb": (png_of_size(8000, 8000), 413, "more than 50000000 pixels"),
    "larger bomb": (png_of_size(60000, 60000), 413, "more than 50000000 pixels"),
    "largest bomb": (png_of_size(2**31 - 1, 2**31 - 1), 413, "more than 50000000 pixels"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_is_refused_with_its_reason(name, client):
    content, status, says = BAD_UPLOADS[name]
    answer = client.post("/detect", content=content)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_a_pickle_is_refused_and_not_loaded(client, tmp_path):
    answer = client.post("/detect", content=pickle.dumps(Call(Path.touch, tmp_path / "written")))
    assert answer.status_code == 415
    assert not (tmp_path / "written").exists()


def test_a_form_is_refused_with_what_is_expected(client):
    answer = client.post("/detect", files={"image": ("x.png", encoded(), "image/png")})
    assert answer.status_code == 415
    assert "the body is no image file" in answer.json()["detail"]


def chunks(count):
    return (bytes(1_000_000) for _ in range(count))


@pytest.mark.parametrize("headers", [{}, {"content-length": "100000000"}], ids=["chunked", "sized"])
def test_an_upload_of_100_megabytes_is_refused_without_being_kept(headers, client):
    before = client.process.memory_info().rss
    try:
        answer = client.post("/detect", content=chunks(100), headers=headers)
        assert answer.status_code == 413
        assert "more than 20000000 bytes" in answer.json()["detail"]
    except (httpx.NetworkError, httpx.RemoteProtocolError):  # answered before all was sent
        pass
    assert client.get("/health").status_code == 200
    assert client.process.memory_info().rss - before < 60e6


@contextmanager
def unfinished_upload(client):
    """A request whose body does not arrive; it takes one of the server's places."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        head = ["POST /detect HTTP/1.1", "Host: x", "Content-Length: 50", "Expect: 100-continue"]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        connection.settimeout(30)
        assert b" 100 " in connection.recv(4096)  # the server waits for the body
        yield connection


def test_more_requests_than_places_are_refused_until_one_is_free(client):
    with unfinished_upload(client) as slow, unfinished_upload(client), unfinished_upload(client):
        with unfinished_upload(client):
            refused = client.post("/detect", content=encoded())
            assert refused.status_code == 503
            assert refused.json()["detail"] == f"busy with {MAX_REQUESTS} requests; try again"
            assert refused.headers["retry-after"] == "1"
            assert client.get("/health").status_code == 200
        wait_until_free(client)
        assert b" 408 " in slow.recv(4096)  # who does not send loses the place
    wait_until_free(client)


def wait_until_free(client):
    while client.post("/detect", content=encoded()).status_code != 200:
        time.sleep(0.05)


def test_requests_at_once_get_their_own_answers(client, folder):
    images = [encoded(size=(40 + 10 * i, 50)) for i in range(8)]
    expected = [load(folder / "model.onnx", threads=1).predict(image, 0.1) for image in images]
    with ThreadPoolExecutor(MAX_REQUESTS) as threads:
        answers = [*threads.map(lambda data: post(client, data), images * 3)]
    for answer, found in zip(answers, expected * 3, strict=True):
        assert [one["box"] for one in answer["detections"]] == [[*one.box] for one in found]
        assert [one["score"] for one in answer["detections"]] == [one.score for one in found]


def post(client, data):
    return client.post("/detect", content=data, params={"score_threshold": 0.1}).json()


def test_a_missing_model_stops_the_start_with_its_name(folder):
    command = [sys.executable, "-c", "import server"]
    settings = {"cwd": folder, "env": environment(MODEL="none.onnx")}
    run = subprocess.run(command, **settings, capture_output=True, text=True)
    assert run.returncode != 0
    assert "FileError: none.onnx" in run.stderr


def test_the_container_has_what_the_server_needs_and_no_torch():
    requirements = (FOLDER / "requirements.txt").read_text(encoding="utf-8")
    names = {re.split(r"[>=]", line)[0] for line in requirements.split()}
    assert names == {"numpy", "onnxruntime", "pillow", "fastapi", "uvicorn"}
    (copied,) = re.findall(r"COPY (server.*) \./", (FOLDER / "Dockerfile").read_text("utf-8"))
    assert copied.split() == ["server.py", "detect.py", "model.onnx"]
