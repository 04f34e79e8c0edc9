"""What flows ask of a Prefect server: patience while it is restarted, and a slot to train."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings

from tokenbridge.base.at_end import at_end
from tokenbridge.base.errors import UserError
from tokenbridge.infra.tracking.pages import public_uri

PATIENCE = 240  # seconds; connections that are open already wait as long, by client.max_retries in pyproject.toml
POLL = 2  # seconds
LEASE_SECONDS = 60  # after which the slot of a flow that was killed is free again


def require_server() -> None:
    """Check that the server answers, if Prefect is set to use one. Otherwise it starts one for the flow.

    Raises:
        UserError: if not.
    """
    url = get_current_settings().api.url
    if url is None:
        return
    with get_client(sync_client=True) as client:
        if problem := client.api_healthcheck():
            raise UserError(
                f"PREFECT_API_URL is {public_uri(url)}, where no server of Prefect answers ({problem}): start it, or "
                "unset PREFECT_API_URL for a run without one"
            )


def wait_for_server() -> None:
    """Return when the server answers. Prefect gives a new connection one attempt only.

    When patience ends it returns too: what is asked next then says what is wrong.
    """
    deadline = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None and time.monotonic() < deadline:
            time.sleep(POLL)


@contextmanager
def training_slot(gpu_group: str) -> Iterator[None]:
    """Wait until no other flow trains on this group of GPUs; an administrator may allow more than one."""
    name = f"tokenbridge-{gpu_group}"
    wait_for_server()
    with get_client(sync_client=True) as client:
        try:  # to create what exists makes the server log a traceback
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another flow was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    with (
        concurrency(
            name,
            lease_duration=LEASE_SECONDS,
            strict=True,
            raise_on_lease_renewal_failure=False,  # a server that was away may have forgotten it, and training goes on
        ),
        at_end(wait_for_server),  # it takes the slot back
    ):
        yield
