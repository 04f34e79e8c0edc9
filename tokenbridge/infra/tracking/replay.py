"""Replay one spool into one MLflow run, with the times at which the events happened.

Everything here may be repeated. A run is found again by its ``spool`` tag. Metrics carry their own time stamps, and
MLflow keeps equal ones once. Parameters and tags keep their values, and artifacts overwrite themselves.
"""

import getpass
import json
import re
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tokenbridge.base.files import read_json
from tokenbridge.config.params import flatten
from tokenbridge.infra.tracking.logged_model import log_model
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.pending import Spool, SyncState
from tokenbridge.infra.tracking.registry import register
from tokenbridge.infra.tracking.store import Store, say

LIGHT = ("metrics", "params", "tags")  # events that are gathered into batches
EVENTS_PER_BATCH = 200
LONGEST_DIGEST = 36  # characters; MLflow takes no more
TRY_AGAIN_STATUS = (401, 403, 404, 408, 429)  # besides 5xx: a later attempt may succeed
Event = dict[str, Any]


def is_refusal(error: Exception) -> bool:
    """Return whether every later attempt would fail in the same way. Otherwise the event is worth another attempt."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in TRY_AGAIN_STATUS
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)  # a file of the spool was removed
    return isinstance(error, ValueError | TypeError | ImportError | AttributeError)


def clean_name(name: str) -> str:
    """Make a name valid for MLflow, which takes letters, digits and ``_-. :/``, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def batches(events: Iterator[tuple[int, Event]]) -> Iterator[tuple[int, list[Event]]]:
    """Yield (offset behind the events, events) in order: light events in batches, every other event alone."""
    for light, neighbours in groupby(events, key=lambda item: item[1]["type"] in LIGHT):
        while batch := list(islice(neighbours, EVENTS_PER_BATCH if light else 1)):
            yield batch[-1][0], [event for _, event in batch]


def entities(events: list[Event]) -> dict[str, list[Any]]:
    """Return light events as arguments of ``MlflowClient.log_batch``, which cuts texts that are too long."""
    batch: dict[str, list[Any]] = {kind: [] for kind in LIGHT}
    for event in events:
        kind, values = event["type"], event["values"]
        if kind == "metrics":
            batch[kind] += [Metric(clean_name(key), v, event["time"], event["step"]) for key, v in values.items()]
        else:
            texts = {clean_name(k): v if isinstance(v, str) else json.dumps(v) for k, v in flatten(values).items()}
            batch[kind] += [(Param if kind == "params" else RunTag)(key, text) for key, text in texts.items()]
    return batch


def create_run(store: Store, spool: Spool) -> str:
    meta = read_json(spool.folder / "meta.json")
    tags = {
        "spool": spool.id,
        "stage": meta["stage"],
        "stage.key": meta["key"],
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"tokenbridge {meta['stage']}",
    }
    # spools are sent oldest first, so the parent has its run
    if meta["parent"] and (parent := store.newest(f"tags.spool = '{meta['parent']}'")):
        tags["mlflow.parentRunId"] = parent
    run = store.client.create_run(store.experiment, start_time=meta["start"], tags=tags, run_name=meta["name"])
    return str(run.info.run_id)


class Replay:
    """Send what is new in a spool, and save the progress after every step."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self.store, self.client, self.spool = store, store.client, spool
        self.run_id = store.newest(f"tags.spool = '{spool.id}'") or create_run(store, spool)
        self.state = spool.state()
        uri = public_uri(store.uri)  # the state is a file, so it holds no password
        if (self.state.store, self.state.run_id) != (uri, self.run_id):
            self.state = SyncState(uri, self.run_id)  # another store, or an emptied one, gets all events

    def send(self) -> SyncState:
        abandoned = self.spool.abandoned()  # asked first, so that the last events of a writer that ended are read too
        for offset, events in batches(self.spool.events(self.state.offset)):
            self.send_events(events)
            self.state.offset = offset
            self.spool.save(self.state)
        if abandoned and not self.state.done:
            last_write = self.spool.events_path.stat().st_mtime_ns // 1_000_000
            self.send_finish({"status": "KILLED", "time": last_write})
            self.spool.save(self.state)
        return self.state

    def send_events(self, events: list[Event]) -> None:
        """Send light events together, or one other event. Only events that MLflow refuses are left out."""
        kind = events[0]["type"]
        try:
            if kind in LIGHT:
                self.client.log_batch(self.run_id, **entities(events))
            else:
                getattr(self, f"send_{kind}")(events[0])
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(events) == 1:
                self.refuse(f"{json.dumps(events[0])}: {error}")
            else:
                for event in events:
                    self.send_events([event])

    def refuse(self, what: str) -> None:
        say(f"MLflow refused a record, which stays in {self.spool.folder}: {what}")
        self.state.refused.append(what)
        self.client.set_tag(self.run_id, "sync.refused", "\n".join(self.state.refused))

    def send_artifact(self, event: Event) -> None:
        self.client.log_artifact(self.run_id, str(self.spool.folder / event["file"]), event["folder"] or None)

    def send_dataset(self, event: Event) -> None:
        source = json.dumps({"uri": event["source"]})
        dataset = Dataset(event["name"], event["digest"][:LONGEST_DIGEST], source_type="local", source=source)
        tags = [InputTag("mlflow.data.context", event["context"]), InputTag("digest", event["digest"])]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def send_model(self, event: Event) -> None:
        model_id = log_model(self.store, self.run_id, self.spool.folder / event["file"], event["name"])
        self.client.set_tag(self.run_id, f"model.{event['name']}", f"models:/{model_id}")

    def send_version(self, event: Event) -> None:
        register(self.store, self.run_id, self.spool.folder / event["file"], event)

    def send_reused(self, event: Event) -> None:
        maker = self.store.made_by(event["stage"], event["key"])
        self.client.set_tag(self.run_id, f"reused.{clean_name(event['stage'])}", maker or "a run unknown to this store")

    def send_finish(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], event["time"])
        self.state.done = True
