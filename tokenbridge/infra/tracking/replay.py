"""Replay one spool into one MLflow run, with the times at which the events happened.

Everything here may be repeated. A run is found again by its ``spool`` tag. Metrics carry their own time stamps, and
MLflow keeps equal ones once. Parameters and tags keep their values, and artifacts overwrite themselves.
"""

import getpass
import json
import re
from collections.abc import Iterator
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tokenbridge.config.params import flatten
from tokenbridge.infra.tracking.logged_model import log_model
from tokenbridge.infra.tracking.pending import Spool, SyncState
from tokenbridge.infra.tracking.registry import register
from tokenbridge.infra.tracking.store import Store

LIGHT = ("metrics", "params", "tags")  # events that are gathered into batches
EVENTS_PER_BATCH = 200
ITEMS_PER_REQUEST = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's own limits
LONGEST_VALUE = 5000  # characters of a parameter or tag; MLflow cuts at 6000 and 8000
LONGEST_DIGEST = 36  # characters; MLflow takes no more
TRY_AGAIN_STATUS = (401, 403, 404, 408, 429)  # besides 5xx: a later attempt may succeed


def is_refusal(error: Exception) -> bool:
    """Return whether every later attempt would fail in the same way. Otherwise the event is worth another attempt."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in TRY_AGAIN_STATUS
    if isinstance(error, FileNotFoundError):
        return True  # a file of the spool was removed
    return isinstance(error, ValueError | TypeError | ImportError | AttributeError) and not isinstance(error, OSError)


def clean_name(name: str) -> str:
    """Make a name valid for MLflow, which takes letters, digits and ``_-. :/``, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def batches(events: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield (offset behind the events, events) in order: light events in batches, every other event alone."""
    gathered: list[dict[str, Any]] = []
    end = 0
    for offset, event in events:
        light = event["type"] in LIGHT
        if gathered and (not light or len(gathered) == EVENTS_PER_BATCH):
            yield end, gathered
            gathered = []
        if light:
            gathered.append(event)
        else:
            yield offset, [event]
        end = offset
    if gathered:
        yield end, gathered


def ensure_run(store: Store, spool: Spool) -> SyncState:
    """Return the spool's state with a run in this store: the run it had, one found by its tag, or a new one."""
    state = spool.state()
    lost = state.run_id is not None and store.run(state.run_id) is None
    if state.store != store.uri or lost:
        state = SyncState(store=store.uri)  # another store, or an emptied one, gets all events
    if state.run_id is None:
        state.run_id = store.newest(f"tags.spool = '{spool.id}'") or create_run(store, spool)
        spool.save(state)
    return state


def create_run(store: Store, spool: Spool) -> str:
    meta = spool.meta()
    tags = {
        "spool": spool.id,
        "stage": meta["stage"],
        "stage.key": meta["key"],
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"tokenbridge {meta['stage']}",
    }
    if parent := find_parent(store, spool, meta["parent"]):
        tags["mlflow.parentRunId"] = parent
    name = meta.get("name", meta["stage"])  # a spool of an earlier version has no name
    run = store.client.create_run(store.experiment, start_time=meta["start"], tags=tags, run_name=name)
    return str(run.info.run_id)


def find_parent(store: Store, spool: Spool, parent: str | None) -> str | None:
    """Return the parent's run id. If the parent has only a spool, create its run first."""
    if parent is None:
        return None
    beside = Spool(spool.folder.parent / parent)
    if beside.exists():
        return ensure_run(store, beside).run_id
    return store.newest(f"tags.spool = '{parent}'") or (parent if store.run(parent) else None)


class Replay:
    """Send what is new in a spool, and save the progress after every step."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self.store, self.client, self.spool = store, store.client, spool
        self.state = ensure_run(store, spool)
        assert self.state.run_id is not None
        self.run_id: str = self.state.run_id

    def send(self) -> SyncState:
        abandoned = self.spool.abandoned()  # asked first, so that the last events of a writer that ended are read too
        for offset, events in batches(self.spool.events(self.state.offset)):
            if events[0]["type"] in LIGHT:
                self.send_batch(events)
            else:
                self.send_event(events[0])
            self.state.offset = offset
            self.spool.save(self.state)
        if abandoned and not self.state.done:
            self.finish("KILLED", self.spool.last_time())
            self.spool.save(self.state)
        return self.state

    def send_batch(self, events: list[dict[str, Any]]) -> None:
        items: dict[str, list[Any]] = {kind: [] for kind in LIGHT}
        for event in events:
            values = event["values"]
            if event["type"] == "metrics":
                items["metrics"] += [Metric(clean_name(k), v, event["time"], event["step"]) for k, v in values.items()]
            elif event["type"] == "params":
                items["params"] += [Param(*self.text_item("params", k, v)) for k, v in flatten(values).items()]
            else:
                items["tags"] += [RunTag(*self.text_item("tags", k, v)) for k, v in values.items()]
        for kind, entities in items.items():
            size = ITEMS_PER_REQUEST[kind]
            for start in range(0, len(entities), size):
                self.log(kind, entities[start : start + size])

    def text_item(self, kind: str, key: str, value: Any) -> tuple[str, str]:
        """Return name and text of a parameter or tag. Cut a long text, and log the whole text as an artifact."""
        name, text = clean_name(key), value if isinstance(value, str) else json.dumps(value)
        if len(text) <= LONGEST_VALUE:
            return name, text
        path = f"{kind}/{name}.txt"
        self.client.log_text(self.run_id, text, path)
        return name, f"{text[:LONGEST_VALUE]}... (whole in artifact {path})"

    def log(self, kind: str, items: list[Any]) -> None:
        """Log a batch. If it is refused, halve it until only the refused items are left out."""
        try:
            self.client.log_batch(self.run_id, **{kind: items})
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(items) == 1:
                self.refuse(f"{kind} {items[0].key} = {items[0].value}", error)
                return
            middle = len(items) // 2
            self.log(kind, items[:middle])
            self.log(kind, items[middle:])

    def send_event(self, event: dict[str, Any]) -> None:
        try:
            getattr(self, f"send_{event['type']}")(event)
        except Exception as error:
            if not is_refusal(error):
                raise
            self.refuse(json.dumps(event), error)

    def refuse(self, what: str, error: Exception) -> None:
        self.state.refused.append(f"{what}: {error}")

    def send_artifact(self, event: dict[str, Any]) -> None:
        self.client.log_artifact(self.run_id, str(self.spool.folder / event["file"]), event["folder"] or None)

    def send_dataset(self, event: dict[str, Any]) -> None:
        digest, source = event["digest"], event["source"]
        dataset = Dataset(
            name=event["name"],
            digest=digest[:LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"digest": digest}),
        )
        tags = [InputTag("mlflow.data.context", event["context"]), InputTag("digest", digest)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def send_model(self, event: dict[str, Any]) -> None:
        pipeline = self.spool.folder / event["file"]
        model_id = log_model(self.store, self.run_id, pipeline, event["name"], mark=event["file"])
        self.client.set_tag(self.run_id, f"model.{event['name']}", f"models:/{model_id}")

    def send_version(self, event: dict[str, Any]) -> None:
        register(self.store, self.run_id, self.spool.folder / event["file"], event)

    def send_reused(self, event: dict[str, Any]) -> None:
        maker = self.store.made_by(event["stage"], event["key"])
        self.client.set_tag(self.run_id, f"reused.{clean_name(event['stage'])}", maker or "a run unknown to this store")

    def send_finish(self, event: dict[str, Any]) -> None:
        self.finish(event["status"], event["time"])

    def finish(self, status: str, end: int) -> None:
        if self.state.refused:
            self.client.log_text(self.run_id, "\n".join(self.state.refused) + "\n", "sync/refused.txt")
            self.client.set_tag(self.run_id, "sync.refused", str(len(self.state.refused)))
        self.client.set_terminated(self.run_id, status, end)
        self.state.done = True
