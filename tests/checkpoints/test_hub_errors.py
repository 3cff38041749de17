"""What is said when something goes wrong between a user and the hub, and how soon."""

import time

import pytest
from hub_cases import LOADING, LOST, MODEL, PUSHING, SLOW, Scene, files_of, tiny_model

from sepc_zoo import HubError

SECONDS = 1.5  # within which an error comes, on a busy machine
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def pushed():
    return tiny_model()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return files_of(tiny_model(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def scene(hub, pushed, files, monkeypatch):
    return Scene(hub, pushed, files, monkeypatch)


def check(scene, case):
    act, expected = case
    with pytest.raises(HubError, match=expected):
        act(scene)


@pytest.mark.parametrize("name", LOADING)
def test_a_load_that_fails_says_why_at_once(scene, name):
    start = time.perf_counter()
    check(scene, LOADING[name])
    assert time.perf_counter() - start < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_load_that_fails_after_retries_says_why(scene, name):
    check(scene, SLOW[name])


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("name", PUSHING)
def test_a_push_that_fails_says_why_and_leaves_the_repository_as_it_was(scene, name):
    before = dict(scene.hub.repository(MODEL).refs)
    check(scene, PUSHING[name])
    assert scene.hub.repository(MODEL).refs == before


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("name", LOST)
def test_a_push_whose_answer_is_lost_does_not_say_that_nothing_was_committed(scene, name):
    before = scene.hub.repository(MODEL).resolve("main")
    check(scene, LOST[name])
    assert scene.hub.repository(MODEL).resolve("main") != before
