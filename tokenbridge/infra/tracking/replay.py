"""Replay one spool into one MLflow run, with the times at which the events happened.

Everything here may be repeated. A run is found again by its ``spool`` tag. Metrics carry their own time stamps, and
MLflow keeps equal ones once. Parameters and tags keep their values, and artifacts overwrite themselves.
"""

import getpass
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby, islice
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError

from tokenbridge.config.params import flatten
from tokenbridge.infra.tracking import say
from tokenbridge.infra.tracking.logged_model import log_model
from tokenbridge.infra.tracking.pages import public_uri
from tokenbridge.infra.tracking.pending import Spool, SyncState
from tokenbridge.infra.tracking.registry import register
from tokenbridge.infra.tracking.store import NOT_FOUND, Store

LIGHT = ("metrics", "params", "tags", "reused")  # events that are gathered into batches
EVENTS_PER_BATCH = 200
LONGEST_DIGEST = 36  # characters; MLflow takes no more
TRY_AGAIN_STATUS = (401, 403, 404, 408, 429)  # besides 5xx: a later attempt may succeed
DELETED = "was deleted in MLflow"
Event = dict[str, Any]


def is_refusal(error: Exception) -> bool:
    """Return whether every later attempt would fail in the same way. Otherwise the event is worth another attempt."""
    cause = error.__cause__
    if isinstance(cause, DatabaseError) and not isinstance(cause, IntegrityError | DataError):
        return False  # MLflow calls a damaged database a bad request
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in TRY_AGAIN_STATUS
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)  # a file of the spool was removed
    return isinstance(error, ValueError | TypeError | LookupError | ImportError | AttributeError)


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
    batch: dict[str, list[Any]] = {kind: [] for kind in ("metrics", "params", "tags")}
    for event in events:
        kind, values = event["type"], event["values"]
        if kind == "metrics":
            batch[kind] += [Metric(clean_name(key), v, event["time"], event["step"]) for key, v in values.items()]
        else:
            texts = {clean_name(k): v if isinstance(v, str) else json.dumps(v) for k, v in flatten(values).items()}
            batch[kind] += [(Param if kind == "params" else RunTag)(key, text) for key, text in texts.items()]
    return batch


def create_run(store: Store, spool: Spool) -> str:
    meta = spool.meta()
    tags = {
        "spool": spool.id,
        "stage": meta.stage,
        "stage.key": meta.key,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"tokenbridge {meta.stage}",
    }
    # spools are sent oldest first, so the parent has its run
    if meta.parent and (parent := store.newest(f"tags.spool = '{meta.parent}'")):
        tags["mlflow.parentRunId"] = parent
    run = store.client.create_run(store.experiment, start_time=meta.start, tags=tags, run_name=meta.name)
    return str(run.info.run_id)


class Replay:
    """Send what is new in a spool, and save the progress after every step."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self.store, self.client, self.spool = store, store.client, spool
        self.state = spool.state()
        uri = public_uri(store.uri)  # the state is a file, so it holds no password
        if self.state.store != uri or self._run() is None:
            run_id = store.newest(f"tags.spool = '{spool.id}'") or create_run(store, spool)
            self.state = SyncState(uri, run_id)  # another store, or an emptied one, gets all events
        self.run_id = str(self.state.run_id)

    def _run(self) -> Run | None:
        """Return the run, which may be deleted, or None if the store does not know it."""
        try:
            return self.client.get_run(str(self.state.run_id))
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
            return None

    def send(self) -> SyncState:
        """Send what is new, unless somebody deleted the run in MLflow. Then send the rest if it is restored in time."""
        abandoned = self.spool.abandoned()  # asked first, so that the last events of a writer that ended are read too
        try:
            self._send_news(abandoned)
        except MlflowException:
            if not self._is_deleted():
                raise
            if DELETED not in self.state.refused:
                say(f"run {self.run_id} ({self.spool.id}) {DELETED}: its record stays in {self.spool.folder}.")
                say(f"  To send it again, restore the run in MLflow and remove {self.spool.state_path}")
                self.state.refused.append(DELETED)
            self.state.done = abandoned
            self.spool.save(self.state)
        else:
            self.state.refused = [what for what in self.state.refused if what != DELETED]
        return self.state

    def _send_news(self, abandoned: bool) -> None:
        for offset, events in batches(self.spool.events(self.state.offset)):
            self.send_events(events)
            self.state.offset = offset
            self.spool.save(self.state)
        if abandoned and not self.state.done:
            last_write = self.spool.events_path.stat().st_mtime_ns // 1_000_000
            self.send_events([{"type": "finish", "status": "KILLED", "time": last_write}])
            self.state.done = True
            self.spool.save(self.state)

    def send_events(self, events: list[Event]) -> None:
        """Send light events together, or one other event. Only events that MLflow refuses are left out."""
        kind = events[0]["type"]
        try:
            if kind in LIGHT:
                self.client.log_batch(self.run_id, **entities([self._named(event) for event in events]))
            else:
                getattr(self, f"send_{kind}")(events[0])
        except Exception as error:
            if not is_refusal(error) or self._is_deleted():
                raise
            if len(events) == 1:
                self.refuse(public_uri(f"{json.dumps(events[0])}: {error}"))
            else:
                for event in events:
                    self.send_events([event])

    def _named(self, event: Event) -> Event:
        """Return an event ``reused`` as a tag, which names the run that made the stage's outputs. Others stay."""
        if event["type"] != "reused":
            return event
        maker = self.store.made_by(event["stage"], event["key"]) or "a run unknown to this store"
        return {"type": "tags", "values": {f"reused.{event['stage']}": maker}}

    def refuse(self, what: str) -> None:
        """Note a record that is left out. The first of a run is reported; its tag ``sync.refused`` has them all."""
        if not self.state.refused:
            say(f"MLflow refused a record of {self.spool.id}. It is left out, and stays in {self.spool.folder}: {what}")
        self.state.refused.append(what)
        with suppress(MlflowException):  # if it refuses this too
            self.client.set_tag(self.run_id, "sync.refused", "\n".join(self.state.refused))

    def _is_deleted(self) -> bool:
        run = self._run()
        return run is not None and run.info.lifecycle_stage == LifecycleStage.DELETED

    def send_damaged(self, _: Event) -> None:
        raise ValueError("this line of events.jsonl is damaged")

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

    def send_finish(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], event["time"])
        self.state.done = True
