"""Records of runs as MLflow's pages may have left them."""

from pathlib import Path

import pytest

from tokenbridge.infra.tracking.recorded import RecordError, read_recorded
from tokenbridge.infra.tracking.store import Store


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"stage": "pipeline"}, "has not recorded dvc.lock, git.commit, git.dirty, params.yaml"),
        ({"stage": "pipeline", "git.commit": "abc"}, "has not recorded dvc.lock, git.dirty"),
        ({"stage": "encode"}, "is of encode, and belongs to no `pipeline` run"),
        ({"stage": "encode", "mlflow.parentRunId": "ITSELF"}, "belongs to no `pipeline` run"),
        ({"stage": "encode", "mlflow.parentRunId": "deleted"}, "has no run deleted"),
        ({}, "is of None"),
    ],
)
def test_tags_that_were_edited_or_deleted_are_named(
    root: Path, store: Store, tags: dict[str, str], message: str
) -> None:
    run_id = store.client.create_run(store.experiment).info.run_id
    for key, value in tags.items():
        store.client.set_tag(run_id, key, value.replace("ITSELF", run_id))
    with pytest.raises(RecordError, match=message):
        read_recorded(root, run_id)
