"""Downloads that meet each other, are killed or cut: over HTTP, by the real client."""

import os
import re
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import pytest
import torch
from hub_cases import tiny_model
from huggingface_hub import constants, get_hf_file_metadata
from test_hub import assert_same_model, images, outputs

from sepc_zoo import HubError, create_model, push_to_hub

ID = "zoo/cells"
WEIGHTS, CONFIG = f"{ID}/model.safetensors", f"{ID}/config.json"
GET_WEIGHTS = {"path": "*/model.safetensors", "method": "GET"}
LOAD = """
import sys
from sepc_zoo import create_model
create_model(sys.argv[1])
"""
# Processes that have imported everything begin together: the 1st argument is how many, the 2nd the
# model, the 3rd a folder with the images, for what they compute and when.
LOAD_TOGETHER = """
import multiprocessing, sys, time, torch
from sepc_zoo import create_model

count, name, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
context = multiprocessing.get_context("fork")
start = context.Barrier(count)

def load(i):
    images = torch.load(f"{folder}/in.pt")
    start.wait()
    begin = time.monotonic()
    model = create_model(name)
    end = time.monotonic()
    with torch.no_grad():
        torch.save((begin, end, tuple(model(images))[:2]), f"{folder}/{i}.pt")

processes = [context.Process(target=load, args=(i,)) for i in range(count)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(max(process.exitcode for process in processes))
"""
resuming = pytest.mark.skipif(
    "retry_on_errors" not in signature(get_hf_file_metadata).parameters,
    reason="this huggingface_hub does not try again",
)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def sizes(hub, model):
    """A model on the hub, and the bytes of its files."""
    push_to_hub(model, ID, token=hub.add_user("alice", organizations=["zoo"]))
    hub.requests.clear()
    files = hub.repository(ID).contents()
    return {f"{ID}/{name}": len(content) for name, content in files.items()}


def start(script, *arguments):
    """A new process whose client knows the hub of this test, and has this process's cache."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment)


def first_byte(request):
    """Where in the file the answer to a request begins."""
    wanted = request.headers["Range"]
    return int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0


@pytest.fixture
def one_thread():
    """The numbers of processes that have one thread each, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_processes_that_want_one_model_share_its_download(hub, sizes, model, tmp_path):
    torch.save(images(), tmp_path / "in.pt")
    hub.misbehave(**GET_WEIGHTS, rate=sizes[WEIGHTS] / 2)
    assert start(LOAD_TOGETHER, 8, f"hf-hub:{ID}", tmp_path).wait(timeout=300) == 0
    got = [torch.load(tmp_path / f"{i}.pt") for i in range(8)]
    assert max(begin for begin, _, _ in got) < min(end for _, end, _ in got)
    for _, _, computed in got:
        for ours, theirs in zip(outputs(model), computed, strict=True):
            assert torch.equal(ours, theirs)
    assert hub.bytes_served(WEIGHTS) == sizes[WEIGHTS]
    assert hub.bytes_served(CONFIG) == sizes[CONFIG]


@pytest.fixture
def killed(hub, sizes):
    """A process is killed while it downloads the weights; the bytes that were sent to it."""
    hub.misbehave(**GET_WEIGHTS, rate=sizes[WEIGHTS] / 10)
    process = start(LOAD, f"hf-hub:{ID}")
    end = time.monotonic() + 120
    while hub.bytes_served(WEIGHTS) < sizes[WEIGHTS] / 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    hub.behave()
    return hub.bytes_served(WEIGHTS)


@pytest.mark.slow
def test_a_download_that_was_killed_leaves_nothing_that_loads_and_is_done_again(
    hub, sizes, model, killed
):
    assert sizes[WEIGHTS] / 3 <= killed < sizes[WEIGHTS]
    with pytest.raises(HubError, match=r"model\.safetensors .* is not in the cache"):
        create_model(f"hf-hub:{ID}", local_files_only=True)
    assert_same_model(model, create_model(f"hf-hub:{ID}"))
    _, again = hub.seen(**GET_WEIGHTS)
    assert first_byte(again) + again.sent == sizes[WEIGHTS]


@resuming
@pytest.mark.usefixtures("waits")
def test_a_download_that_is_cut_goes_on_where_it_was(hub, sizes, model, monkeypatch):
    chunk = sizes[WEIGHTS] // 10
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)  # what is less is thrown away
    hub.misbehave(**GET_WEIGHTS, cut_after=5 * chunk + 1, times=1)
    assert_same_model(model, create_model(f"hf-hub:{ID}"))
    first, second = hub.seen(**GET_WEIGHTS)
    assert (first.sent, first_byte(second)) == (5 * chunk + 1, 5 * chunk)
    assert second.sent == sizes[WEIGHTS] - 5 * chunk


@pytest.mark.usefixtures("waits")
def test_a_download_that_is_always_cut_says_so_and_leaves_nothing_that_loads(hub, sizes, model):
    hub.misbehave(**GET_WEIGHTS, cut_after=sizes[WEIGHTS] // 2)
    with pytest.raises(HubError, match=r"^cannot download model\.safetensors of zoo/cells"):
        create_model(f"hf-hub:{ID}")
    with pytest.raises(HubError, match="is not in the cache"):
        create_model(f"hf-hub:{ID}", local_files_only=True)
    hub.behave()
    assert_same_model(model, create_model(f"hf-hub:{ID}"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_is_in_the_cache_is_not_sent_again(file, hub, sizes):
    for _ in range(2):
        create_model(f"hf-hub:{ID}")
    assert hub.bytes_served(f"{ID}/{file}") == sizes[f"{ID}/{file}"]


def test_only_what_changed_is_sent_again(hub, sizes):
    create_model(f"hf-hub:{ID}")
    repository = hub.repository(ID)
    config = repository.contents()["config.json"]
    repository.commit({"config.json": config + b"\n"})
    create_model(f"hf-hub:{ID}")
    assert hub.bytes_served(CONFIG) == 2 * sizes[CONFIG] + 1
    assert hub.bytes_served(WEIGHTS) == sizes[WEIGHTS]
