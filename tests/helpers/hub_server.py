"""A Hugging Face Hub on the loopback, for tests with the real ``huggingface_hub`` client.

    with HubServer() as hub:
        token = hub.add_user("alice", organizations=["zoo"])
        hub.add_repository("zoo/model", {"config.json": b"{}"}, private=True)
        hub.misbehave("*/config.json", status=500, times=2)
        hf_hub_download("zoo/model", "config.json", endpoint=hub.endpoint, token=token)
        assert len(hub.seen("GET", "*/config.json")) == 1

It answers what our own code asks for: files, commits, pull requests, branches, tags, collections.
Large files come from ``hub.storage``, which has another host name, as on the real hub.
"""

import base64
import hashlib
import json
import os
import re
import runpy
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from loopback import LoopbackServer, QuietHandler

LARGE = (".safetensors", ".pt", ".pth", ".bin")  # kept in the storage
Files = Mapping[str, bytes]
REPOSITORY = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPOSITORY}"
PAGES = rf"/(?:(?P<kind>dataset|space)s/)?{REPOSITORY}"
COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"


class Refusal(Exception):  # noqa: N818
    """An answer that the client turns into an exception; ``code`` is its X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, {"error": message, **content}, headers)


@dataclass
class Answer:
    """Status, content (bytes, or JSON values) and headers."""

    status: int = 200
    content: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        data = self.content
        return data if isinstance(data, bytes) else json.dumps(data).encode()

    def part(self, wanted: str | None) -> "Answer":
        """The part that a ``Range`` header asks for; the client asks for all from some byte on."""
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if match is None or "Accept-Ranges" not in self.headers:
            return self
        start, size = int(match[1]), len(self.body)
        headers = self.headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return Answer(206, self.body[start:], headers)


@dataclass
class Fault:
    """What goes wrong with requests for ``path``, a pattern such as ``*/config.json``."""

    path: str = "*"
    method: str = "*"
    times: float = float("inf")  # number of requests that suffer
    status: int | None = None  # the answer
    page: str | None = None  # a web page in place of the answer
    without: tuple[str, ...] = ()  # headers that are left out
    headers: Mapping[str, str] = field(default_factory=dict)  # more headers of the answer
    delay: float = 0  # seconds before the answer
    hang_up: bool = False  # close the connection without an answer
    cut_after: int | None = None  # close the connection after so many bytes of the body
    truncate: int | None = None  # send a complete answer with so many bytes of the body
    wrong_bytes: bool = False  # invert every bit of the body
    rate: float | None = None  # bytes of the body per second

    def spoil(self, body: bytes) -> bytes:
        return (bytes(b ^ 0xFF for b in body) if self.wrong_bytes else body)[: self.truncate]


@dataclass
class User:
    name: str
    organizations: tuple[str, ...]
    access: str  # of the token: "read" or "write"

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


@dataclass
class Repository:
    id: str
    kind: str = "model"  # or "dataset", "space"
    private: bool = False
    gated: bool | str = False
    disabled: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files of each commit
    refs: dict[str, str] = field(default_factory=dict)  # commit of "refs/heads/main" and others

    def __post_init__(self) -> None:
        self._add({}, "refs/heads/main")  # the hub begins every repository with a commit of its own

    def ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag, pull request or commit."""
        commit = self.refs.get(self.ref(revision) or "", revision)
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def contents(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]

    def commit(self, changes: Files, revision: str = "main") -> str:
        """Add a commit with these files to a branch; its id."""
        return self._add({**self.contents(revision), **changes}, self.ref(revision) or revision)

    def _add(self, files: dict[str, bytes], ref: str) -> str:
        self.refs[ref] = secrets.token_hex(20)
        self.commits[self.refs[ref]] = files
        return self.refs[ref]


@dataclass
class Request:
    """A request, and what became of it."""

    method: str
    url: str  # path and query as they came
    headers: Mapping[str, str]
    body: bytes
    status: int | None = None  # None: no answer
    sent: int = 0  # bytes of the body that went out
    file: str | None = None  # org/name/path where a file of a repository was asked for

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.url).path)

    @property
    def token(self) -> str | None:
        scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
        return token if scheme == "Bearer" else None

    @property
    def makes_pull_request(self) -> bool:
        return parse_qs(urlsplit(self.url).query).get("create_pr") == ["1"]

    def json(self) -> Any:
        return json.loads(self.body)


