"""What is said when something goes wrong between a user and a publisher, and how soon."""

import time

import pytest
from drive_server import Drive
from publisher_cases import DRIVE_NAME, FILE, NAME, QUICK, SLOW, Scene, checkpoints
from publisher_server import Publisher

from sepc_zoo import HubError
from sepc_zoo.checkpoints import download

SECONDS = 1.5  # within which an error comes, on a busy machine


@pytest.fixture(scope="module")
def content(tmp_path_factory, tiny_rows):  # noqa: ARG001
    return checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def scene(hub, content, tmp_path, monkeypatch):  # noqa: ARG001
    with Publisher() as publisher, Drive() as drive:
        yield Scene(publisher, drive, content, tmp_path / "home", monkeypatch)


def check(scene, case):
    act, expected = case
    with pytest.raises(HubError, match=expected):
        act(scene)
    assert scene.left_files() == []


@pytest.mark.parametrize("name", QUICK)
def test_an_import_that_fails_says_why_at_once_and_leaves_nothing(scene, name):
    start = time.perf_counter()
    check(scene, QUICK[name])
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("name", SLOW)
def test_a_broken_connection_is_given_up_in_bounded_time(scene, name, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "SLOW_TIME", 0.2)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    start = time.perf_counter()
    check(scene, SLOW[name])
    assert time.perf_counter() - start < SECONDS + 3


@pytest.mark.parametrize("name", [NAME, DRIVE_NAME])
def test_a_failed_import_can_be_done_later(scene, name, capsys):
    scene.without_files()
    with pytest.raises(HubError):
        scene.load(name)
    scene.__post_init__()
    assert scene.load(name).config.architecture == name
    said = [line for line in capsys.readouterr().err.splitlines() if "downloading" in line]
    assert "weights of the authors of SEPC" in said[0]
    assert "Apache-2.0" in said[0]


def test_a_cut_download_goes_on_where_it_was(scene, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    size = len(scene.content[NAME])
    scene.misbehaving(cut_after=size // 3)
    scene.load()
    ranges = [wanted for _, wanted in scene.publisher.requests]
    assert ranges[:2] == [None, f"bytes={size // 3}-"]
    assert scene.publisher.sent == size


def test_a_cut_download_begins_again_where_the_server_knows_no_ranges(scene, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    scene.misbehaving(cut_after=1000, times=1)
    scene.publisher.manners.ranges = False
    scene.load()
    assert len(scene.publisher.requests) == 2


def test_what_a_killed_process_has_downloaded_is_used(scene):
    work = scene.home / ".importing" / f"{NAME}.coco_1x"
    work.mkdir(parents=True)
    (work / f"{FILE}.part").write_bytes(scene.content[NAME][:5000])
    scene.load()
    assert scene.publisher.requests == [(FILE, "bytes=5000-")]
    assert not work.exists()


def test_a_part_of_another_file_is_found_out(scene, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    work = scene.home / ".importing" / f"{NAME}.coco_1x"
    work.mkdir(parents=True)
    part = work / f"{FILE}.part"
    part.write_bytes(b"x" * 5000)
    with pytest.raises(HubError, match="its SHA-256"):
        scene.load()
    work.mkdir(parents=True)
    part.write_bytes(b"x" * (len(scene.content[NAME]) + 1))
    scene.load()


def test_a_file_without_announced_length_is_taken_by_its_hash(scene):
    scene.misbehaving(announced=0)
    scene.load()


def test_a_mirror_has_the_files_of_all_publishers(scene):
    scene.publisher.files[f"{DRIVE_NAME}.coco_1x.pth"] = scene.content[DRIVE_NAME]
    scene.mirrored(f"{scene.publisher.address}/any/folder/")
    scene.load(NAME)
    scene.load(DRIVE_NAME)
    assert [name for name, _ in scene.publisher.requests] == [FILE, f"{DRIVE_NAME}.coco_1x.pth"]
    assert not scene.drive.sent


def test_a_mirror_may_be_a_folder(scene, tmp_path):
    (tmp_path / FILE).write_bytes(scene.content[NAME])
    scene.mirrored(tmp_path.as_uri()).load()
    assert not scene.publisher.requests
