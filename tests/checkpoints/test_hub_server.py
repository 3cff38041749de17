"""What the tests rely on when they talk to the hub of the tests."""

import pytest
from hub_server import HubServer, point_client_at
from huggingface_hub import constants
from huggingface_hub.utils import get_session


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub whose context the test leaves itself."""
    hub = HubServer().__enter__()
    point_client_at(hub, tmp_path, monkeypatch)
    return hub


def test_a_request_to_another_host_is_refused_and_reported(server):
    assert get_session().get("http://example.com/api/models").status_code == 403
    with pytest.raises(AssertionError, match=r"a request escaped: GET http://example\.com"):
        server.__exit__(None)


def test_an_error_inside_of_the_server_is_reported(server):
    assert get_session().get(f"{server.endpoint}/api/spaceships").status_code == 500
    with pytest.raises(AssertionError, match="NotImplementedError: GET /api/spaceships"):
        server.__exit__(None)


def test_the_client_is_left_as_it_was(tmp_path):
    before = dict(vars(constants))
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        point_client_at(hub, tmp_path, patch)
        assert hub.endpoint == constants.ENDPOINT != before["ENDPOINT"]
        assert str(tmp_path / "hub") == constants.HF_HUB_CACHE
    assert dict(vars(constants)) == before
