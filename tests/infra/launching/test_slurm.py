"""Jobs on a real Slurm of two nodes: followed, preempted, failing, cancelled, refused."""

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.infra.launching.driving import command, read_until, rest
from tests.infra.launching.small_worker import undisturbed
from tests.pipeline.project import wait_for
from tests.support.slurm import SlurmCluster
from tests.support.small_model import LAUNCHER
from tokenbridge.base.errors import UserError
from tokenbridge.config.launcher import SlurmConfig
from tokenbridge.infra.launching import launch

SLURM = SlurmConfig(
    partition=None,
    account=None,
    gpus_per_node=0,
    cpus_per_task=1,
    memory=None,
    time="0:10:00",
    signal_seconds=30,
    requeue=True,
)
TWO_NODES = {"kind": "slurm", "nodes": 2, "processes": 1, "max_restarts": 0, "slurm": SLURM}


def job_id(output: str) -> str:
    found = re.search(r"Slurm job (\d+)", output)
    assert found, output
    return found[1]


@pytest.mark.cluster
def test_a_driver_that_was_killed_and_repeated_follows_the_same_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    driver = command(tmp_path, **TWO_NODES)
    first = slurm.start(*driver)
    before = read_until(first, "[rank 1] starts at step 0")
    first.kill()
    second = slurm.start(*driver)
    after = read_until(second, "is running this already")
    assert f"Slurm job {job_id(before)} is" in after
    (tmp_path / "hold").unlink()
    after += rest(second)
    assert f"[rank 0] ends with {undisturbed()!r}" in after
    assert after.endswith("the driver is done\n")
    assert len(list(tmp_path.glob("workers-*.log"))) == 1, "there was one job"


@pytest.mark.cluster
def test_a_preempted_job_saves_and_ends_as_if_nothing_had_happened(slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    driver = slurm.start(*command(tmp_path, **TWO_NODES))
    output = read_until(driver, "[rank 0] starts at step 0")
    slurm.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    output += read_until(driver, "Requeued")
    (tmp_path / "hold").unlink()
    output += rest(driver)
    saved = re.search(r"\[rank 0\] warned: saved at step (\d+)", output)
    assert saved, output
    assert f"[rank 1] starts at step {saved[1]}" in output
    assert f"[rank 0] ends with {undisturbed()!r}" in output
    assert {job_id(line) for line in output.splitlines() if line.startswith("Slurm job")} == {job_id(output)}


@pytest.mark.cluster
def test_a_failing_job_shows_the_error_of_its_rank(slurm: SlurmCluster, tmp_path: Path) -> None:
    driver = slurm.start(*command(tmp_path, "fail", **TWO_NODES))
    output = rest(driver)
    assert driver.returncode == 1
    message = output.split("driver: ")[1]
    assert 'raise ArithmeticError("the numbers do not add up")' in message
    assert re.search(
        r"\nArithmeticError: the numbers do not add up\nrank 1 on \S+ (ended with exit code 1|was ended by SIGABRT)\n",
        message,
    )
    assert f"Slurm job {job_id(output)} ended as FAILED" in message.splitlines()[-1]
    log = tmp_path / f"workers-{job_id(output)}.log"
    assert str(log) in message
    assert "ArithmeticError" in log.read_text()


@pytest.mark.cluster
def test_ending_the_driver_cancels_its_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    driver = slurm.start(*command(tmp_path, **TWO_NODES))
    job = job_id(read_until(driver, "RUNNING"))
    driver.send_signal(signal.SIGTERM)
    assert "is cancelled" in rest(driver)
    assert driver.returncode == 128 + signal.SIGTERM
    wait_for(lambda: slurm.job_state(job) == "CANCELLED", "cancelled job")
    wait_for(lambda: not slurm.processes(), "end of the job's processes")


@pytest.mark.cluster
def test_a_refusal_of_slurm_is_quoted(slurm: SlurmCluster, tmp_path: Path) -> None:
    settings = TWO_NODES | {"slurm": replace(SLURM, partition="quantum")}
    driver = slurm.start(*command(tmp_path, **settings))
    message = rest(driver)
    assert message.startswith("driver: ")
    assert "correct launcher.slurm" in message
    assert "invalid partition specified: quantum" in message


def test_without_slurm_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(UserError, match="start this on a machine of the cluster"):
        launch([], root=tmp_path, work=tmp_path / "work", launcher=replace(LAUNCHER, **TWO_NODES))
