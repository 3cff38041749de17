"""The part of the hub's API that the client needs: a table of routes, from a request to an answer.

Two answers are not quite the hub's. Without a token, it answers a 401 without ``X-Error-Code`` for
a repository that is hidden or missing; the client takes this for RepoNotFound where the address
begins with https. On the loopback it does not, so the code is sent. And a small file is sent at
once, rather than after a redirect to a cache.
"""

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from hub_server.faults import Fault
from hub_server.store import (
    MAIN,
    Collection,
    Commit,
    Discussion,
    File,
    Refusal,
    Repository,
    User,
    git_hash,
    is_lfs,
    now,
)

if TYPE_CHECKING:
    from hub_server.server import HubServer, Request

REPOSITORY = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPOSITORY}"
PAGES = rf"/(?:(?P<kind>dataset|space)s/)?{REPOSITORY}"
COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
SIGNATURE = secrets.token_hex(8)  # the storage lets in who has it, as signed addresses do


@dataclass
class Answer:
    status: int = 200
    content: Any = b""  # bytes as they are; otherwise JSON
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False  # whether a part of it may be had

    @property
    def body(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps(self.content).encode()


@dataclass
class Call:
    """A request on its way through a route."""

    hub: "HubServer"
    request: "Request"
    user: User | None  # None: without a token

    def require_user(self) -> User:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return self.user

    def require_owner(self, namespace: str, message: str) -> User:
        user = self.require_user()
        if not user.owns(namespace):
            raise Refusal(403, message)
        if user.access != "write":
            raise Refusal(403, "Forbidden: you must use a write token to write to a repository.")
        return user

    def repository(self, kind: str, id: str) -> Repository:
        """A repository that the user may see."""
        repository = self.hub.store.repositories.get((kind, id))
        hidden = repository is not None and repository.private and not self.owns(repository)
        if repository is None or hidden:
            status = 401 if self.user is None else 404
            raise Refusal(status, "Repository not found", "RepoNotFound")
        if repository.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        return repository

    def pass_gate(self, repository: Repository) -> None:
        if not repository.gated or self.owns(repository):
            return
        restricted = f"Access to {repository.kind} {repository.id} is restricted"
        if self.user is None:
            message = f"{restricted}. You must be authenticated to access it. Please log in."
            raise Refusal(401, message, "GatedRepo")
        if self.user.name not in repository.granted:
            message = f"{restricted} and you are not in the authorized list."
            raise Refusal(403, message, "GatedRepo")

    def repository_to_write(self, kind: str, id: str, by_request: bool = False) -> Repository:
        """A repository that the user may write to, or open a pull request for."""
        repository = self.repository(kind, id)
        if by_request:
            self.require_user()
        else:
            hint = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
            self.require_owner(repository.namespace, hint)
        return repository

    def query(self, name: str) -> str | None:
        return self.request.query.get(name, [None])[0]

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.request.body.decode())

    def page(self, entries: list[Any]) -> Answer:
        """A page of a list, with a link to the next where there is one."""
        limit = min(int(self.query("limit") or self.hub.page_size), self.hub.page_size)
        start = int(self.query("cursor") or 0)
        answer = Answer(content=entries[start : start + limit])
        if start + limit < len(entries):
            query = self.request.query | {"cursor": [str(start + limit)]}
            path = urlsplit(self.request.url).path
            url = f"{self.hub.endpoint}{path}?{urlencode(query, doseq=True)}"
            answer.headers["Link"] = f'<{url}>; rel="next"'
        return answer

    def owns(self, repository: Repository) -> bool:
        return self.user is not None and self.user.owns(repository.namespace)


Route: TypeAlias = Callable[..., Any]
_routes: list[tuple[str, str, re.Pattern[str], Route]] = []  # origin, method, path, function


