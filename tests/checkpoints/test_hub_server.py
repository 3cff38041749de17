"""The hub that tests run against, seen by the real client alone."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Fault, HubServer, point_client_at
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    list_models,
    model_info,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

ID = "zoo/model"
SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * 1000
FILES = {"config.json": SMALL, "model.safetensors": LARGE, "logs/a/b.txt": b"deep"}
HEAD_ON_HUB = {"path": "*/resolve/*", "method": "HEAD"}
GET_LARGE = {"path": "*/model.safetensors", "method": "GET"}

persistent = pytest.mark.skipif(
    "retry_on_errors" not in signature(get_hf_file_metadata).parameters,
    reason="this huggingface_hub does not try again",
)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def repository(hub):
    return hub.add_repository(ID, FILES)


@pytest.fixture
def owner(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", ["zoo"]))


@pytest.fixture
def stranger(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("mallory"))


@pytest.fixture
def anonymous(hub):
    return HfApi(endpoint=hub.endpoint)


def download(file="config.json", revision=None, **options):
    return Path(hf_hub_download(ID, file, revision=revision, **options)).read_bytes()


def download_stubbornly(file):
    """Older clients take up what was cut when they are called again."""
    try:
        return download(file)
    except Exception:
        return download(file)


def status_of(error):
    return error.value.response.status_code


# Files


@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("repository")
def test_a_file_comes_back_as_it_was(file):
    assert download(file) == FILES[file]


@pytest.mark.parametrize("file", ["a b.txt", "ä#?%41.txt", "sub dir/ä.safetensors"])
def test_names_of_files_may_be_odd(hub, file):
    hub.add_repository(ID, {file: b"odd"})
    assert download(file) == b"odd"


def test_a_small_file_is_known_by_its_git_id(repository):
    metadata = get_hf_file_metadata(hf_hub_url(ID, "config.json"))
    assert metadata.etag == hashlib.sha1(b"blob %d\0%s" % (len(SMALL), SMALL)).hexdigest()
    assert (metadata.size, metadata.commit_hash) == (len(SMALL), repository.resolve("main").id)


def test_a_large_file_is_known_by_its_sha256_and_lies_in_the_storage(hub, repository):
    metadata = get_hf_file_metadata(hf_hub_url(ID, "model.safetensors"))
    assert metadata.etag == hashlib.sha256(LARGE).hexdigest()
    assert (metadata.size, metadata.commit_hash) == (len(LARGE), repository.resolve("main").id)
    assert metadata.location.startswith(hub.storage)


@pytest.mark.usefixtures("repository")
def test_a_large_file_keeps_a_git_id_of_its_pointer(owner):
    entry = next(e for e in owner.list_repo_tree(ID) if e.path == "model.safetensors")
    pointer = (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{entry.lfs.sha256}\nsize {len(LARGE)}\n"
    ).encode()
    assert entry.blob_id == hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer)).hexdigest()
    assert entry.lfs.pointer_size == len(pointer)


@pytest.mark.parametrize(
    "revision", ["main", "side", "feature/x", "v1", "refs/pr/1", "commit", "abbreviated commit"]
)
def test_every_kind_of_revision_is_found(repository, owner, revision):
    owner.create_branch(ID, branch="side")
    owner.create_branch(ID, branch="feature/x")
    owner.create_tag(ID, tag="v1")
    owner.create_pull_request(ID, "A change")
    first = repository.resolve("main").id
    named = {"commit": first, "abbreviated commit": first[:8]}
    if revision != "main":
        repository.commit({"config.json": b"newer"})
    assert download(revision=named.get(revision, revision)) == SMALL


def test_a_revision_moves_on(repository):
    assert download() == SMALL
    repository.commit({"config.json": b"newer"})
    assert download() == b"newer"


def test_a_commit_stays_what_it_was(repository):
    first = repository.resolve("main").id
    repository.commit({"config.json": b"newer", "model.safetensors": None})
    assert download("model.safetensors", first) == LARGE
    url = hf_hub_url(ID, "model.safetensors", revision=first)
    assert get_hf_file_metadata(url).commit_hash == first
    with pytest.raises(EntryNotFoundError):
        download("model.safetensors")


@pytest.mark.parametrize(
    ("id", "revision", "file", "error"),
    [
        ("zoo/nothing", "main", "config.json", RepositoryNotFoundError),
        (ID, "nothing", "config.json", RevisionNotFoundError),
        (ID, "f" * 40, "config.json", RevisionNotFoundError),
        (ID, "main", "nothing.json", EntryNotFoundError),
    ],
)
@pytest.mark.usefixtures("repository")
def test_what_is_missing_is_named_by_the_exception(waits, id, revision, file, error):
    with pytest.raises(error) as caught:
        hf_hub_download(id, file, revision=revision)
    assert not isinstance(caught.value, LocalEntryNotFoundError)
    assert not isinstance(caught.value, GatedRepoError)
    assert waits == []


@pytest.mark.usefixtures("repository")
def test_that_a_file_is_missing_is_remembered_with_the_commit():
    with pytest.raises(EntryNotFoundError):
        download("nothing.json")
    assert try_to_load_from_cache(ID, "nothing.json") is huggingface_hub._CACHED_NO_EXIST


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("range", "part"),
    [("bytes=2-4", slice(2, 5)), ("bytes=5-", slice(5, None)), ("bytes=-3", slice(-3, None))],
)
@pytest.mark.usefixtures("repository")
def test_a_part_of_a_file_can_be_had(hub, file, range, part):
    response = get_session().get(hf_hub_url(ID, file), headers={"Range": range})
    assert response.status_code == 206
    assert response.content == FILES[file][part]
    first, last, size = response.headers["Content-Range"].replace("/", "-")[6:].split("-")
    assert FILES[file][int(first) : int(last) + 1] == response.content
    assert int(size) == len(FILES[file])
    assert hub.seen()[-1].range == range


@pytest.mark.usefixtures("repository")
def test_a_part_behind_the_end_is_refused():
    response = get_session().get(hf_hub_url(ID, "config.json"), headers={"Range": "bytes=100-"})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{len(SMALL)}"


# Snapshots and the cache


def test_a_snapshot_has_all_files_of_one_commit(repository):
    folder = Path(snapshot_download(ID))
    assert folder.name == repository.resolve("main").id
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    found.pop(".gitattributes")
    assert found == FILES


@pytest.mark.usefixtures("repository")
def test_a_snapshot_may_be_of_some_files():
    folder = Path(snapshot_download(ID, allow_patterns="*.json"))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.usefixtures("repository")
def test_what_is_cached_is_not_sent_again(hub):
    for _ in range(3):
        download("model.safetensors")
    assert hub.bytes_served() == len(LARGE)


def test_what_did_not_change_is_not_sent_again(hub, repository):
    snapshot_download(ID)
    served = hub.bytes_served(f"{ID}/*")
    repository.commit({"config.json": b"newer"})
    snapshot_download(ID)
    assert hub.bytes_served(f"{ID}/*") == served + len(b"newer")


def test_a_cached_commit_needs_no_request(hub, repository):
    commit = repository.resolve("main").id
    download(revision=commit)
    requests = len(hub.requests)
    download(revision=commit)
    assert len(hub.requests) == requests


@pytest.mark.usefixtures("repository", "waits")
def test_the_cache_serves_while_the_hub_is_away(hub):
    download()
    hub.close()
    assert download() == SMALL


@pytest.mark.usefixtures("repository")
def test_local_files_are_found_without_a_request(hub):
    download()
    requests = len(hub.requests)
    assert download(local_files_only=True) == SMALL
    with pytest.raises(LocalEntryNotFoundError):
        download("model.safetensors", local_files_only=True)
    assert len(hub.requests) == requests


@pytest.mark.usefixtures("repository")
def test_threads_that_want_one_file_share_a_download(hub):
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(download, ["model.safetensors"] * 8))
    assert got == [LARGE] * 8
    assert hub.bytes_served() == len(LARGE)


@pytest.mark.usefixtures("repository")
def test_threads_that_want_different_files_get_them():
    files = list(FILES) * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(download, files)) == [FILES[file] for file in files]


# Who may read


def test_a_private_repository_is_hidden_from_all_but_its_owners(
    repository, owner, stranger, anonymous
):
    repository.private = True
    assert download(token=owner.token) == SMALL
    assert owner.repo_exists(ID)
    for api, status in ((stranger, 404), (anonymous, 401)):
        assert not api.repo_exists(ID)
        for call in (api.model_info, api.list_repo_files, api.auth_check):
            with pytest.raises(RepositoryNotFoundError) as error:
                call(ID)
            assert status_of(error) == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(ID, "model.safetensors", token=api.token)


def test_a_gate_lets_in_owners_and_whom_they_granted_it(
    repository, owner, stranger, anonymous, tmp_path
):
    repository.gated = "manual"
    for api, status in ((stranger, 403), (anonymous, 401)):
        assert api.model_info(ID).gated == "manual"
        assert "config.json" in api.list_repo_files(ID)
        for call in (lambda api: api.auth_check(ID), lambda api: download(token=api.token)):
            with pytest.raises(GatedRepoError) as error:
                call(api)
            assert status_of(error) == status
    repository.granted.add("mallory")
    for number, api in enumerate((owner, stranger)):
        assert download(token=api.token, cache_dir=tmp_path / str(number)) == SMALL


@pytest.mark.usefixtures("repository")
def test_a_token_that_nobody_has_is_no_missing_repository():
    for call in (lambda: model_info(ID, token="hf_wrong"), lambda: download(token="hf_wrong")):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
            call()
        assert status_of(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


def test_a_disabled_repository_says_so(repository, owner):
    repository.disabled = True
    with pytest.raises(DisabledRepoError):
        owner.model_info(ID)


def test_the_storage_never_sees_a_token(hub, repository, owner):
    repository.private = True
    assert download("model.safetensors", token=owner.token) == LARGE
    upload(owner, {"x.bin": b"new"})
    stored = [request for request in hub.requests if request.origin == "storage"]
    assert [request.method for request in stored] == ["GET", "PUT"]
    assert all(request.token is None for request in stored)
    assert hub.seen("HEAD")[0].token == owner.token


@pytest.mark.usefixtures("repository")
def test_the_storage_wants_a_signature_and_no_token():
    url = get_hf_file_metadata(hf_hub_url(ID, "model.safetensors")).location
    assert get_session().get(url).content == LARGE
    token = {"Authorization": "Bearer hf_token"}
    assert get_session().get(url, headers=token).status_code == 400
    assert get_session().get(url.partition("?")[0]).status_code == 403


def test_a_user_is_known_by_the_token(owner, stranger):
    assert owner.whoami()["name"] == "alice"
    assert [org["name"] for org in owner.whoami()["orgs"]] == ["zoo"]
    assert stranger.whoami()["orgs"] == []


# Looking around


@pytest.mark.usefixtures("repository")
def test_what_exists_is_told_from_what_does_not(owner):
    assert owner.repo_exists(ID)
    assert not owner.repo_exists("zoo/nothing")
    assert owner.revision_exists(ID, "main")
    assert not owner.revision_exists(ID, "nothing")
    assert owner.file_exists(ID, "logs/a/b.txt")
    assert not owner.file_exists(ID, "logs/a")


def test_a_repository_describes_itself(hub, owner):
    card = (
        "---\nlicense: apache-2.0\nlibrary_name: a_library\npipeline_tag: object-detection\n"
        "tags:\n- one\n- two\nmodel-index:\n- name: x\n  results: []\n---\n# Title\n"
    )
    repository = hub.add_repository(ID, {"README.md": card.encode(), "x.bin": LARGE})
    info = owner.model_info(ID, files_metadata=True)
    assert (info.id, info.author, info.sha) == (ID, "zoo", repository.resolve("main").id)
    assert (info.library_name, info.pipeline_tag) == ("a_library", "object-detection")
    assert {"a_library", "object-detection", "one", "two", "license:apache-2.0"} == set(info.tags)
    assert (info.card_data.license, info.card_data.tags) == ("apache-2.0", ["one", "two"])
    sizes = {file.rfilename: (file.size, file.lfs is not None) for file in info.siblings}
    assert sizes["README.md"] == (len(card), False)
    assert sizes["x.bin"] == (len(LARGE), True)


@pytest.mark.usefixtures("repository")
def test_a_tree_is_listed_by_folder_or_as_a_whole(owner):
    paths = {".gitattributes", "config.json", "model.safetensors"}
    assert {e.path for e in owner.list_repo_tree(ID)} == paths | {"logs"}
    assert {e.path for e in owner.list_repo_tree(ID, "logs")} == {"logs/a"}
    assert set(owner.list_repo_files(ID)) == paths | {"logs/a/b.txt"}
    with pytest.raises(EntryNotFoundError):
        list(owner.list_repo_tree(ID, "nothing"))


@pytest.mark.usefixtures("repository")
def test_paths_are_described_one_by_one(owner):
    found = owner.get_paths_info(ID, ["logs", "model.safetensors", "nothing"])
    assert [(e.path, getattr(e, "size", None)) for e in found] == [
        ("logs", None),
        ("model.safetensors", len(LARGE)),
    ]


@pytest.mark.usefixtures("repository")
def test_commits_are_listed_from_the_last_to_the_first(owner):
    second = upload(owner, {"a.txt": b"a"}, commit_message="Second")
    commits = owner.list_repo_commits(ID)
    assert [c.title for c in commits] == ["Second", "A change", "initial commit"]
    assert commits[0].commit_id == second.oid
    assert commits[0].authors == ["alice"]


def test_branches_tags_and_pull_requests_are_listed(repository, owner):
    owner.create_branch(ID, branch="side")
    owner.create_tag(ID, tag="v1", revision="side")
    owner.create_pull_request(ID, "A change")
    refs = owner.list_repo_refs(ID, include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "side"}
    assert [ref.name for ref in refs.tags] == ["v1"]
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert refs.tags[0].target_commit == repository.resolve("main").id


def test_models_are_listed_by_author_and_tag(hub, owner, stranger):
    hub.add_repository("zoo/a", {"README.md": b"---\ntags:\n- one\n---\n"})
    hub.add_repository("zoo/b", private=True)
    hub.add_repository("other/c")
    hub.add_repository("zoo/d", kind="dataset")
    assert {model.id for model in list_models()} == {"zoo/a", "other/c"}
    assert {model.id for model in owner.list_models(author="zoo")} == {"zoo/a", "zoo/b"}
    assert {model.id for model in stranger.list_models(author="zoo")} == {"zoo/a"}
    assert {model.id for model in list_models(filter="one")} == {"zoo/a"}
    assert {model.id for model in list_models(search="C")} == {"other/c"}


def test_long_lists_come_in_pages(hub):
    names = {f"zoo/m{number}" for number in range(7)}
    for name in names:
        hub.add_repository(name)
    hub.page_size = 3
    assert {model.id for model in list_models(author="zoo")} == names
    assert len(hub.seen("GET", "/api/models")) == 3
    assert len(list(list_models(author="zoo", limit=2))) == 2
    assert len(hub.seen("GET", "/api/models")) == 4


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_other_kinds_of_repositories_are_there_too(hub, kind):
    hub.add_repository(ID, {"a.txt": b"of a model"})
    hub.add_repository(ID, {"a.txt": b"of another kind", "b.bin": LARGE}, kind=kind)
    assert download("a.txt", repo_type=kind) == b"of another kind"
    assert download("b.bin", repo_type=kind) == LARGE
    assert download("a.txt") == b"of a model"


# Writing


def upload(api, files, **options):
    """One commit; None deletes."""
    changes = [
        CommitOperationDelete(path) if data is None else CommitOperationAdd(path, data)
        for path, data in files.items()
    ]
    options.setdefault("commit_message", "A commit")
    return api.create_commit(ID, changes, **options)


@pytest.mark.usefixtures("repository")
def test_uploaded_files_come_back(hub, owner):
    made = upload(owner, {"a.txt": b"small", "b.safetensors": LARGE[::-1], "empty.bin": b""})
    assert download("a.txt") == b"small"
    assert download("b.safetensors") == LARGE[::-1]
    assert download("empty.bin", made.oid) == b""
    assert made.commit_url == f"{hub.endpoint}/{ID}/commit/{made.oid}"


def test_what_is_large_goes_to_the_storage_by_its_name_or_its_size(hub, repository, owner):
    upload(owner, {"a.bin": b"1", "b.txt": b"2", "c.txt": bytes(10 * 1024**2 + 1)})
    files = repository.resolve("main").files
    assert [files[name].lfs for name in ("a.bin", "b.txt", "c.txt")] == [True, False, True]
    assert len(hub.seen("PUT")) == 2


def test_a_folder_is_one_commit(repository, owner, tmp_path):
    for path, data in {"a.txt": b"a", "b/c.bin": LARGE, "b/d.txt": b"d"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    commits = len(repository.commits)
    owner.upload_folder(repo_id=ID, folder_path=tmp_path, path_in_repo="run", allow_patterns="b/*")
    assert len(repository.commits) == commits + 1
    assert repository.contents() == FILES | {"run/b/c.bin": LARGE, "run/b/d.txt": b"d"}


def test_what_did_not_change_makes_no_commit(repository, owner):
    head = repository.resolve("main").id
    assert upload(owner, {"config.json": SMALL, "model.safetensors": LARGE}).oid == head
    assert repository.resolve("main").id == head


def test_what_the_storage_has_is_not_sent_again(hub, repository, owner):
    upload(owner, {"copy.safetensors": LARGE})
    assert hub.seen("PUT") == []
    assert repository.contents()["copy.safetensors"] == LARGE


def test_files_and_folders_can_be_deleted(repository, owner):
    upload(owner, {"config.json": None, "logs/": None})
    assert repository.contents() == {"model.safetensors": LARGE}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        upload(owner, {"config.json": None})


def test_a_commit_may_insist_on_its_parent(repository, owner):
    first = repository.resolve("main").id
    second = upload(owner, {"a.txt": b"1"}, parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="since") as error:
        upload(owner, {"a.txt": b"2"}, parent_commit=first)
    assert status_of(error) == 412
    assert repository.resolve("main").id == second


def test_a_commit_goes_to_its_branch_alone(repository, owner):
    owner.create_branch(ID, branch="side")
    upload(owner, {"a.txt": b"a"}, revision="side")
    assert repository.contents("side") == FILES | {"a.txt": b"a"}
    assert repository.contents() == FILES


@pytest.mark.usefixtures("repository")
def test_a_tag_cannot_be_committed_to(owner):
    owner.create_tag(ID, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        upload(owner, {"a.txt": b"a"}, revision="v1")


def test_a_stranger_may_ask_for_a_change_and_the_owner_may_merge_it(
    hub, repository, owner, stranger
):
    asked = upload(stranger, {"a.bin": LARGE[1:], "config.json": None}, create_pr=True)
    assert asked.pr_url == f"{hub.endpoint}/{ID}/discussions/1"
    assert repository.contents() == FILES
    assert download("a.bin", asked.pr_revision) == LARGE[1:]
    upload(owner, {"b.txt": b"b", "logs/a/b.txt": b"meanwhile"})
    with pytest.raises(HfHubHTTPError) as error:
        stranger.merge_pull_request(ID, asked.pr_num)
    assert status_of(error) == 403
    owner.merge_pull_request(ID, asked.pr_num)
    assert repository.contents() == {
        "model.safetensors": LARGE,
        "a.bin": LARGE[1:],
        "b.txt": b"b",
        "logs/a/b.txt": b"meanwhile",
    }
    details = owner.get_discussion_details(ID, asked.pr_num)
    assert (details.status, details.target_branch) == ("merged", "refs/heads/main")
    assert details.merge_commit_oid == repository.resolve("main").id


def test_a_pull_request_can_grow_and_be_closed(repository, stranger, owner):
    asked = upload(stranger, {"a.txt": b"a"}, create_pr=True)
    upload(stranger, {"b.txt": b"b"}, revision=asked.pr_revision)
    assert repository.contents(asked.pr_revision) == FILES | {"a.txt": b"a", "b.txt": b"b"}
    owner.change_discussion_status(ID, asked.pr_num, "closed")
    assert [(d.num, d.status) for d in owner.get_repo_discussions(ID)] == [(1, "closed")]
    with pytest.raises(BadRequestError):
        owner.merge_pull_request(ID, asked.pr_num)


def test_only_owners_with_a_token_to_write_may_write(hub, repository, stranger, anonymous):
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_user("bob", ["zoo"], access="read"))
    for api, status in ((stranger, 403), (reader, 403), (anonymous, 401)):
        for call in (
            lambda api: upload(api, {"a.txt": b"a"}),
            lambda api: api.create_tag(ID, tag="v1"),
            lambda api: api.delete_repo(ID),
            lambda api: api.create_repo("zoo/new"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                call(api)
            assert status_of(error) == status
    assert repository.contents() == FILES
    assert len(hub.store.repositories) == 1


def test_repositories_are_created_once(hub, owner):
    url = owner.create_repo("zoo/new", private=True)
    assert (url, url.repo_id) == (f"{hub.endpoint}/zoo/new", "zoo/new")
    assert hub.repository("zoo/new").private
    assert owner.list_repo_files("zoo/new") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError) as error:
        owner.create_repo("zoo/new")
    assert status_of(error) == 409
    assert owner.create_repo("zoo/new", exist_ok=True) == url
    assert owner.create_repo("mine").repo_id == "alice/mine"
    assert not hub.repository("alice/mine").private


@pytest.mark.usefixtures("repository")
def test_repositories_can_be_deleted(hub, owner):
    owner.delete_repo(ID)
    assert not hub.store.repositories
    with pytest.raises(RepositoryNotFoundError):
        owner.delete_repo(ID)
    owner.delete_repo(ID, missing_ok=True)


def test_settings_can_be_changed(repository, owner):
    owner.update_repo_settings(ID, gated="auto", private=True)
    assert (repository.gated, repository.private) == ("auto", True)
    owner.update_repo_settings(ID, gated=False)
    assert (repository.gated, repository.private) == (False, True)


@pytest.mark.parametrize("what", ["branch", "tag"])
@pytest.mark.usefixtures("repository")
def test_a_ref_is_created_once_and_can_be_deleted(owner, what):
    create, delete = getattr(owner, f"create_{what}"), getattr(owner, f"delete_{what}")
    create(ID, **{what: "new"})
    with pytest.raises(HfHubHTTPError) as error:
        create(ID, **{what: "new"})
    assert status_of(error) == 409
    create(ID, **{what: "new"}, exist_ok=True)
    delete(ID, **{what: "new"})
    assert not owner.revision_exists(ID, "new")
    with pytest.raises(RevisionNotFoundError):
        delete(ID, **{what: "new"})


@pytest.mark.usefixtures("repository")
def test_a_card_without_metadata_is_warned_of(owner):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload(owner, {"README.md": b"# Title"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        upload(owner, {"README.md": b"---\nlicense: mit\n---\n# Title"})


# Collections


@pytest.mark.usefixtures("repository")
def test_a_collection_lists_its_items_in_order(hub, owner):
    hub.add_repository("zoo/other")
    made = owner.create_collection("A Table", namespace="zoo", description="all of them")
    assert made.slug.startswith("zoo/a-table-")
    owner.add_collection_item(made.slug, ID, "model", note="first")
    owner.add_collection_item(made.slug, "zoo/other", "model")
    found = owner.get_collection(made.slug)
    assert (found.title, found.description) == ("A Table", "all of them")
    assert [(i.item_id, i.note) for i in found.items] == [(ID, "first"), ("zoo/other", None)]
    last = found.items[1].item_object_id
    owner.update_collection_item(made.slug, last, note="now first", position=0)
    owner.delete_collection_item(made.slug, found.items[0].item_object_id)
    items = owner.get_collection(made.slug).items
    assert [(i.item_id, i.note) for i in items] == [("zoo/other", "now first")]


def test_a_collection_is_created_once(owner):
    made = owner.create_collection("A Table", namespace="zoo")
    with pytest.raises(HfHubHTTPError) as error:
        owner.create_collection("A Table", namespace="zoo")
    assert status_of(error) == 409
    assert owner.create_collection("A Table", namespace="zoo", exists_ok=True).slug == made.slug
    assert [c.slug for c in owner.list_collections(owner="zoo")] == [made.slug]
    owner.update_collection_metadata(made.slug, title="Another")
    assert owner.get_collection(made.slug).title == "Another"
    owner.delete_collection(made.slug)
    assert list(owner.list_collections(owner="zoo")) == []


@pytest.mark.usefixtures("repository")
def test_an_item_of_a_collection_exists_and_is_there_once(owner):
    slug = owner.create_collection("A Table", namespace="zoo").slug
    with pytest.raises(HfHubHTTPError) as error:
        owner.add_collection_item(slug, "zoo/nothing", "model")
    assert status_of(error) == 404
    owner.add_collection_item(slug, ID, "model")
    with pytest.raises(HfHubHTTPError) as error:
        owner.add_collection_item(slug, ID, "model")
    assert status_of(error) == 409
    owner.add_collection_item(slug, ID, "model", exists_ok=True)
    assert len(owner.get_collection(slug).items) == 1


def test_a_private_collection_is_its_owners(owner, stranger):
    slug = owner.create_collection("A Table", namespace="zoo", private=True).slug
    with pytest.raises(HfHubHTTPError) as error:
        stranger.get_collection(slug)
    assert status_of(error) == 404
    assert list(stranger.list_collections(owner="zoo")) == []
    with pytest.raises(HfHubHTTPError) as error:
        stranger.create_collection("Another", namespace="zoo")
    assert status_of(error) == 403


# Misbehaviour


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 401, "code": "RepoNotFound"}, RepositoryNotFoundError),
        ({"status": 403, "code": "GatedRepo"}, GatedRepoError),
        ({"status": 404, "code": "RevisionNotFound"}, RevisionNotFoundError),
        ({"status": 404, "code": "EntryNotFound"}, EntryNotFoundError),
        ({"status": 403, "message": "Access to this resource is disabled."}, DisabledRepoError),
        ({"status": 400}, BadRequestError),
        *[({"status": status}, HfHubHTTPError) for status in (401, 403, 404, 429, 500, 503)],
    ],
)
@pytest.mark.usefixtures("repository")
def test_an_answer_on_demand_is_the_exception_it_should_be(hub, fault, error):
    hub.misbehave("/api/models/*", **fault)
    with pytest.raises(HfHubHTTPError) as caught:
        model_info(ID)
    assert isinstance(caught.value, error)
    assert status_of(caught) == fault["status"]
    if error is HfHubHTTPError:  # none of its kinds
        assert type(caught.value) is error
    hub.behave()
    assert model_info(ID).id == ID


@pytest.mark.usefixtures("repository", "waits")
@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_the_download_itself_may_be_refused(hub, status):
    hub.misbehave(**GET_LARGE, status=status)
    with pytest.raises(OSError, match=str(status)) as error:
        download("model.safetensors")
    assert status_of(error) == status


@persistent
@pytest.mark.usefixtures("repository")
def test_a_hub_that_recovers_is_asked_again(hub, waits):
    hub.misbehave(**HEAD_ON_HUB, status=503, times=3)
    assert download() == SMALL
    assert waits == [1, 2]  # after the first failure it looks into the cache
    assert len(hub.seen("HEAD")) == 4


@persistent
@pytest.mark.usefixtures("repository")
def test_a_hub_that_does_not_recover_is_given_up(hub, waits):
    hub.misbehave(**HEAD_ON_HUB, status=500)
    with pytest.raises(LocalEntryNotFoundError) as error:
        download()
    assert error.value.__cause__.response.status_code == 500
    assert len(hub.seen("HEAD")) == 1 + len(waits) + 1


@persistent
@pytest.mark.usefixtures("repository")
def test_with_a_file_in_the_cache_a_failing_hub_is_asked_once(hub, waits):
    download()
    hub.requests.clear()
    hub.misbehave(status=500)
    assert download() == SMALL
    assert (len(hub.requests), waits) == (1, [])


@persistent
@pytest.mark.usefixtures("repository")
def test_a_hub_can_ask_for_patience(hub, waits):
    hub.misbehave(**GET_LARGE, status=429, headers={"Retry-After": "7"}, times=1)
    assert download("model.safetensors") == LARGE
    assert len(waits) == 1


@pytest.mark.usefixtures("repository", "waits")
def test_a_download_that_was_cut_is_taken_up_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 40_000)  # what is less is thrown away
    hub.misbehave(**GET_LARGE, cut_after=100_000, times=1)
    assert download_stubbornly("model.safetensors") == LARGE
    first, second = hub.seen(**GET_LARGE)
    assert (first.sent, first.range) == (100_000, None)
    assert (second.status, second.range) == (206, "bytes=80000-")
    assert hub.bytes_served() == len(LARGE) + 20_000


@persistent
@pytest.mark.usefixtures("repository", "waits")
def test_a_storage_that_knows_no_ranges_starts_anew(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 40_000)
    hub.misbehave(**GET_LARGE, cut_after=100_000, times=1)
    hub.misbehave(**GET_LARGE, ignore_range=True)
    assert download_stubbornly("model.safetensors") == LARGE
    assert [request.status for request in hub.seen(**GET_LARGE)] == [200, 200]
    assert hub.bytes_served() == len(LARGE) + 100_000


@pytest.mark.usefixtures("repository", "waits")
def test_a_connection_that_is_always_cut_is_an_error(hub):
    hub.misbehave(**GET_LARGE, cut_after=0)
    with pytest.raises(Exception, match=r"complete|[Cc]hunked|Connection"):
        download("model.safetensors")
    assert hub.bytes_served() == 0


@pytest.mark.usefixtures("repository")
def test_a_shortened_file_is_noticed(hub):
    hub.misbehave(**GET_LARGE, truncate=100_000)
    with pytest.raises(OSError, match="Consistency check failed"):
        download("model.safetensors")
    assert hub.bytes_served() == 100_000


@pytest.mark.usefixtures("repository")
def test_wrong_bytes_of_the_right_length_are_not_noticed_by_the_client(hub):
    hub.misbehave(**GET_LARGE, wrong_bytes=True)
    got = download("model.safetensors")
    assert len(got) == len(LARGE)
    assert got == bytes(byte ^ 0xFF for byte in LARGE)


@pytest.mark.usefixtures("repository")
def test_a_connection_can_be_closed_without_an_answer(hub):
    hub.misbehave(hang_up=True)
    with pytest.raises(Exception, match=r"disconnected|aborted|closed"):
        model_info(ID)
    assert hub.requests[0].status is None


@pytest.mark.usefixtures("repository")
def test_a_slow_answer_runs_into_the_timeout(hub):
    hub.misbehave(delay=60)
    begin = time.monotonic()
    with pytest.raises(Exception, match="timed out"):
        model_info(ID, timeout=0.2)
    assert 0.2 <= time.monotonic() - begin < 5


@pytest.mark.usefixtures("repository")
def test_a_slow_answer_comes(hub):
    hub.misbehave(**HEAD_ON_HUB, delay=0.3)
    begin = time.monotonic()
    assert download() == SMALL
    assert time.monotonic() - begin >= 0.3


@pytest.mark.usefixtures("repository")
def test_a_thin_line_takes_its_time(hub):
    hub.misbehave(**GET_LARGE, rate=len(LARGE) / 0.4)
    begin = time.monotonic()
    assert download("model.safetensors") == LARGE
    assert time.monotonic() - begin >= 0.35


@pytest.mark.usefixtures("repository", "waits")
def test_an_upload_that_failed_leaves_the_repository_as_it_was(hub, repository, owner):
    before = repository.resolve("main").id
    for path in ("*/preupload/*", "*/objects/batch", "*/objects/verify", "*/commit/main"):
        hub.misbehave(path, status=500)
        with pytest.raises((HfHubHTTPError, RuntimeError), match=r"500|Error while uploading"):
            upload(owner, {"new.bin": os.urandom(10), "new.txt": b"new"})
        hub.behave()
        assert repository.resolve("main").id == before


@pytest.mark.parametrize(
    ("fault", "strikes"),
    [
        (Fault("*/a"), [True, False, True, True]),
        (Fault("*/a", times=2), [True, False, True, False]),
        (Fault("*/a", skip=1), [False, False, True, True]),
        (Fault("*/a", skip=1, times=1), [False, False, True, False]),
        (Fault(method="GET", times=2), [True, True, False, False]),
        (Fault(method="HEAD"), [False, False, False, False]),
    ],
)
def test_a_fault_strikes_as_often_as_it_should(fault, strikes):
    assert [fault.strikes("GET", path) for path in ("x/a", "x/b", "x/a", "x/a")] == strikes


# The server itself


@pytest.mark.usefixtures("repository")
def test_requests_are_remembered(hub, owner):
    download(token=owner.token, library_name="a_library", library_version="1.2")
    head, get = hub.seen(path="*/config.json")
    assert (head.method, head.status, head.sent) == ("HEAD", 200, 0)
    assert (get.method, get.status, get.sent) == ("GET", 200, len(SMALL))
    assert get.token == owner.token
    assert "a_library/1.2" in get.user_agent
    assert hub.bytes_served(f"{ID}/config.json") == len(SMALL)
    assert hub.bytes_served(f"{ID}/model.safetensors") == 0


def test_what_the_hub_does_not_speak_is_said(hub):
    response = get_session().get(f"{hub.endpoint}/api/spaceships")
    assert response.status_code == 501
    assert "GET /api/spaceships" in response.json()["error"]


def test_a_hub_that_was_closed_refuses_and_leaves_no_thread(tmp_path, monkeypatch):
    threads = set(threading.enumerate())
    with HubServer() as hub:
        point_client_at(hub, tmp_path, monkeypatch)
        hub.add_repository(ID, FILES)
        model_info(ID)
        hub.misbehave(delay=60)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(model_info, ID)
            while len(hub.requests) < 2:
                time.sleep(0.01)
            hub.close()
            assert answer.exception() is not None
    with pytest.raises(Exception, match="refused"):
        model_info(ID)
    assert set(threading.enumerate()) <= threads


def test_a_defect_of_the_server_does_not_stay_hidden(tmp_path, monkeypatch):
    hub = HubServer().__enter__()
    point_client_at(hub, tmp_path, monkeypatch)
    url = f"{hub.endpoint}/api/repos/create"
    assert get_session().post(url, data={"no": "json"}).status_code == 500
    with pytest.raises(AssertionError, match="JSONDecodeError"):
        hub.__exit__(None)


@pytest.mark.parametrize("url", ["https://huggingface.co/a/b", "http://example.com/api/models"])
def test_no_request_leaves_for_another_host(url, tmp_path, monkeypatch):
    hub = HubServer().__enter__()
    point_client_at(hub, tmp_path, monkeypatch)
    try:
        assert get_session().get(url).status_code == 403
    except Exception as error:
        assert "403" in str(error)  # noqa: PT017
    with pytest.raises(AssertionError, match="escaped: "):
        hub.__exit__(None)


def test_the_client_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    before = dict(vars(constants))
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        point_client_at(hub, tmp_path, patch)
        assert hub.endpoint == constants.ENDPOINT != before["ENDPOINT"]
        assert str(tmp_path / "hub") == constants.HF_HUB_CACHE
        assert huggingface_hub.get_token() is None
        assert hf_hub_url(ID, "x").startswith(hub.endpoint)
        assert HfApi().endpoint == hub.endpoint
    assert dict(vars(constants)) == before
    assert huggingface_hub.get_token() == "hf_of_the_user"


@pytest.mark.usefixtures("repository")
def test_processes_that_are_started_know_this_hub_alone(hub):
    code = f"import huggingface_hub as h; print(h.hf_hub_download({ID!r}, 'model.safetensors'))"
    started = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert Path(started.stdout.decode().strip()).read_bytes() == LARGE
    assert hub.bytes_served() == len(LARGE)
    assert download("model.safetensors") == LARGE  # one cache for all of them
    assert hub.bytes_served() == len(LARGE)
