"""Messages for everything that can go wrong with the hub, and the time until they appear.

The real client talks over HTTP to the tests' hub, which misbehaves on demand.

    PYTHONPATH=.:tests python benchmarks/hub_errors.py [--only WORD]
"""

import argparse
import csv
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, point_client_at
from huggingface_hub import constants

from sepc_zoo import HubError, create_model, push_to_hub
from sepc_zoo.checkpoints.folder import CONFIG_FILE, WEIGHTS_FILE, save_model
from sepc_zoo.checkpoints.hub import add_to_collection

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ["case", "seconds", "requests", "text"]
MODEL, OTHER = "zoo/cells", "zoo/other"
WEIGHTS_OF_ALL = f"*/{WEIGHTS_FILE}"


@dataclass
class Scene:
    """A hub with a model, a client with an empty cache, and a user who may write."""

    hub: HubServer
    token: str
    model: Any
    files: dict[str, bytes]  # files of the model folder
    patch: pytest.MonkeyPatch

    def load(self, name: str = f"hf-hub:{MODEL}", **options: Any) -> None:
        create_model(name, **options)

    def push(self, repo_id: str = MODEL, **options: Any) -> None:
        push_to_hub(self.model, repo_id, **{"token": self.token} | options)

    def load_other(self, **settings: Any) -> Callable[..., None]:
        """Load a repository with these settings and changed ``files``; None removes one."""

        def load(files: dict[str, bytes | None], **options: Any) -> None:
            content = {k: v for k, v in (self.files | files).items() if v is not None}
            self.hub.add_repository(OTHER, content, **settings)
            self.load(f"hf-hub:{OTHER}", **options)

        return load

    def config(self, **changes: Any) -> dict[str, bytes | None]:
        content = json.loads(self.files[CONFIG_FILE]) | changes
        return {CONFIG_FILE: json.dumps(content).encode()}

    def load_under(self, path: str = "*", **fault: Any) -> None:
        self.hub.misbehave(path, **fault)
        self.load()

    def load_published_under(self, **fault: Any) -> None:
        self.hub.misbehave(**fault)
        self.load("fsaf_r50_sepc", pretrained=True)

    def push_under(self, path: str = "*", method: str = "PUT", **fault: Any) -> None:
        self.hub.misbehave(path, method=method, **fault)
        self.push()

    def load_offline(self, name: str = f"hf-hub:{MODEL}", **options: Any) -> None:
        self.patch.setattr(constants, "HF_HUB_OFFLINE", True)
        self.load(name, **options)

    def load_from_nobody(self, **options: Any) -> None:
        self.hub.close()
        self.load(**options)

    def load_altered(self) -> None:
        """Load from the cache after one of its files has changed."""
        self.load()
        home = Path(constants.HF_HUB_CACHE)
        file = next(home.glob(f"**/snapshots/*/{WEIGHTS_FILE}")).resolve()
        file.write_bytes(b"x" + file.read_bytes()[1:])
        self.load()

    def push_from_nobody(self) -> None:
        self.hub.close()
        self.push()


def without(file: str, **others: bytes) -> dict[str, bytes | None]:
    return {file: None} | {name.replace("_", "."): content for name, content in others.items()}


def cut(scene: Scene) -> dict[str, bytes | None]:
    return {WEIGHTS_FILE: scene.files[WEIGHTS_FILE][:-1000]}


