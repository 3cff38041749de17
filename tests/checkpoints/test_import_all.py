"""The 13 models of the SEPC authors, from the authors' files to models that are found offline."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache, partial

import imported_models
import pytest
import torch
from drive_server import QUOTA, Drive, point_gdown_at
from imported_models import digest
from new_process import run_python
from test_parity import GOLDENS, import_authors, our_name

from sepc_zoo.checkpoints.convert.sepc_authors import from_authors
from sepc_zoo.cli import main
from sepc_zoo.published import PUBLISHED

LATE = "fsaf_r50_pconv"  # whose quota is used up at first
LEGACY = "retinanet_r50_ibn_pconv"  # in a file as torch wrote them before 1.6
IDS = {
    row.architecture: row.url.partition("id=")[2]
    for row in PUBLISHED.values()
    if row.publisher == "sepc"
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authors(shared_reference):
    """Their checkpoints; tensors that several of them share are made once."""
    module = import_authors(shared_reference)
    make = module._fill
    once = lru_cache(maxsize=None)(lambda name, shape, salt: make(name, list(shape), salt))
    module._fill = lambda name, shape, salt: once(name, tuple(shape), salt)
    return module


def their_checkpoint(authors, name):
    return authors.authors_checkpoint(name.replace("_fpn", "_baseline"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    yield folder
    shutil.rmtree(folder)  # two gigabytes


@pytest.fixture(scope="module")
def imported(authors, home):
    """Status and output of `import all` while one file is missing, then of importing that file."""

    def file(name):
        content = io.BytesIO()
        new = name != LEGACY
        torch.save(their_checkpoint(authors, name), content, _use_new_zipfile_serialization=new)
        return content.getvalue()

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["import", *arguments])
        return status, out.getvalue(), err.getvalue()

    with Drive() as drive, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SEPC_ZOO_HOME", str(home))
        point_gdown_at(drive, monkeypatch)
        for name, id in IDS.items():
            drive.files[id] = partial(file, name)
        drive.pages = {IDS[LATE]: QUOTA}
        first = run("all", "--source", "sepc")
        drive.pages.clear()
        return first, run(LATE, "--source", "sepc")


def test_all_but_one_are_done_and_that_one_is_named(imported):
    status, out, err = imported[0]
    assert status == 1
    named = [line for line in err.splitlines() if line.startswith("not done: ")]
    assert len(named) == 1
    name = f"{LATE}.coco_1x"
    assert f"not done: {name}: cannot download {name}: its download quota" in named[0]
    done = {line.partition(".")[0] for line in out.splitlines()}
    assert set(IDS) - done == {LATE}


def test_the_one_can_be_imported_later(imported):
    assert imported[1][0] == 0


@pytest.mark.usefixtures("imported")
def test_a_new_process_finds_all_offline_and_they_compute_what_the_originals_did(
    authors, home, shared_reference
):
    environment = {"SEPC_ZOO_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = run_python(imported_models.__file__, shared_reference, **environment)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(found) == set(IDS)
    goldens = {our_name(name) for name in GOLDENS}
    assert {name for name, digest in found.items() if digest == "golden"} == goldens
    for name in set(found) - goldens:
        state = their_checkpoint(authors, name)["state_dict"]
        assert found[name] == digest(from_authors(state, name)), name
