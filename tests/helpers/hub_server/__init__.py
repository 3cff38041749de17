"""A Hugging Face Hub on the loopback, for the real ``huggingface_hub`` client to be tested against.

    with HubServer() as hub:
        token = hub.add_user("alice", organizations=["zoo"])
        hub.add_repository("zoo/model", {"config.json": b"{}"}, private=True)
        hub.misbehave("*/config.json", status=500, times=2)
        hf_hub_download("zoo/model", "config.json", endpoint=hub.endpoint, token=token)
        assert len(hub.seen("GET", "*/config.json")) == 1

It speaks the part of the hub's API that the client needs for repositories, files, commits, pull
requests and collections, over HTTP and from memory. Large files come from a storage on another
port, as the real ones come from another host; Xet is not offered. See ``api`` for what is answered
and ``faults`` for what can go wrong on demand. Nothing here knows the library under test.
"""

from hub_server.client import client_environment, point_client_at
from hub_server.faults import Fault
from hub_server.server import HubServer, Request
from hub_server.store import Repository

__all__ = [
    "Fault",
    "HubServer",
    "Repository",
    "Request",
    "client_environment",
    "point_client_at",
]