class HubServer(LoopbackServer):
    """A hub that listens while it is entered as a context.

    Leaving the context raises what went wrong inside of the server, and names requests that wanted
    to go elsewhere (see ``client_environment``).
    """

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.endpoint = self.address
        self.storage = f"http://localhost:{self.server_port}/storage"
        self.users: dict[str, User] = {}  # by token
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind and id
        self.collections: dict[str, dict[str, Any]] = {}  # by slug
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.problems: list[str] = []
        self.lock = threading.RLock()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close()
        if kind is None and self.problems:
            raise AssertionError("\n".join(self.problems))

    def add_user(self, name: str, organizations: Iterable[str] = (), access: str = "write") -> str:
        """The token of a new user."""
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = User(name, tuple(organizations), access)
        return token

    def add_repository(self, id: str, files: Files | None = None, **settings: Any) -> Repository:
        """A repository with these files; settings as in ``Repository``."""
        repository = Repository(id, **settings)
        self.repositories[repository.kind, id] = repository
        if files:
            repository.commit(files)
        return repository

    def repository(self, id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, id]

    def misbehave(self, path: str = "*", **fault: Any) -> None:
        """Let something go wrong from now on; see ``Fault``. The first that fits is taken."""
        self.faults.append(Fault(path, **fault))

    def behave(self) -> None:
        self.faults.clear()

    def seen(self, method: str = "*", path: str = "*") -> list[Request]:
        """The requests until now that fit two patterns."""
        return [
            request
            for request in list(self.requests)
            if fnmatchcase(request.method, method) and fnmatchcase(request.path, path)
        ]

    def bytes_served(self, file: str) -> int:
        """Bytes of ``org/name/path`` that went out."""
        return sum(request.sent for request in list(self.requests) if request.file == file)

    def fault_for(self, request: Request) -> Fault:
        for fault in self.faults:
            fits = fnmatchcase(request.path, fault.path)
            if fits and fnmatchcase(request.method, fault.method) and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault()

    def answer(self, request: Request) -> Answer:
        if not request.url.startswith("/"):  # it came to us as its proxy
            self.problems.append(f"a request escaped: {request.method} {request.url}")
            return Refusal(403, f"this hub passes nothing on to {request.url}").answer
        try:
            for method, pattern, function in ROUTES:
                match = pattern.fullmatch(request.path)
                if match and request.method in method:
                    groups = match.groupdict()
                    groups |= {"kind": groups["kind"] or "model"} if "kind" in groups else {}
                    result = function(self, request, **groups)
                    return result if isinstance(result, Answer) else Answer(content=result)
            raise NotImplementedError(f"{request.method} {request.url}")
        except Refusal as refusal:
            return refusal.answer
        except Exception:
            self.problems.append(traceback.format_exc())
            return Answer(500)

    def user(self, request: Request, namespace: str | None = None) -> User | None:
        """Who asks; with a namespace, somebody who may write there."""
        if request.token is not None and request.token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        user = self.users.get(request.token or "")
        if namespace is not None and user is None:
            raise Refusal(401, "Invalid username or password.")
        if namespace is not None and not (user.owns(namespace) and user.access == "write"):
            raise Refusal(403, f"Forbidden: you cannot write to {namespace} with this token")
        return user

    def find(self, request: Request, kind: str, id: str, *, write: bool = False) -> Repository:
        """A repository that the user of a request may see, or write to."""
        repository, user = self.repositories.get((kind, id)), self.user(request)
        owned = user is not None and user.owns(id.partition("/")[0])
        if repository is None or (repository.private and not owned):
            # The code is our addition: without it the client takes a 401 of another address than
            # https://huggingface.co for a wrong token.
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if repository.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        if repository.gated and not owned:
            message = f"Access to {kind} {id} is restricted"
            raise Refusal(403 if user else 401, message, "GatedRepo")
        if write:
            self.user(request, id.partition("/")[0])
        return repository


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []


def route(methods: str, pattern: str) -> Callable[[Callable], Callable]:
    """Let a function answer; it gets the hub, the request and the groups of the pattern."""

    def register(function: Callable) -> Callable:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return register


