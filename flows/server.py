"""Patience with a Prefect server that is being restarted."""

import time

from prefect.client.orchestration import get_client

PATIENCE = 240  # seconds; connections that are open already wait as long, by client.max_retries in pyproject.toml
POLL = 2  # seconds


def wait_for_server() -> None:
    """Return when the server answers. Prefect gives a new connection one attempt only.

    When patience ends it returns too: what is asked next then says what is wrong.
    """
    deadline = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None and time.monotonic() < deadline:
            time.sleep(POLL)
