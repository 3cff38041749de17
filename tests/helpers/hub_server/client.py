"""Pointing the client at a hub: other processes by their environment, this one by constants.

The client reads its environment once, while it is imported, and its modules copy what they need.
"""

import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from hub_server.server import HubServer

_PREFIXES = ("HF_", "HUGGING", "SSL_CERT", "TRANSFORMERS_OFFLINE")
_NEXT_DOOR = "127.0.0.1,localhost"


def client_environment(hub: "HubServer", home: Path) -> dict[str, str]:
    """The environment of a process whose client knows this hub alone; its cache is in ``home``.

    What wants to go to another host meets the hub as its proxy, which refuses it and remembers it.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_PREFIXES) and not name.lower().endswith("_proxy")
    }
    proxies = {"http_proxy": hub.endpoint, "https_proxy": hub.endpoint, "no_proxy": _NEXT_DOOR}
    return (
        kept
        | proxies
        | {name.upper(): value for name, value in proxies.items()}
        | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",  # among it: asking the hub which agents there are
            "HF_HUB_DISABLE_XET": "1",  # large files by LFS
            # No authority is trusted; reading all of them is most of what making a session takes.
            "SSL_CERT_DIR": str(home),
        }
    )


def point_client_at(hub: "HubServer", home: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Let the client of this process know this hub alone until the test is over."""
    from huggingface_hub import constants, hf_api

    _set_environment(client_environment(hub, home), monkeypatch)
    # What the constants would be, had the client been imported in this environment.
    wanted = runpy.run_path(constants.__file__)
    old = dict(vars(constants))
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "huggingface_hub"]
    for name, value in wanted.items():
        if not name.isupper() or old.get(name) == value:
            continue
        for module in modules:
            if name in vars(module) and vars(module)[name] == old[name]:
                monkeypatch.setattr(module, name, value)
    # The functions of the module are methods of one object, which has a copy too.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    forget_connections()


def _set_environment(wanted: Mapping[str, str], monkeypatch: "pytest.MonkeyPatch") -> None:
    for name in os.environ.keys() - wanted.keys():
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


def forget_connections() -> None:
    """A session has read the proxies when it was made."""
    from huggingface_hub.utils import _http

    forget = getattr(_http, "close_session", None) or _http.reset_sessions  # before 1.0
    forget()