def route(methods: str, pattern: str, origin: str = "hub") -> Callable[[Route], Route]:
    """Let a function answer ``METHOD path``; it gets a ``Call`` and the groups of the pattern."""

    def register(function: Route) -> Route:
        _routes.extend((origin, m, re.compile(pattern), function) for m in methods.split())
        return function

    return register


def answer(hub: "HubServer", request: "Request") -> Answer:
    """What the hub answers.

    Raises:
        Refusal: the answer is one that the client turns into an exception.
    """
    if is_elsewhere(request.url):
        raise Refusal(403, f"this hub passes nothing on to {request.url}")
    path = urlsplit(request.url).path
    for origin, method, pattern, function in _routes:
        match = pattern.fullmatch(path)
        if match and (origin, method) == (request.origin, request.method):
            groups = {
                name: None if value is None else unquote(value)
                for name, value in match.groupdict().items()
            }
            if "kind" in groups:
                groups["kind"] = groups["kind"] or "model"
            result = function(Call(hub, request, _user(hub, request)), **groups)
            return result if isinstance(result, Answer) else Answer(content=result)
    raise Refusal(501, f"the test's {request.origin} does not speak {request.method} {request.url}")


def is_elsewhere(url: str) -> bool:
    """Whether a request wanted this server to pass it on to another host."""
    return not url.startswith("/")


def failure(fault: Fault) -> Answer:
    """The answer of a fault with a status."""
    message = fault.message or f"Something went wrong on demand ({fault.status})"
    refusal = Refusal(fault.status or 500, message, fault.code)
    return Answer(refusal.status, refusal.content, refusal.headers)


def part(whole: Answer, header: str) -> Answer:
    """The part of an answer that a ``Range`` header asks for."""
    data, size = whole.body, len(whole.body)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or not any(match.groups()):
        return whole
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Answer(416, headers={"Content-Range": f"bytes */{size}"})
    headers = whole.headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(206, data[start:stop], headers)


def _user(hub: "HubServer", request: "Request") -> User | None:
    if request.origin == "storage" or request.token is None:
        return None
    if request.token not in hub.store.users:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return hub.store.users[request.token]


# Users


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> dict[str, Any]:
    user = call.require_user()
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.access}}
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations]
    person = {"type": "user", "id": git_hash("user", user.name.encode())[:24], "name": user.name}
    return person | {"fullname": user.name, "orgs": orgs, "auth": token}


# Files


