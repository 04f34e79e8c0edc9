"""Workers on Slurm: one job, whose nodes each run torchrun in a task of srun.

Only sbatch, squeue, scontrol and scancel are called from here. Accounting (sacct) is not needed.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text
from tokenbridge.infra.launching.following import GrowingFile, follow
from tokenbridge.infra.launching.slurm_script import render, sbatch_options
from tokenbridge.infra.launching.work import JobState, LaunchError, Output, ParallelWork

logger = logging.getLogger(__name__)

COMPLETED = "COMPLETED"
FAILURES = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
COMPLETING = "COMPLETING"  # the job's processes are being ended, also before it is requeued
FORGOTTEN = "Invalid job id"  # Slurm's answer some minutes after a job's end
UNREACHABLE = re.compile(r"unable to contact|timed out|connection refused|connection failure", re.IGNORECASE)
NO_REASON = "None"
RETRY_SECONDS = 1.0


class SlurmError(Exception):
    """A Slurm command failed. The message is its error output."""


def run(work: ParallelWork, output: Output) -> JobState:
    """Submit the job, or find the one that a killed driver left, and follow it. Cancel it if we are interrupted.

    Raises:
        UserError: if Slurm is not installed here, or refuses the job.
        LaunchError: if Slurm does not answer.
    """
    running = _running(work)
    job = running or _submit(work)
    log = GrowingFile(work.log(job), from_end=running is not None)
    if running is not None:
        logger.info(f"Slurm job {job} is running this already: following it; its output: {log.path}")
    name = f"Slurm job {job}"
    try:
        state = follow(name, log, lambda: _state(job), output)
    except BaseException:
        _cancel(job)
        raise
    return replace(state, words=f"{name} ended as {state.words}; its output: {log.path}")


def _running(work: ParallelWork) -> str | None:
    """Return the id of this work's job, or None if there is none. Wait for jobs that are ending."""
    while True:
        try:
            listing = _slurm("squeue", "--me", "--noheader", f"--name={work.name}", "--format=%i %T")
        except SlurmError as error:
            raise LaunchError(f"squeue: {error}") from error
        jobs = dict(line.split() for line in listing.splitlines())
        alive = [job for job, state in jobs.items() if state != COMPLETING]
        if alive:
            return alive[0]
        if not jobs:
            return None
        time.sleep(RETRY_SECONDS)


def _submit(work: ParallelWork) -> str:
    slurm = work.launcher.slurm
    assert slurm is not None  # the configuration's checks require it
    work.prepare()
    script = work.folder / "job.sbatch"
    atomic_write_text(script, render(work, slurm))
    # if we run in an allocation ourselves, its variables must not affect the new job
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        answer = _slurm("sbatch", "--parsable", *sbatch_options(work, slurm), str(script), environment=environment)
    except SlurmError as error:
        if UNREACHABLE.search(str(error)):
            raise LaunchError(f"sbatch: {error}") from error
        raise UserError(f"Slurm refuses the job: correct launcher.slurm. sbatch reports: {error}") from error
    return answer.strip().split(";")[0]  # id;cluster


def _state(job: str) -> JobState:
    try:
        fields = dict(re.findall(r"(\S+?)=(\S*)", _slurm("scontrol", "--oneliner", "show", "job", job)))
    except SlurmError as error:
        gone = FORGOTTEN in str(error)
        return JobState("forgotten by Slurm" if gone else f"not known now: {error}", ended=gone)
    state, reason = fields["JobState"], fields["Reason"]
    notes = [] if reason == NO_REASON else [reason]
    if state in FAILURES:
        code, signum = fields["ExitCode"].split(":")
        notes += [f"exit code {code}"] + ([f"signal {signum}"] if signum != "0" else [])
    if state == "RUNNING":
        notes.append(f"on {fields['NodeList']}")
    words = f"{state} ({', '.join(notes)})" if notes else state
    return JobState(words, ended=state in {COMPLETED, *FAILURES}, ok=state == COMPLETED)


def _cancel(job: str) -> None:
    try:
        _slurm("scancel", job)
        logger.info(f"Slurm job {job} is cancelled")
    except (SlurmError, UserError) as error:
        logger.info(f"Slurm job {job} may go on, cancel it by `scancel {job}`: {error}")


def _slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a Slurm command and return its output.

    Raises:
        UserError: if the command is not installed.
        SlurmError: if the command fails.
    """
    try:
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"launcher.kind is slurm, and there is no {program} here: start this on a machine of the cluster"
        ) from error
    if done.returncode:
        raise SlurmError(done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout
