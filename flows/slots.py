"""Slots of a group of GPUs: who trains, and who waits."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.server import wait_for_server

LEASE_SECONDS = 60  # after which the slot of a flow that was killed is free again


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
    with concurrency(
        name,
        occupy=1,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=False,  # a server that was away may have forgotten it, and training goes on
    ):
        try:
            yield
        finally:
            wait_for_server()  # it takes the slot back
