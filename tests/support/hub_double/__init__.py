"""A Hugging Face Hub double: the HTTP that huggingface_hub speaks, on localhost, with faults on
demand.

``with FakeHub(folder) as hub`` serves repositories, commits, LFS uploads and ranged
downloads; ``hub.fail(...)`` injects a fault and ``hub.log`` holds every request.
Only the server is false: tests reach it with the real client, through ``HF_ENDPOINT=hub.url`` in a
subprocess or ``endpoint=hub.url`` in process.
"""

from tests.support.hub_double.client import environment, put, serving, upload
from tests.support.hub_double.server import FakeHub

__all__ = ["FakeHub", "environment", "put", "serving", "upload"]