CASES: dict[str, Callable[[Scene], Any]] = {
    "name of no repository": lambda s: s.load("hf-hub:zoo/a/b"),
    "no such repository": lambda s: s.load("hf-hub:zoo/none", token=False),
    "no such repository, with a token": lambda s: s.load("hf-hub:zoo/none", token=s.token),
    "private, without a token": lambda s: s.load_other(private=True)({}, token=False),
    "private, another user's token": lambda s: s.load_other(private=True)(
        {}, token=s.hub.add_user("mallory")
    ),
    "a token that is not valid": lambda s: s.load(token="hf_wrong"),
    "gated, without a token": lambda s: s.load_other(gated="manual")({}, token=False),
    "gated, access not granted": lambda s: s.load_other(gated="manual")(
        {}, token=s.hub.add_user("mallory")
    ),
    "disabled by the hub": lambda s: s.load_other(disabled=True)({}),
    "no such revision": lambda s: s.load(f"hf-hub:{MODEL}@v9"),
    "no config": lambda s: s.load_other()(without(CONFIG_FILE)),
    "no weights": lambda s: s.load_other()(without(WEIGHTS_FILE)),
    "only a pickle": lambda s: s.load_other()(without(WEIGHTS_FILE, model_pth=b"\x80\x02")),
    "published weights not on the hub": lambda s: s.load("fsaf_r50_sepc", pretrained=True),
    "no weights of this name": lambda s: s.load("fsaf_r18_sepc", pretrained=True),
    "local files only, not cached": lambda s: s.load(local_files_only=True),
    "HF_HUB_OFFLINE, not cached": lambda s: s.load_offline(),
    "published weights, server error 500": lambda s: s.load_published_under(status=500),
    "HF_HUB_OFFLINE, published weights": lambda s: s.load_offline("fsaf_r50_sepc", pretrained=True),
    "connection refused": lambda s: s.load_from_nobody(),
    "connection cut without an answer": lambda s: s.load_under(hang_up=True),
    "no answer in time": lambda s: s.load_under(delay=60),
    "server error 500": lambda s: s.load_under(status=500),
    "server error 503": lambda s: s.load_under(status=503),
    "rate limit 429": lambda s: s.load_under(status=429, headers={"Retry-After": "30"}),
    "weights: connection cut, again and again": lambda s: s.load_under(
        WEIGHTS_OF_ALL, method="GET", cut_after=1000
    ),
    "weights: storage error 500": lambda s: s.load_under(WEIGHTS_OF_ALL, method="GET", status=500),
    "weights: storage forbids, 403": lambda s: s.load_under(
        WEIGHTS_OF_ALL, method="GET", status=403
    ),
    "weights: fewer bytes than announced": lambda s: s.load_under(
        WEIGHTS_OF_ALL, method="GET", truncate=1000
    ),
    "weights: other bytes than announced": lambda s: s.load_under(
        WEIGHTS_OF_ALL, method="GET", wrong_bytes=True
    ),
    "weights: altered in the cache": lambda s: s.load_altered(),
    "weights: truncated before they were pushed": lambda s: s.load_other()(cut(s)),
    "weights: a pickle by their name": lambda s: s.load_other()({WEIGHTS_FILE: b"\x80\x02." * 99}),
    "weights: of another model": lambda s: s.load_other()(
        s.config(num_classes=2, label_names=["a", "b"], category_ids=[1, 2])
    ),
    "config: of a newer version": lambda s: s.load_other()(s.config(telepathy=True)),
    "config: damaged": lambda s: s.load_other()({CONFIG_FILE: s.files[CONFIG_FILE][:99]}),
    "config: a billion classes": lambda s: s.load_other()(s.config(num_classes=10**9)),
    "folder: not there": lambda s: s.load("local-dir:nowhere"),
    "push: name of no repository": lambda s: s.push("a/b/c"),
    "push: without a token": lambda s: s.push(token=False),
    "push: to another's repository": lambda s: s.push(token=s.hub.add_user("mallory")),
    "push: with a token that only reads": lambda s: s.push(
        token=s.hub.add_user("reader", ["zoo"], access="read")
    ),
    "push: to an unknown organisation": lambda s: s.push("nobody/cells"),
    "push: connection refused": lambda s: s.push_from_nobody(),
    "push: server error 500 at first": lambda s: s.push_under("*/create", "POST", status=500),
    "push: server error 500 at the commit": lambda s: s.push_under(
        "*/commit/*", "POST", status=500
    ),
    "push: rate limit 429 at the commit": lambda s: s.push_under("*/commit/*", "POST", status=429),
    "push: answer to the commit lost": lambda s: s.push_under("*/commit/*", "POST", truncate=0),
    "push: storage forbids, 403": lambda s: s.push_under(status=403),
    "push: too large for the storage, 413": lambda s: s.push_under(status=413),
    "push: storage error 500": lambda s: s.push_under(status=500),
    "push: connection cut while uploading": lambda s: s.push_under(hang_up=True),
    "publish: collection of another": lambda s: add_to_collection(
        "zoo", "Models", [MODEL], private=False, token=s.hub.add_user("mallory")
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only cases with this word in their names"
    )
    only = parser.parse_args().only
    model = create_model("retinanet_mnv4s_pconv", channels=8, num_classes=3)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        files = {f.name: f.read_bytes() for f in Path(folder).iterdir()}
    other = create_model("retinanet_mnv4s_pconv", channels=8, num_classes=3)
    rows = [measure(what, other, files) for what in CASES if only in what]
    print("", row_of(COLUMNS), row_of(["---"] * len(COLUMNS)), *map(row_of, rows), sep="\n")
    if not only:
        with TABLE.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def measure(what: str, model: Any, files: dict[str, bytes]) -> list[Any]:
    """Measure a row of the table: message, seconds and requests of a case."""
    with (
        tempfile.TemporaryDirectory() as home,
        pytest.MonkeyPatch.context() as patch,
        HubServer() as hub,
    ):
        point_client_at(hub, Path(home), patch)
        token = hub.add_user("alice", organizations=["zoo"])
        hub.add_repository(MODEL, files)
        start = time.perf_counter()
        try:
            CASES[what](Scene(hub, token, model, files, patch))
        except HubError as error:
            seconds = time.perf_counter() - start
            text = normalize(str(error), hub, home)
        else:
            raise SystemExit(f"{what}: there was no error")
        row = [what, f"{seconds:.1f}", len(hub.requests), text]
    print(*row, sep=" | ", flush=True)
    return row


def normalize(text: str, hub: HubServer, home: str) -> str:
    """Make the text equal on every machine, in one line."""
    text = text.replace(hub.endpoint, "https://huggingface.co").replace(hub.storage, "STORAGE")
    text = text.replace(home, "HF_HOME")
    text = re.sub(r"signature=\w+", "signature=…", text)
    text = re.sub(r"[0-9a-f]{40,64}", "…", text)
    return " ".join(text.split())


def row_of(cells: list[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