@route("HEAD GET", rf"{PAGES}/resolve/(?P<revision>.+?)/(?P<path>[^/]+)")
def file(hub, request, kind, id, revision, path):
    repository = hub.find(request, kind, id)
    commit = repository.resolve(revision)
    headers = {"X-Repo-Commit": commit}
    data = repository.commits[commit].get(path)
    if data is None:
        missing = Refusal(404, "Entry not found", "EntryNotFound").answer
        return Answer(404, missing.content, headers | missing.headers)
    if not path.endswith(LARGE):
        request.file = f"{id}/{path}"
        blob = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
        return Answer(200, data, headers | {"ETag": f'"{blob}"', "Accept-Ranges": "bytes"})
    oid = hashlib.sha256(data).hexdigest()
    hub.large_files[oid] = data
    headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data))}
    return Answer(302, headers=headers | {"Location": f"{hub.storage}/{oid}/{id}/{quote(path)}"})


@route("GET PUT", "/storage/(?P<oid>[0-9a-f]{64})(?:/(?P<file>.+))?")
def large_file(hub, request, oid, file):
    if request.headers["Authorization"] is not None:
        raise Refusal(400, "Only one auth mechanism allowed")  # the address is signed
    if request.method == "PUT":
        assert hashlib.sha256(request.body).hexdigest() == oid
        hub.large_files[oid] = request.body
        return Answer()
    request.file = file
    return Answer(200, hub.large_files[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


@route("POST", "/api/repos/create")
def create_repository(hub, request):
    wish = request.json()
    kind, id = wish.get("type") or "model", f"{wish['organization']}/{wish['name']}"
    hub.user(request, wish["organization"])
    url = {"url": f"{hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{id}"}
    if (kind, id) in hub.repositories:
        raise Refusal(409, f"You already created this {kind} repo", **url)
    private = wish.get("private") or wish.get("visibility") == "private"
    hub.add_repository(id, kind=kind, private=bool(private))
    return url | {"name": id, "id": id}


@route("GET", rf"{API}(?:/revision/(?P<revision>.+))?")
def info(hub, request, kind, id, revision):
    repository = hub.find(request, kind, id)
    commit = repository.resolve(revision or "main")
    files = [{"rfilename": path} for path in repository.commits[commit]]
    return {"id": id, "modelId": id, "sha": commit, "tags": [], "siblings": files}


@route("GET", rf"{API}/tree/(?P<revision>.+)")
def tree(hub, request, kind, id, revision):
    files = hub.find(request, kind, id).contents(revision)
    return [{"type": "file", "path": p, "oid": "", "size": len(d)} for p, d in files.items()]


@route("GET", f"{API}/refs")
def refs(hub, request, kind, id):
    found: dict[str, list[Any]] = {"heads": [], "tags": [], "pr": []}
    for ref, commit in hub.find(request, kind, id).refs.items():
        _, group, name = ref.split("/", 2)
        found[group].append({"name": name, "ref": ref, "targetCommit": commit})
    return {"branches": found["heads"], "tags": found["tags"], "converts": []}


@route("POST", f"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def create_ref(hub, request, kind, id, what, name):
    repository, wish = hub.find(request, kind, id, write=True), request.json()
    start = name if what == "tag" else wish.get("startingPoint", "main")
    ref = f"refs/tags/{wish['tag']}" if what == "tag" else f"refs/heads/{name}"
    if ref in repository.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repository.refs[ref] = repository.resolve(start)
    return {}


@route("POST", "/api/validate-yaml")
def validate_card(*_):
    return {"errors": [], "warnings": []}


@route("POST", rf"{API}/preupload/(?P<revision>.+)")
def preupload(hub, request, kind, id, revision):
    hub.find(request, kind, id, write=not request.makes_pull_request).resolve(revision)
    paths = [wish["path"] for wish in request.json()["files"]]
    modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in paths]
    return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]}


@route("POST", rf"{PAGES}\.git/info/lfs/objects/batch")
def upload_plan(hub, request, kind, id):
    hub.find(request, kind, id)
    objects = [
        wish | {"actions": {"upload": {"href": f"{hub.storage}/{wish['oid']}"}}}
        for wish in request.json()["objects"]
    ]
    return {"transfer": "basic", "objects": objects}


@route("POST", rf"{API}/commit/(?P<revision>.+)")
def commit(hub, request, kind, id, revision):
    repository = hub.find(request, kind, id, write=not request.makes_pull_request)
    url = f"{hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{id}"
    result = {"success": True}
    if request.makes_pull_request:
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        repository.refs[f"refs/pr/{number}"] = repository.resolve(revision)
        revision = f"refs/pr/{number}"
        result["pullRequestUrl"] = f"{url}/discussions/{number}"
    changes = {}
    for key, value in (json.loads(line).values() for line in request.body.splitlines() if line):
        if key == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            changes[value["path"]] = hub.large_files[value["oid"]]
    made = repository.commit(changes, revision)
    return result | {"commitOid": made, "commitUrl": f"{url}/commit/{made}"}


