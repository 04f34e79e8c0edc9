"""What a stage writes is on disk at once, and stays readable however the stage ends."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import SmallDisk
from tokenbridge.base.files import DiskFullError
from tokenbridge.infra.git import git
from tokenbridge.infra.tracking.pending import Spool, find_spools
from tokenbridge.infra.tracking.spool import Tracker, share_spool


def events(tracker: Tracker, kind: str) -> list[dict[str, Any]]:
    return [event for _, event in Spool(tracker.folder).events(0) if event["type"] == kind]


def open_tracker(root: Path, **options: Any) -> Tracker:
    return Tracker.open("train@tiny", "key", root, system_interval=0, **options)


def test_an_event_is_readable_at_once_and_a_torn_line_is_ignored(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.metrics({"loss": 1.5, "nan": float("nan")}, step=3)
    with (tracker.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "metrics", "val')  # a torn last line does not count
    (event,) = events(tracker, "metrics")
    assert event["values"]["loss"] == 1.5
    assert event["values"]["nan"] != event["values"]["nan"]
    assert event["step"] == 3


def test_a_logged_file_is_a_copy_made_at_once(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    plot.write_text("first")
    tracker = open_tracker(tmp_path)
    tracker.artifact(plot, "plots")
    plot.write_text("second")
    tracker.artifact(plot, "plots")
    plot.unlink()
    kept = [(tracker.folder / event["file"]).read_text() for event in events(tracker, "artifact")]
    assert kept == ["first", "second"]
    with pytest.raises(FileNotFoundError, match=r"plot\.png cannot be logged"):
        tracker.artifact(plot)


def test_a_logged_model_survives_the_removal_of_its_folder(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "tiny" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    tracker = open_tracker(tmp_path)
    tracker.model(weights.parent, "tiny")
    weights.unlink()
    (event,) = events(tracker, "model")
    assert (tracker.folder / event["file"] / "weights.safetensors").read_text() == "weights"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_with_block_decides_how_the_run_ended(tmp_path: Path, error: BaseException | None, status: str) -> None:
    tracker = open_tracker(tmp_path)
    with suppress(ValueError, KeyboardInterrupt), tracker:
        if error:
            raise error
    (event,) = events(tracker, "finish")
    assert event["status"] == status
    tracker.finish()  # a second time
    with pytest.raises(ValueError, match="closed file"):
        tracker.metrics({"loss": 1.0})


def test_system_metrics_are_sampled_even_in_a_short_run(tmp_path: Path) -> None:
    with Tracker.open("fetch", "key", tmp_path, system_interval=60) as tracker:
        pass
    (event,) = events(tracker, "metrics")
    assert event["values"]["system/system_memory_usage_percentage"] > 0


def test_the_commit_is_tagged(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "--message", "first")
    tracker = open_tracker(tmp_path)
    assert events(tracker, "tags")[0]["values"]["git.commit"] == git(tmp_path, "rev-parse", "HEAD")


def test_the_tracker_needs_neither_mlflow_nor_torch() -> None:
    code = "import sys, tokenbridge.infra.tracking.spool; print({'mlflow', 'torch', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_full_disk_is_reported_and_spoils_no_line(small_disk: SmallDisk) -> None:
    tracker = open_tracker(small_disk.folder)
    small_disk.fill()
    written = 0
    with pytest.raises(DiskFullError, match=r"no space is left on the disk of .*disk/\.spool"):
        for written in range(10_000):
            tracker.metrics({"loss": 1.0}, written)  # the last page has room for some
    small_disk.free()
    tracker.metrics({"loss": 1.0}, written)
    assert [event["step"] for event in events(tracker, "metrics")] == list(range(written + 1))


def test_an_error_that_prevents_its_own_record_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="the cause"), open_tracker(tmp_path) as tracker:
        tracker.file.close()
        raise KeyError("the cause")


def test_runs_of_a_worktree_are_sent_as_those_of_its_project(tmp_path: Path) -> None:
    """Also those that an earlier version kept in the worktree, and after the project was moved."""
    project, worktree = tmp_path / "project", tmp_path / "project/.work/study"
    early = open_tracker(worktree).folder.name
    share_spool(project, worktree)
    late = open_tracker(worktree).folder.name
    project = project.rename(tmp_path / "moved")
    share_spool(project, project / ".work/study")
    last = open_tracker(project / ".work/study").folder.name
    assert {spool.folder.name for spool in find_spools(project)} == {early, late, last}