@route("HEAD GET", rf"{PAGES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: Call, kind: str, id: str, revision: str, path: str) -> Answer:
    repository = call.repository(kind, id)
    call.pass_gate(repository)
    commit = repository.resolve(revision)
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(path)
    if file is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        return Answer(404, refusal.content, headers | refusal.headers)
    headers["Accept-Ranges"] = "bytes"
    if not file.lfs:
        call.request.file = f"{id}/{path}"
        return Answer(200, file.data, headers | {"ETag": f'"{file.etag}"'}, ranges=True)
    where = f"{call.hub.storage}/{file.sha256}/{id}/{quote(path)}?signature={SIGNATURE}"
    linked = {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
    return Answer(302, headers=headers | linked | {"Location": where})


@route("HEAD GET", "/(?P<oid>[0-9a-f]{64})/(?P<file>.+)", "storage")
def download(call: Call, oid: str, file: str) -> Answer:
    _check_signature(call)
    data = call.hub.store.large_file(oid)
    call.request.file = file
    return Answer(200, data, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, ranges=True)


@route("PUT", "/(?P<oid>[0-9a-f]{64})", "storage")
def upload(call: Call, oid: str) -> Answer:
    _check_signature(call)
    file = File(call.request.body, lfs=True)
    if file.sha256 != oid:
        raise Refusal(400, "The content does not have the SHA-256 that was announced")
    call.hub.store.storage[oid] = file.data
    return Answer()


def _check_signature(call: Call) -> None:
    if call.request.headers["Authorization"] is not None:
        raise Refusal(400, "Only one auth mechanism allowed")
    if call.query("signature") != SIGNATURE:
        raise Refusal(403, "The signature does not fit or has expired")


# Repositories


@route("POST", "/api/repos/create")
def create_repository(call: Call) -> dict[str, Any]:
    wish = call.request.json()
    kind = wish.get("type") or "model"
    namespace = wish.get("organization") or call.require_user().name
    id = f"{namespace}/{wish['name']}"
    call.require_owner(
        namespace, f'You don\'t have the rights to create a {kind} under "{namespace}"'
    )
    url = f"{call.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{id}"
    if (kind, id) in call.hub.store.repositories:
        raise Refusal(409, f"You already created this {kind} repo", url=url)
    call.hub.store.add_repository(id, kind=kind, private=_is_private(wish))
    return {"url": url, "name": id, "id": id}


@route("DELETE", "/api/repos/delete")
def delete_repository(call: Call) -> str:
    wish = call.request.json()
    kind = wish.get("type") or "model"
    id = f"{wish.get('organization') or call.require_user().name}/{wish['name']}"
    call.repository_to_write(kind, id)
    del call.hub.store.repositories[kind, id]
    return "OK"


@route("PUT", f"{API}/settings")
def change_settings(call: Call, kind: str, id: str) -> dict[str, Any]:
    repository, wish = call.repository_to_write(kind, id), call.request.json()
    repository.private = _is_private(wish, repository.private)
    repository.gated = wish.get("gated", repository.gated)
    return {"private": repository.private, "gated": repository.gated}


@route("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?")
def repository_info(call: Call, kind: str, id: str, revision: str | None) -> dict[str, Any]:
    repository = call.repository(kind, id)
    info = _describe(repository, repository.resolve(revision or "main"))
    if call.query("blobs") is None:
        info["siblings"] = [{"rfilename": file["rfilename"]} for file in info["siblings"]]
    return info


@route("GET", f"{API}/auth-check(?P<write>/write)?")
def check_access(call: Call, kind: str, id: str, write: str | None) -> dict[str, Any]:
    if write:
        call.repository_to_write(kind, id)
    call.pass_gate(call.repository(kind, id))
    return {}


@route("GET", "/api/(?P<kind>model|dataset|space)s")
def list_repositories(call: Call, kind: str) -> Answer:
    query = call.request.query
    tags = {*query.get("filter", []), *query.get("pipeline_tag", [])}
    found = []
    for repository in call.hub.store.repositories.values():
        hidden = repository.private and not call.owns(repository)
        if repository.kind != kind or hidden or repository.disabled:
            continue
        info = _describe(repository, repository.resolve("main"))
        author = call.query("author") or repository.namespace
        named = (call.query("search") or "").lower() in repository.id.lower()
        if author == repository.namespace and named and tags <= set(info["tags"]):
            found.append(info)
    found.sort(key=lambda info: info["createdAt"], reverse=True)
    for info in found:
        del info["siblings"], info["cardData"]
    return call.page(found)


def _describe(repository: Repository, commit: Commit) -> dict[str, Any]:
    card = _read_card(commit)
    pipeline, library = card.get("pipeline_tag"), card.get("library_name")
    tags = [tag for tag in (library, pipeline, *card.get("tags", [])) if tag]
    if "license" in card:
        tags.append(f"license:{card['license']}")
    return {
        "_id": git_hash("id", repository.id.encode())[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.id,
        "createdAt": repository.date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": repository.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "pipeline_tag": pipeline,
        "library_name": library,
        "cardData": card,
        "siblings": [_sibling(path, file) for path, file in sorted(commit.files.items())],
    }


def _sibling(path: str, file: File) -> dict[str, Any]:
    entry = {"rfilename": path, "size": len(file.data), "blobId": file.blob_id}
    if file.lfs:
        size = {"size": len(file.data), "pointerSize": len(file.pointer)}
        entry["lfs"] = {"sha256": file.sha256} | size
    return entry


def _read_card(commit: Commit) -> dict[str, Any]:
    """The front matter of README.md, as far as it is words and lists of words."""
    if "README.md" not in commit.files:
        return {}
    match = re.match(r"---\n(.*?)\n---", commit.files["README.md"].data.decode(), re.DOTALL)
    card: dict[str, Any] = {}
    for key, word, words in re.findall(
        r"^(\w+):(?:[ \t]+(\S.*)|((?:\n[ \t]*- [^\n:]+)+))$", match[1] if match else "", re.M
    ):
        card[key] = word or re.findall(r"- (.+)", words)
    return card


def _is_private(wish: dict[str, Any], default: bool = False) -> bool:
    if "visibility" in wish:
        return wish["visibility"] == "private"
    return bool(wish.get("private", default))  # by which older clients say it


# Trees, commits and refs


@route("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def list_tree(call: Call, kind: str, id: str, revision: str, folder: str | None) -> Answer:
    entries = dict(_entries(call.repository(kind, id).resolve(revision)))
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in sorted(entries) if path.startswith(prefix)]
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    if (call.query("recursive") or "").lower() not in ("true", "1"):
        inside = [path for path in inside if "/" not in path.removeprefix(prefix)]
    return call.page([entries[path] for path in inside])


@route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Call, kind: str, id: str, revision: str) -> list[Any]:
    entries = dict(_entries(call.repository(kind, id).resolve(revision)))
    return [entries[path] for path in call.form().get("paths", []) if path in entries]


def _entries(commit: Commit) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files and folders by path."""
    for path, file in commit.files.items():
        entry = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.data)}
        if file.lfs:
            size = {"size": len(file.data), "pointerSize": len(file.pointer)}
            entry["lfs"] = {"oid": file.sha256} | size
        yield path, entry
        parts = path.split("/")[:-1]
        for depth in range(len(parts)):
            folder = "/".join(parts[: depth + 1])
            oid = git_hash("tree", f"{commit.id}/{folder}".encode())
            yield folder, {"type": "directory", "path": folder, "oid": oid, "size": 0}


@route("GET", rf"{API}/commits/(?P<revision>[^/]+)")
def list_commits(call: Call, kind: str, id: str, revision: str) -> Answer:
    repository = call.repository(kind, id)
    commit: Commit | None = repository.resolve(revision)
    history = []
    while commit is not None:
        authors = [{"user": commit.author}]
        text = {"title": commit.title, "message": commit.message}
        history.append({"id": commit.id, "authors": authors, "date": commit.date} | text)
        commit = repository.commits[commit.parent] if commit.parent else None
    return call.page(history)


@route("GET", f"{API}/refs")
def list_refs(call: Call, kind: str, id: str) -> dict[str, Any]:
    refs: dict[str, list[Any]] = {
        name: [] for name in ("branches", "tags", "converts", "pullRequests")
    }
    groups = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/pr/": "pullRequests"}
    for ref, commit in call.repository(kind, id).refs.items():
        prefix = next(prefix for prefix in groups if ref.startswith(prefix))
        name = ref.removeprefix(prefix)
        refs[groups[prefix]].append({"name": name, "ref": ref, "targetCommit": commit})
    return refs


@route("POST", f"{API}/branch/(?P<name>[^/]+)")
def create_branch(call: Call, kind: str, id: str, name: str) -> dict[str, Any]:
    repository = call.repository_to_write(kind, id)
    if name.startswith("refs/"):
        raise Refusal(400, f"Invalid reference for a branch: {name}")
    start = call.request.json().get("startingPoint") or "main"
    return _create_ref(repository, f"refs/heads/{name}", start)


@route("POST", f"{API}/tag/(?P<revision>[^/]+)")
def create_tag(call: Call, kind: str, id: str, revision: str) -> dict[str, Any]:
    repository = call.repository_to_write(kind, id)
    return _create_ref(repository, f"refs/tags/{call.request.json()['tag']}", revision)


def _create_ref(repository: Repository, ref: str, revision: str) -> dict[str, Any]:
    commit = repository.resolve(revision)
    if ref in repository.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repository.refs[ref] = commit.id
    return {}


@route("DELETE", f"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def delete_ref(call: Call, kind: str, id: str, what: str, name: str) -> dict[str, Any]:
    repository = call.repository_to_write(kind, id)
    ref = f"refs/{'heads' if what == 'branch' else 'tags'}/{name}"
    if ref not in repository.refs:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    if ref == MAIN:
        raise Refusal(403, "The main branch cannot be deleted")
    del repository.refs[ref]
    return {}


# Uploads


@route("POST", "/api/validate-yaml")
def validate_card(call: Call) -> dict[str, Any]:
    if call.request.json()["content"].startswith("---\n"):
        return {"errors": [], "warnings": []}
    missing = {"message": "empty or missing yaml metadata in repo card"}
    return {"errors": [], "warnings": [missing]}


@route("POST", rf"{API}/preupload/(?P<revision>[^/]+)")
def preupload(call: Call, kind: str, id: str, revision: str) -> dict[str, Any]:
    by_request = call.query("create_pr") == "1" or revision.startswith("refs/pr/")
    commit = call.repository_to_write(kind, id, by_request).resolve(revision)
    files = []
    for wish in call.request.json()["files"]:
        mode = "lfs" if is_lfs(wish["path"], wish["size"]) else "regular"
        file = {"path": wish["path"], "uploadMode": mode, "shouldIgnore": False}
        if wish["path"] in commit.files:
            file["oid"] = commit.files[wish["path"]].etag
        files.append(file)
    return {"commitOid": commit.id, "files": files}


@route("POST", rf"{PAGES}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call, kind: str, id: str) -> dict[str, Any]:
    call.repository(kind, id)
    call.require_user()
    objects = []
    for wish in call.request.json()["objects"]:
        thing = {"oid": wish["oid"], "size": wish["size"]}
        if wish["oid"] not in call.hub.store.storage:
            put = f"{call.hub.storage}/{wish['oid']}?signature={SIGNATURE}"
            prefix = "" if kind == "model" else f"{kind}s/"
            verify = f"{call.hub.endpoint}/{prefix}{id}.git/info/lfs/objects/verify"
            thing["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
        objects.append(thing)
    return {"transfer": "basic", "objects": objects}


@route("POST", rf"{PAGES}\.git/info/lfs/objects/verify")
def lfs_verify(call: Call, kind: str, id: str) -> dict[str, Any]:
    call.repository(kind, id)
    wish = call.request.json()
    if len(call.hub.store.storage.get(wish["oid"], b"")) != wish["size"]:
        raise Refusal(404, "The file has not been uploaded")
    return {}


@route("POST", rf"{API}/commit/(?P<revision>[^/]+)")
def commit(call: Call, kind: str, id: str, revision: str) -> dict[str, Any]:
    by_request = call.query("create_pr") == "1"
    own_request = revision.startswith("refs/pr/")
    repository = call.repository_to_write(kind, id, by_request or own_request)
    lines = [json.loads(line) for line in call.request.body.splitlines() if line]
    header = next(line["value"] for line in lines if line["key"] == "header")
    parent, title, author = header.get("parentCommit"), header["summary"], call.require_user().name
    changes = _read_changes(call, repository.resolve(revision), lines)
    url = f"{call.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{id}"
    result = {"success": True}
    if by_request:
        base = repository.resolve(parent) if parent else repository.resolve(revision)
        target = repository.ref_to_write(revision)
        discussion = repository.open_discussion(title, author, base)
        discussion.target, revision, parent = target, discussion.ref, None
        result["pullRequestUrl"] = f"{url}/discussions/{discussion.num}"
    made = repository.write(
        changes, revision, title=title, message=header["description"], author=author, parent=parent
    )
    return result | {"commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}"}


def _read_changes(call: Call, head: Commit, lines: list[dict[str, Any]]) -> dict[str, File | None]:
    changes: dict[str, File | None] = {}
    for key, value in ((line["key"], line["value"]) for line in lines):
        if key == "file":
            changes[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            changes[value["path"]] = File(call.hub.store.large_file(value["oid"]), lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            path = value["path"]
            gone = [p for p in head.files if p == path or p.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            changes |= dict.fromkeys(gone)
    return changes


# Discussions and pull requests


@route("GET", f"{API}/discussions")
def list_discussions(call: Call, kind: str, id: str) -> dict[str, Any]:
    repository = call.repository(kind, id)
    entries = [_describe_discussion(repository, d) for d in reversed(repository.discussions)]
    return {"discussions": entries, "count": len(entries), "start": 0}


@route("POST", f"{API}/discussions")
def open_discussion(call: Call, kind: str, id: str) -> dict[str, Any]:
    repository, user = call.repository(kind, id), call.require_user()
    wish = call.request.json()
    base = repository.resolve("main") if wish.get("pullRequest") else None
    return {"num": repository.open_discussion(wish["title"], user.name, base).num}


@route("GET", rf"{API}/discussions/(?P<num>\d+)")
def discussion_details(call: Call, kind: str, id: str, num: str) -> dict[str, Any]:
    repository = call.repository(kind, id)
    return _describe_discussion(repository, _discussion(repository, num))


@route("POST", rf"{API}/discussions/(?P<num>\d+)/merge")
def merge(call: Call, kind: str, id: str, num: str) -> dict[str, Any]:
    repository = call.repository_to_write(kind, id)
    request = _discussion(repository, num)
    if request.base is None or request.status in ("closed", "merged"):
        raise Refusal(400, f"#{num} cannot be merged: it is {request.status}")
    repository.merge(request, call.require_user().name)
    return _status_event(request)


@route("POST", rf"{API}/discussions/(?P<num>\d+)/status")
def change_status(call: Call, kind: str, id: str, num: str) -> dict[str, Any]:
    discussion = _discussion(call.repository_to_write(kind, id), num)
    discussion.status = call.request.json()["status"]
    return {"newStatus": _status_event(discussion)}


def _discussion(repository: Repository, num: str) -> Discussion:
    if int(num) > len(repository.discussions):
        raise Refusal(404, f"There is no discussion {num}")
    return repository.discussions[int(num) - 1]


def _describe_discussion(repository: Repository, discussion: Discussion) -> dict[str, Any]:
    merged = {"mergeCommitId": discussion.merge_commit} if discussion.merge_commit else {}
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "status": discussion.status,
        "createdAt": discussion.date,
        "repo": {"name": repository.id, "type": repository.kind},
        "isPullRequest": discussion.base is not None,
        "events": [],
        "changes": {"base": discussion.target} | merged,
        "filesWithConflicts": [],
    }


def _status_event(discussion: Discussion) -> dict[str, Any]:
    event = {"id": secrets.token_hex(12), "type": "status-change", "createdAt": now()}
    return event | {"author": {"name": discussion.author}, "data": {"status": discussion.status}}


# Collections


@route("GET", "/api/collections")
def list_collections(call: Call) -> Answer:
    owner, item = call.query("owner"), call.query("item")
    found = []
    for collection in call.hub.store.collections.values():
        shown = _may_see(call, collection) and owner in (None, collection.owner)
        ids = [f"{entry['type']}s/{entry['id']}" for entry in collection.items]
        if shown and (item is None or item in ids):
            entry = _describe_collection(collection)
            del entry["position"]  # the client counts by itself
            found.append(entry)
    return call.page(found)


@route("POST", "/api/collections")
def create_collection(call: Call) -> dict[str, Any]:
    wish = call.request.json()
    title, owner = wish["title"], wish["namespace"]
    call.require_owner(owner, f'You don\'t have the rights to create a collection under "{owner}"')
    for other in call.hub.store.collections.values():
        if (other.title, other.owner) == (title, owner):
            raise Refusal(409, "This collection already exists", slug=other.slug)
    words = "-".join(re.findall(r"[a-z0-9]+", title.lower()))
    slug = f"{owner}/{words}-{secrets.token_hex(12)}"
    private, description = bool(wish.get("private")), wish.get("description")
    made = Collection(slug, title, owner, private, description)
    call.hub.store.collections[slug] = made
    return _describe_collection(made)


@route("GET", COLLECTION)
def collection_info(call: Call, slug: str) -> dict[str, Any]:
    return _describe_collection(_collection(call, slug))


@route("PATCH", COLLECTION)
def change_collection(call: Call, slug: str) -> dict[str, Any]:
    collection = _collection(call, slug, write=True)
    for name, value in call.request.json().items():
        if name in ("title", "description", "private"):
            setattr(collection, name, value)
    return {"success": True, "data": _describe_collection(collection)}


@route("DELETE", COLLECTION)
def delete_collection(call: Call, slug: str) -> dict[str, Any]:
    del call.hub.store.collections[_collection(call, slug, write=True).slug]
    return {"success": True}


@route("POST", f"{COLLECTION}/items")
def add_item(call: Call, slug: str) -> dict[str, Any]:
    collection, wish = _collection(call, slug, write=True), call.request.json()
    item = wish["item"]
    if item["type"] in ("model", "dataset", "space"):
        call.repository(item["type"], item["id"])
    if any((old["type"], old["id"]) == (item["type"], item["id"]) for old in collection.items):
        raise Refusal(409, "This item is already in the collection")
    entry = {"_id": secrets.token_hex(12), "id": item["id"], "type": item["type"]}
    collection.items.append(entry | _note(wish))
    return _describe_collection(collection)


@route("PATCH", f"{COLLECTION}/items/(?P<item>[^/]+)")
def change_item(call: Call, slug: str, item: str) -> dict[str, Any]:
    items, wish = _collection(call, slug, write=True).items, call.request.json()
    index = _item_index(items, item)
    items[index] |= _note(wish)
    items.insert(wish.get("position", index), items.pop(index))
    return {"success": True}


@route("DELETE", f"{COLLECTION}/items/(?P<item>[^/]+)")
def delete_item(call: Call, slug: str, item: str) -> dict[str, Any]:
    items = _collection(call, slug, write=True).items
    del items[_item_index(items, item)]
    return {"success": True}


def _collection(call: Call, slug: str, write: bool = False) -> Collection:
    collection = call.hub.store.collections.get(slug)
    if collection is None or not _may_see(call, collection):
        raise Refusal(404, "Collection not found")
    if write:
        call.require_owner(collection.owner, "You don't have the rights to edit this collection")
    return collection


def _may_see(call: Call, collection: Collection) -> bool:
    mine = call.user is not None and call.user.owns(collection.owner)
    return mine or not collection.private


def _item_index(items: list[dict[str, Any]], id: str) -> int:
    for index, item in enumerate(items):
        if item["_id"] == id:
            return index
    raise Refusal(404, "Item not found")


def _note(wish: dict[str, Any]) -> dict[str, Any]:
    return {"note": {"text": wish["note"], "html": wish["note"]}} if "note" in wish else {}


def _describe_collection(collection: Collection) -> dict[str, Any]:
    items = [item | {"position": position} for position, item in enumerate(collection.items)]
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.owner},
        "private": collection.private,
        "theme": "orange",
        "upvotes": 0,
        "position": 0,
        "lastUpdated": collection.date,
        "items": items,
    }
