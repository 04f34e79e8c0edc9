"""The run around DVC's stages."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.infra.dvc import LOCK_FILE
from tokenbridge.ops.runs.pipeline_run import pipeline_run


def test_a_failure_is_raised_once_even_if_its_cause_prevents_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr("tokenbridge.ops.runs.pipeline_run.LiveSync", lambda *_, **__: nullcontext())  # nothing is sent
    with pytest.raises(StageFailedError, match="as dvc says") as caught, pipeline_run(tmp_path):
        (tmp_path / LOCK_FILE).write_text("<<<<<<< a conflict")
        raise StageFailedError("as dvc says")
    assert len(caught.value.__notes__) == 1
    (events,) = (tmp_path / ".spool").glob("*-pipeline-*/events.jsonl")
    assert json.loads(events.read_text().splitlines()[-1])["status"] == "FAILED"
