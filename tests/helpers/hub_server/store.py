"""What the hub remembers: users, repositories with their commits, collections. No HTTP in here."""

import hashlib
import itertools
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

LFS_SUFFIXES = (".bin", ".ckpt", ".npy", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".zip")
LFS_BYTES = 10 * 1024**2  # what is larger goes to the storage whatever its name
GIT_ATTRIBUTES = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)
MAIN = "refs/heads/main"

Files = Mapping[str, bytes]


class Refusal(Exception):  # noqa: N818 (an answer, no defect)
    """An answer that the client turns into an exception.

    Args:
        code: the ``X-Error-Code`` by which the client tells its exceptions apart.
        content: more entries of the JSON beside ``error``.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any):
        super().__init__(message)
        self.status = status
        self.content = {"error": message, **content}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class User:
    name: str
    token: str
    organizations: tuple[str, ...]
    access: str  # of the token: "read" or "write"

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds in place of a large file."""
        version = "https://git-lfs.github.com/spec/v1"
        return f"version {version}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        return git_hash("blob", self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    files: Mapping[str, File]
    title: str
    message: str
    author: str
    date: str


@dataclass
class Discussion:
    """A discussion; a pull request where it has a base."""

    num: int
    title: str
    author: str
    status: str  # "open", "draft", "closed" or "merged"
    base: str | None = None  # the commit that a pull request starts from
    target: str = MAIN
    merge_commit: str | None = None
    date: str = field(default_factory=lambda: now())

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repository:
    kind: str  # "model", "dataset" or "space"
    id: str
    private: bool = False
    gated: bool | str = False  # False, "auto" or "manual"
    disabled: bool = False
    granted: set[str] = field(default_factory=set)  # users who may pass the gate
    storage: dict[str, bytes] = field(default_factory=dict, repr=False)  # large files by SHA-256
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # full name -> commit id
    discussions: list[Discussion] = field(default_factory=list)
    date: str = field(default_factory=lambda: now())

    def __post_init__(self) -> None:
        # The hub begins every repository with this commit of its own.
        attributes = {".gitattributes": File(GIT_ATTRIBUTES.encode(), lfs=False)}
        self.refs[MAIN] = self._add_commit(None, attributes, "initial commit", author="system").id

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or (abbreviated) commit id."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for id, commit in self.commits.items():
                if id.startswith(revision):
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def ref_to_write(self, revision: str) -> str:
        """The full name of a branch or pull request; tags and commits cannot be written to."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def write(
        self,
        changes: Mapping[str, File | None],
        revision: str = "main",
        *,
        title: str = "A change",
        message: str = "",
        author: str = "system",
        parent: str | None = None,
    ) -> Commit:
        """A new commit; a file that is None is deleted.

        Raises:
            Refusal: ``parent`` is given and is no longer the head of the revision.
        """
        ref = self.ref_to_write(revision)
        head = self.commits[self.refs[ref]]
        if parent is not None and not head.id.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = {path: file for path, file in (head.files | changes).items() if file is not None}
        commit = self._add_commit(head.id, files, title, message, author)
        self.refs[ref] = commit.id
        return commit

    def commit(self, changes: Mapping[str, bytes | None], revision: str = "main") -> str:
        """``write`` for tests: the id of a commit with these bytes; None deletes."""
        return self.write(as_files(changes), revision).id

    def open_discussion(self, title: str, author: str, base: Commit | None = None) -> Discussion:
        """A discussion; with a base, a pull request with a ref of its own."""
        status = "open" if base is None else "draft"
        discussion = Discussion(len(self.discussions) + 1, title, author, status)
        if base is not None:
            discussion.base = self.refs[discussion.ref] = base.id
        self.discussions.append(discussion)
        return discussion

    def merge(self, request: Discussion, author: str) -> None:
        """Bring what a pull request changed into its target."""
        before = self.commits[request.base].files
        after = self.resolve(request.ref).files
        changes = {
            path: after.get(path)
            for path in before.keys() | after.keys()
            if before.get(path) != after.get(path)
        }
        title = f"{request.title} (#{request.num})"
        commit = self.write(changes, request.target, title=title, author=author)
        request.status, request.merge_commit = "merged", commit.id

    def contents(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, without the one that every repository has."""
        files = self.resolve(revision).files
        return {path: file.data for path, file in files.items() if path != ".gitattributes"}

    def _add_commit(
        self,
        parent: str | None,
        files: Mapping[str, File],
        title: str,
        message: str = "",
        author: str = "system",
    ) -> Commit:
        tree = [(path, file.blob_id) for path, file in sorted(files.items())]
        text = repr((self.kind, self.id, parent, tree, title, message, author, next(_numbers)))
        id = git_hash("commit", text.encode())
        self.storage |= {file.sha256: file.data for file in files.values() if file.lfs}
        self.commits[id] = Commit(id, parent, files, title, message, author, now())
        return self.commits[id]


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    private: bool
    description: str | None
    items: list[dict[str, Any]] = field(default_factory=list)
    date: str = field(default_factory=lambda: now())


@dataclass
class Hub:
    users: dict[str, User] = field(default_factory=dict)  # by token
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256

    def add_user(
        self, name: str, organizations: Iterable[str] = (), *, access: str = "write"
    ) -> str:
        """A token of a user who may write in all of ``organizations``, if the token may write."""
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = User(name, token, tuple(organizations), access)
        return token

    def add_repository(
        self, id: str, files: Files | None = None, kind: str = "model", **settings: Any
    ) -> Repository:
        """A repository with a commit of ``files``; settings as in ``Repository``."""
        repository = Repository(kind, id, storage=self.storage, **settings)
        self.repositories[kind, id] = repository
        if files:
            repository.commit(files)
        return repository

    def large_file(self, sha256: str) -> bytes:
        if sha256 not in self.storage:
            message = f"LFS pointer pointed to a file that does not exist: {sha256}"
            raise Refusal(400, message)
        return self.storage[sha256]


def as_files(changes: Mapping[str, bytes | None]) -> dict[str, File | None]:
    return {
        path: None if data is None else File(data, is_lfs(path, len(data)))
        for path, data in changes.items()
    }


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_BYTES)


def git_hash(kind: str, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(data), data)).hexdigest()


def now() -> str:
    text = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


_numbers = itertools.count()  # so that no two commits have one id