@route("POST", "/api/collections")
def create_collection(hub, request):
    wish = request.json()
    hub.user(request, wish["namespace"])
    slug = f"{wish['namespace']}/{wish['title'].lower().replace(' ', '-')}"
    if slug in hub.collections:
        raise Refusal(409, "This collection already exists", slug=slug)
    unread = {"theme": "orange", "upvotes": 0, "lastUpdated": "2026-01-01T00:00:00.000Z"}
    owner = {"name": wish["namespace"]}
    hub.collections[slug] = {"slug": slug, "owner": owner, "items": [], "position": 0, **unread}
    hub.collections[slug] |= {"title": wish["title"], "private": wish.get("private", False)}
    return hub.collections[slug]


@route("GET", COLLECTION)
def collection(hub, _, slug):
    return hub.collections[slug]


@route("POST", f"{COLLECTION}/items")
def add_item(hub, request, slug):
    hub.user(request, slug.partition("/")[0])
    items, item = hub.collections[slug]["items"], request.json()["item"]
    if any(old["id"] == item["id"] for old in items):
        raise Refusal(409, "This item is already in the collection")
    items.append(item | {"_id": secrets.token_hex(12), "position": len(items)})
    return hub.collections[slug]


class _Handler(QuietHandler):
    server: HubServer

    def handle_one_method(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        request = Request(self.command, self.path, self.headers, body)
        with hub.lock:
            hub.requests.append(request)
            fault = hub.fault_for(request)
        if (fault.delay and hub.closing.wait(fault.delay)) or fault.hang_up:
            return
        with hub.lock:
            if fault.page is not None:
                answer = Answer(200, fault.page.encode(), {"Content-Type": "text/html"})
            elif fault.status is None:
                answer = hub.answer(request).part(request.headers["Range"])
            else:
                answer = Refusal(fault.status, f"Something went wrong ({fault.status})").answer
        self.send(request, answer, fault)

    do_HEAD = do_GET = do_POST = do_PUT = do_CONNECT = handle_one_method  # noqa: N815

    def send(self, request: Request, answer: Answer, fault: Fault) -> None:
        body = answer.body if request.method == "HEAD" else fault.spoil(answer.body)
        request.status = answer.status
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(body)), **answer.headers, **fault.headers}
        for name, value in headers.items():
            if name not in fault.without:
                self.send_header(name, value)
        self.end_headers()
        body = b"" if request.method == "HEAD" else body[: fault.cut_after]
        step = max(1, len(body) if fault.rate is None else int(fault.rate / 20))
        for start in range(0, len(body), step):
            request.sent += len(body[start : start + step])
            self.wfile.write(body[start : start + step])
            if fault.rate is not None and self.server.closing.wait(step / fault.rate):
                break


def client_environment(hub: HubServer, home: Path) -> dict[str, str]:
    """The environment of a process whose client knows this hub alone; its cache is in ``home``.

    The hub is also its proxy for all other hosts: it refuses these requests and remembers them.
    """
    ours = ("HF_", "HUGGING", "SSL_CERT", "TRANSFORMERS_OFFLINE")
    proxies = {"http_proxy": hub.endpoint, "https_proxy": hub.endpoint}
    proxies["no_proxy"] = "127.0.0.1,localhost"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        **proxies,
        **{name.upper(): value for name, value in proxies.items()},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "SEPC_ZOO_MIRROR": "http://127.0.0.1:1",  # no publisher is within reach
        "SSL_CERT_DIR": str(home),  # a session reads all certificates there are, which takes time
    }


def point_client_at(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of this process know this hub alone until the test is over.

    The client reads its environment once, at import, and its modules copy the constants they need.
    """
    from huggingface_hub import constants, hf_api

    wanted = client_environment(hub, home)
    for name in os.environ.keys() - wanted.keys():
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    new, old = runpy.run_path(constants.__file__), dict(vars(constants))
    changed = [name for name in new if name.isupper() and old.get(name) != new[name]]
    for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "huggingface_hub"]:
        for name in changed:
            if vars(module).get(name) == old[name]:
                monkeypatch.setattr(module, name, new[name])
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    forget_connections()


def forget_connections() -> None:
    """Let the client make a new session, which reads proxies and offline mode again."""
    from huggingface_hub.utils import _http

    (getattr(_http, "close_session", None) or _http.reset_sessions)()  # before 1.0
