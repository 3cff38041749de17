"""Everything that can go wrong between a user and the hub, and what the error must say.

The real client talks over HTTP to the hub of the tests, which misbehaves on demand.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, forget_connections
from huggingface_hub import constants

from sepc_zoo import create_model, push_to_hub
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.layout import CONFIG_FILE, WEIGHTS_FILE
from sepc_zoo.checkpoints.push import add_to_collection

TINY = {"channels": 8, "num_classes": 3, "neck": {"blocks": 1}}
MODEL, OTHER = "zoo/cells", "zoo/other"
PORTAL = "<html><title>Welcome to the airport</title>"
GET_WEIGHTS = {"path": f"*/{WEIGHTS_FILE}", "method": "GET"}


def tiny_model() -> Any:
    return create_model("retinanet_test_efficientnet_pconv", **TINY)


def files_of(model: Any, folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in save_model(model, folder).iterdir()}


@dataclass
class Scene:
    """A hub with a model, a client with an empty cache, and a user who may write."""

    hub: HubServer
    model: Any
    files: Mapping[str, bytes]  # of the model's folder
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.token = self.user(organizations=["zoo"])
        self.hub.add_repository(MODEL, self.files)

    def user(self, **settings: Any) -> str:
        return self.hub.add_user("somebody", **settings)

    def load(self, name: str = f"hf-hub:{MODEL}", **options: Any) -> None:
        create_model(name, **options)

    def load_published(self) -> None:
        self.load("fsaf_r50_sepc", pretrained=True)

    def load_other(
        self, files: Mapping[str, bytes | None], token: str | bool | None = None, **settings: Any
    ) -> None:
        """Load from a repository in which some files are others, or (None) absent."""
        content = {k: v for k, v in {**self.files, **files}.items() if v is not None}
        self.hub.add_repository(OTHER, content, **settings)
        self.load(f"hf-hub:{OTHER}", token=token)

    def config(self, **changes: Any) -> dict[str, bytes | None]:
        content = json.loads(self.files[CONFIG_FILE]) | changes
        return {CONFIG_FILE: json.dumps(content).encode()}

    def load_altered(self) -> None:
        """Load from a cache in which a file was altered since its download."""
        self.load()
        file = next(Path(constants.HF_HUB_CACHE).glob(f"**/snapshots/*/{WEIGHTS_FILE}")).resolve()
        file.write_bytes(b"x" + file.read_bytes()[1:])
        self.load()

    def push(self, repo_id: str = MODEL, **options: Any) -> None:
        push_to_hub(self.model, repo_id, **{"token": self.token, **options})

    def collect(self, token: str) -> None:
        add_to_collection("zoo", "Models", [MODEL], private=False, token=token)

    def misbehaving(self, path: str = "*", **fault: Any) -> "Scene":
        self.hub.misbehave(path, **fault)
        return self

    def offline(self) -> "Scene":
        self.patch.setattr(constants, "HF_HUB_OFFLINE", True)
        forget_connections()  # some versions read the mode only for new ones
        return self

    def closed(self) -> "Scene":
        self.hub.close()
        return self


Act = Callable[[Scene], Any]
Case = tuple[Act, str]


def faulty_load(path: str = "*", **fault: Any) -> Act:
    return lambda s: s.misbehaving(path, **fault).load()


def faulty_push(path: str = "*", **fault: Any) -> Act:
    return lambda s: s.misbehaving(path, **fault).push()


def load_with(files: Mapping[str, bytes | None], **settings: Any) -> Act:
    return lambda s: s.load_other(files, **settings)


NO_NAME = "expected org/name"
NOT_YOURS = "is not yours to write to with this token"
NOT_CACHED = "is not in the cache, and local_files_only or HF_HUB_OFFLINE forbids"
NO_MIRROR = "HF_ENDPOINT is no whole mirror"
NO_ETAG = "an ETag or a commit that is none"
NO_WEIGHTS = f"cannot download {WEIGHTS_FILE} of zoo/cells .* try again"
DAMAGED = "is damaged: its hash is not the hub's; it was removed from the cache, try again"
NO_ANSWER = "zoo/cells: no answer from the hub"
GATED = "zoo/other is gated: ask for access"
REFUSED = "zoo/cells: the hub refused the files .*"
# Each error comes at once.
LOADING: dict[str, Case] = {
    "name of no repository": (lambda s: s.load("hf-hub:zoo/a/b"), NO_NAME),
    "empty name": (lambda s: s.load("hf-hub:"), NO_NAME),
    "name with a space": (lambda s: s.load("hf-hub:org/na me"), NO_NAME),
    "no such repository": (
        lambda s: s.load("hf-hub:zoo/none", token=False),
        "does not exist, or is private and you are not logged in: .*`hf auth login`",
    ),
    "no such repository, with a token": (
        lambda s: s.load("hf-hub:zoo/none", token=s.token),
        "zoo/none does not exist, or your token may not see it",
    ),
    "private, without a token": (
        load_with({}, private=True, token=False),
        "is private and you are not logged in",
    ),
    "private, another user's token": (
        lambda s: s.load_other({}, private=True, token=s.user()),
        "your token may not see it",
    ),
    "a token that is not valid": (
        lambda s: s.load(token="hf_wrong"),
        "the token is not valid, log in again",
    ),
    "gated, without a token": (load_with({}, gated="manual", token=False), GATED),
    "gated, access not granted": (
        lambda s: s.load_other({}, gated="manual", token=s.user()),
        GATED,
    ),
    "disabled by the hub": (
        load_with({}, disabled=True),
        "the hub refuses access with this token, ask the repository's owner",
    ),
    "no such revision": (
        lambda s: s.load(f"hf-hub:{MODEL}@v9"),
        "zoo/cells has no revision 'v9': there are main",
    ),
    "no config": (
        load_with({CONFIG_FILE: None}),
        "at revision main has no config.json: it is no model of this library",
    ),
    "no weights": (load_with({WEIGHTS_FILE: None}), f"has no {WEIGHTS_FILE}: it is"),
    "only a pickle": (
        load_with({WEIGHTS_FILE: None, "model.pth": b"\x80\x02"}),
        r"but model\.pth: a pickle may run code and is never loaded.*sepc-zoo convert",
    ),
    "published weights neither on the hub nor within reach": (
        lambda s: s.load_published(),
        "cannot download fsaf_r50_sepc.coco_1x: .*SEPC_ZOO_MIRROR.* --file FILE",
    ),
    "no weights of this name": (
        lambda s: s.load("fsaf_r18_sepc", pretrained=True),
        "no weights of fsaf_r18_sepc are published.*list_models",
    ),
    "local files only, not cached": (lambda s: s.load(local_files_only=True), NOT_CACHED),
    "HF_HUB_OFFLINE, not cached": (lambda s: s.offline().load(), NOT_CACHED),
    "HF_HUB_OFFLINE, published weights": (
        lambda s: s.offline().load_published(),
        "HF_HUB_OFFLINE forbids .* or `sepc-zoo import fsaf_r50_sepc.coco_1x`",
    ),
    "published weights, server error 500": (
        lambda s: s.misbehaving(status=500).load_published(),
        "cannot download fsaf_r50_sepc.coco_1x: .* --file FILE",
    ),
    "connection refused": (lambda s: s.closed().load(), r"cannot be reached \(.*load it once"),
    "connection cut without an answer": (faulty_load(hang_up=True), r"cannot be reached \("),
    **{
        f"error {status}": (
            faulty_load(status=status, headers={"Retry-After": "30"}),
            f"answered with error {status}: try again later",
        )
        for status in (429, 500, 503)
    },
    "captive portal": (
        faulty_load(page=PORTAL),
        "answered without the headers of a hub: a login page of this network",
    ),
    "captive portal between hub and weights": (
        faulty_load("/storage/*", page=PORTAL),
        "it is incomplete, or a web page came in its place .log in to this network.; try again",
    ),
    "mirror without ETag": (faulty_load(without=("ETag", "X-Linked-ETag")), NO_MIRROR),
    "mirror without commits": (faulty_load(without=("X-Repo-Commit",)), NO_MIRROR),
    "a path for an ETag": (faulty_load(headers={"ETag": '"../../../../../../tmp/evil"'}), NO_ETAG),
    "a path for a commit": (faulty_load(headers={"X-Repo-Commit": "../../evil"}), NO_ETAG),
    "an ETag that is no name of a file": (
        faulty_load(headers={"ETag": f'"{"a" * 3000}"'}),
        NO_ETAG,
    ),
    "a size of 10^18": (
        faulty_load(headers={"X-Linked-Size": str(10**18)}),
        "announces or sends 1000000000 GB",
    ),
    "a size that is no number": (
        faulty_load("*/config.json", headers={"Content-Length": "many"}),
        "cannot be reached",
    ),
    **{
        f"redirected to {address!r}": (
            faulty_load(status=302, headers={"Location": address}),
            "cannot be reached|answered without the headers",
        )
        for address in ("http://[::1", "http://localhost:99999/x", "//", "", "file:///etc/passwd")
    },
    "weights: storage error 500": (faulty_load(**GET_WEIGHTS, status=500), NO_WEIGHTS),
    "weights: storage forbids, 403": (faulty_load(**GET_WEIGHTS, status=403), NO_WEIGHTS),
    "weights: fewer bytes than announced": (faulty_load(**GET_WEIGHTS, truncate=1000), NO_WEIGHTS),
    "weights: other bytes than announced": (faulty_load(**GET_WEIGHTS, wrong_bytes=True), DAMAGED),
    "weights: altered in the cache": (lambda s: s.load_altered(), DAMAGED),
    "weights: truncated before they were pushed": (
        lambda s: s.load_other({WEIGHTS_FILE: s.files[WEIGHTS_FILE][:-1000]}),
        "cannot be read as safetensors: .*; download it again",
    ),
    "weights: a pickle by their name": (
        load_with({WEIGHTS_FILE: b"\x80\x02." * 99}),
        "cannot be read as safetensors",
    ),
    "weights: of another model": (
        lambda s: s.load_other(
            s.config(num_classes=2, label_names=["a", "b"], category_ids=[1, 2])
        ),
        r"head\.cls\.weight is \(27, 8, 3, 3\), not \(18, 8, 3, 3\)",
    ),
    "config: of a newer version": (
        lambda s: s.load_other(s.config(telepathy=True)),
        "newer version.*telepathy.*pip install -U",
    ),
    "config: damaged": (
        lambda s: s.load_other({CONFIG_FILE: s.files[CONFIG_FILE][:99]}),
        f"{CONFIG_FILE} is no config of a model",
    ),
    "config: a billion classes": (
        lambda s: s.load_other(s.config(num_classes=10**9)),
        f"{CONFIG_FILE} is no config of a model: .*num_classes",
    ),
    "folder: not there": (
        lambda s: s.load("local-dir:nowhere"),
        "nowhere is no model folder: it has no config.json",
    ),
}
# These take as long as the client's own retries and timeouts.
SLOW: dict[str, Case] = {
    "no answer in time": (faulty_load(delay=60), r"cannot be reached \("),
    "weights: connection cut, again and again": (
        faulty_load(**GET_WEIGHTS, cut_after=1000),
        NO_WEIGHTS,
    ),
}
# Each leaves the repository as it was.
PUSHING: dict[str, Case] = {
    "push: name of no repository": (lambda s: s.push("a/b/c"), NO_NAME),
    "push: without a token": (lambda s: s.push(token=False), NOT_YOURS),
    "push: to another's repository": (lambda s: s.push(token=s.user()), NOT_YOURS),
    "push: with a token that only reads": (
        lambda s: s.push(token=s.user(organizations=["zoo"], access="read")),
        NOT_YOURS,
    ),
    "push: to an unknown organisation": (lambda s: s.push("nobody/cells"), NOT_YOURS),
    "push: connection refused": (lambda s: s.closed().push(), "no answer from the hub"),
    "push: server error 500 at first": (
        faulty_push("*/create", status=500),
        f"{REFUSED}500.*nothing was committed",
    ),
    "push: rate limit 429 at first": (faulty_push("*/create", status=429), f"{REFUSED}429"),
    "push: server error 500 at the commit": (
        faulty_push("*/commit/*", status=500),
        f"{REFUSED}500",
    ),
    "push: connection cut at the commit": (faulty_push("*/commit/*", hang_up=True), NO_ANSWER),
    "push: rate limit 429 at the commit": (faulty_push("*/commit/*", status=429), f"{REFUSED}429"),
    "push: error in the upload's plan": (
        faulty_push("*/objects/batch", status=500),
        f"{REFUSED}500",
    ),
    "push: nonsense for the upload's plan": (faulty_push("*/objects/batch", truncate=5), NO_ANSWER),
    "push: storage forbids, 403": (faulty_push(method="PUT", status=403), NOT_YOURS),
    "push: too large for the storage, 413": (
        faulty_push(method="PUT", status=413),
        f"{REFUSED}413",
    ),
    "push: storage error 500": (faulty_push(method="PUT", status=500), f"{REFUSED}500"),
    "push: connection cut while uploading": (faulty_push(method="PUT", hang_up=True), NO_ANSWER),
    "publish: collection of another": (lambda s: s.collect(s.user()), f"zoo: Models {NOT_YOURS}"),
}
# The files are committed, but the client cannot know.
LOST: dict[str, Case] = {
    "push: answer to the commit lost": (
        faulty_push("*/commit/*", truncate=0),
        "look at .* whether it has the files",
    ),
}
