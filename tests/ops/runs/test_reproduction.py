"""What counts as the same run again."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.dvc import init_dvc
from tokenbridge.base.machine import installed_packages, processor
from tokenbridge.infra.dvc import RAN
from tokenbridge.infra.git import git
from tokenbridge.infra.tracking.recorded import RecordedRun, RecordError
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.infra.tracking.store import connect
from tokenbridge.ops.runs.pipeline_run import PipelineRun
from tokenbridge.ops.runs.reproduction import Difference, compare, report, reproduce_run

METRIC = "measure/distance"


@pytest.fixture
def run(tmp_path: Path) -> PipelineRun:
    """A rebuilt run of one stage that wrote one report."""
    stage = {"cmd": "true", "metrics": ["measure.json"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"measure": stage}}))
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "measure.json").write_text(json.dumps({"distance": 5.0}))
    init_dvc(tmp_path)
    return PipelineRun(tmp_path, Tracker.open("test", "key", tmp_path, system_interval=0), {"measure": RAN})


@pytest.fixture
def recorded(run: PipelineRun) -> RecordedRun:
    """The same run, as it was recorded on this machine."""
    md5 = hashlib.md5((run.root / "measure.json").read_bytes()).hexdigest()
    stages = {
        "measure": {"cmd": "true", "outs": [{"path": "measure.json", "md5": md5}]},
        "gone@old": {"cmd": "true", "outs": [{"path": "gone", "md5": md5}]},  # dvc.lock never forgets
    }
    return RecordedRun(
        run_id="r1",
        commit="c1",
        params="",
        lock=yaml.safe_dump({"schema": "2.0", "stages": stages}),
        patch=b"",
        packages=installed_packages(),
        processor=processor(),
        metrics={METRIC: 5.0, "other/metric": 1.0},
    )


def test_the_same_bits_are_the_same_run(run: PipelineRun, recorded: RecordedRun) -> None:
    result = compare(recorded, run, recomputed=True)
    assert (result.outs, result.metrics, result.exact, result.equal) == (1, 1, True, True)
    assert report(result).splitlines()[0] == f"Run r1 computed again in {run.root}: the same bits."


@pytest.mark.parametrize(("content", "found"), [('{"distance": 5.000001}', "exact md5"), (None, "absent")])
def test_on_the_same_machine_nothing_may_differ(
    run: PipelineRun, recorded: RecordedRun, content: str | None, found: str
) -> None:
    file = run.root / "measure.json"
    file.write_text(content) if content else file.unlink()
    result = compare(recorded, run, recomputed=True)
    assert [item.what for item in result.changed] == ["measure.json"]
    assert (result.changed[0].found == found) == (content is None)
    assert [item.what for item in result.drifted] == [METRIC]
    assert not result.equal
    assert "| measure.json |" in report(result)


@pytest.mark.parametrize(("distance", "equal"), [(5.4, True), (5.6, False)])
def test_elsewhere_metrics_may_differ_by_the_tolerance(
    run: PipelineRun, recorded: RecordedRun, distance: float, equal: bool
) -> None:
    (run.root / "measure.json").write_text(json.dumps({"distance": distance}))
    elsewhere = replace(recorded, processor="another")
    result = compare(elsewhere, run, recomputed=True)
    assert [item.what for item in result.machine] == ["processor"]
    assert (result.exact, result.equal) == (False, equal)
    assert not compare(elsewhere, run, recomputed=False).equal  # what was restored has its bits


@pytest.mark.parametrize("where", ["here", "another"])
def test_what_is_missing_is_never_the_same(run: PipelineRun, recorded: RecordedRun, where: str) -> None:
    elsewhere = replace(recorded, processor=where)
    more = compare(replace(elsewhere, metrics={METRIC: 5.0, "measure/recall": 0.5}), run, recomputed=True)
    assert more.drifted == [Difference("measure/recall", "0.5", "'absent'")]
    assert not more.equal
    (run.root / "measure.json").unlink()
    run.outcomes.clear()
    less = compare(replace(elsewhere, metrics={}), run, recomputed=True)
    assert [(item.what, item.found) for item in less.changed] == [("measure.json", "absent")]
    assert not less.equal


def test_other_packages_and_files_that_were_too_large_are_another_machine(
    run: PipelineRun, recorded: RecordedRun
) -> None:
    packages = recorded.packages | {"torch": "0.1", "vanished": "1.0"}
    other = replace(recorded, packages=packages, left_out=("data.bin",))
    result = compare(other, run, recomputed=True)
    assert {item.what: item.found for item in result.machine} == {
        "torch": installed_packages()["torch"],
        "vanished": "absent",
        "data.bin": "absent",
    }
    assert "| data.bin | not recorded | absent |" in report(result)


@pytest.fixture
def old_run(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A project, and the id of a run of it with the tags and artifacts of version 0.1, under their literal names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy2(empty_database, root / "mlflow.db")
    command = """python -c "import os; os.makedirs('data', exist_ok=True); open('{}', 'w').write('{}')" """
    stages = {
        "fetch": {"cmd": command.format("data/images", "pixels"), "outs": ["data/images"]},
        "measure": {
            "cmd": command.format("measure.json", '{\\"distance\\": 5.0}'),
            "deps": ["data/images"],
            "params": ["seed"],
            "metrics": ["measure.json"],
        },
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "params.yaml").write_text("seed: 0\n")
    (root / ".gitignore").write_text("/data/\n/measure.json\n/.spool\n/.work\n/mlflow.db*\n/mlartifacts\n")
    git(root, "init", "--quiet")
    for key in ("user.name", "user.email"):
        git(root, "config", key, "test@example.org")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q"], cwd=root, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    subprocess.run([*dvc, "repro", "-q"], cwd=root, check=True)
    packages = "".join(f"{name}=={version}\n" for name, version in installed_packages().items())
    patch = "--- /dev/null\n+++ b/note.txt\n@@ -0,0 +1 @@\n+never committed\n"
    store = connect(root)
    tags = {"stage": "pipeline", "git.commit": git(root, "rev-parse", "HEAD"), "git.dirty": "true"}
    run_id = store.client.create_run(store.experiment, tags=tags | {"processor": processor()}).info.run_id
    store.client.log_metric(run_id, METRIC, 5.0)
    for name, text in {"packages.txt": packages, "uncommitted.patch": patch}.items():
        store.client.log_text(run_id, text, name)
    for name in ("params.yaml", "dvc.lock"):
        store.client.log_artifact(run_id, str(root / name))
    store.client.set_terminated(run_id)
    (root / "params.yaml").write_text("seed: 1\n")
    return root, run_id


@pytest.mark.pipeline
def test_a_run_that_version_0_1_recorded_is_reproduced(old_run: tuple[Path, str]) -> None:
    root, run_id = old_run
    for recompute in (False, True):
        result = reproduce_run(root, run_id, recompute, trust=True, on_line=lambda _: None)
        assert (result.exact, result.machine, result.outs, result.metrics) == (True, [], 2, int(recompute))
    rebuilt = root / ".work/reproduce" / run_id
    assert (rebuilt / "note.txt").read_text() == "never committed\n"
    assert (rebuilt / "params.yaml").read_text() == "seed: 0\n"
    with pytest.raises(RecordError, match=f"has no run {'0' * 32}: take the id of a `pipeline` row"):
        reproduce_run(root, "0" * 32, recompute=False)
