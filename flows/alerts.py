"""Watch the flows of a Prefect server: `TOKENBRIDGE_ALERT_URL=https://... python -m flows.alerts [--silence SECONDS]`.

A flow run that fails or crashes is reported to that address, by a POST of JSON. Prefect alone would show a flow run
whose process was killed as running for ever. It is marked as crashed when its heartbeats stay away for longer than
``--silence``. Both are automations, seen and edited in the server's pages; running this again brings them up to date.
"""

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.settings import get_current_settings
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.server import PATIENCE
from tokenbridge.base.program import program

URL_VARIABLE = "TOKENBRIDGE_ALERT_URL"  # it may hold a token, so it is no argument, which others could see
BLOCK = "tokenbridge-alerts"
FLOW_RUNS: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
VANISHED = "its process has vanished: no heartbeats any more"
MESSAGE = """{
  "flow": {{ flow.name | tojson }},
  "run": {{ flow_run.name | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "message": {{ (flow_run.state.message or "") | tojson }},
  "page": {{ flow_run | ui_url | tojson }}
}"""

HEADERS = SecretDict({"Content-Type": "application/json"})


def failure_alert(webhook: UUID) -> Automation:
    """Tell the webhook of each flow run that failed or crashed."""
    return Automation(
        name="tokenbridge: tell of failures",
        description="POSTs flow, run, state, message and page of a failed or crashed flow run",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=FLOW_RUNS,
            posture=Posture.Reactive,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=MESSAGE)],
    )


def crash_detection(silence: float) -> Automation:
    """Mark a flow run as crashed when it has sent no heartbeat for that many seconds before it has ended."""
    return Automation(
        name="tokenbridge: notice killed flows",
        description="Marks a flow run as crashed when its process has vanished",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            match=FLOW_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            within=timedelta(seconds=silence),
        ),
        actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=VANISHED, force=False)],
    )


async def set_up(url: str, silence: float) -> None:
    """Create the webhook and both automations, in place of those that are there."""
    webhook = Webhook(method="POST", url=SecretStr(url), headers=HEADERS)
    block: UUID = await webhook.asave(BLOCK, overwrite=True)
    for automation in (failure_alert(block), crash_detection(silence)):
        with suppress(ValueError):  # none of that name
            await (await Automation.aread(name=automation.name)).adelete()
        await automation.acreate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.alerts", description="Watch the flows of a Prefect server.")
    # no shorter than flows wait for a server that is being restarted, which gets no heartbeats
    parser.add_argument("--silence", type=float, default=PATIENCE, help="seconds until a flow is dead (%(default)s)")
    silence = parser.parse_args().silence
    url = os.environ.get(URL_VARIABLE)
    if not url or not os.environ.get("PREFECT_API_URL"):
        sys.exit(f"alerts: set PREFECT_API_URL to the server's address and {URL_VARIABLE} to where alerts should go")
    between = get_current_settings().flows.heartbeat_frequency
    if between is None or silence <= between:
        sys.exit(f"alerts: --silence is {silence:g}, but living flows are heard each {between} seconds: take more")
    with program("alerts"):
        asyncio.run(set_up(url, silence))
    print(f"alerts: failed and crashed flow runs are now reported there, killed ones after {silence:g} seconds")


if __name__ == "__main__":
    main()
