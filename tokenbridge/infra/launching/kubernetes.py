"""Workers on Kubernetes: one indexed Job, submitted by kubectl.

The manifest is tested against Kubernetes' schema. It was never applied, because there was no cluster.
"""

import json
import subprocess

import yaml

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text
from tokenbridge.infra.launching.following import JobState, LogFiles, follow
from tokenbridge.infra.launching.kubernetes_manifest import log_pattern, render
from tokenbridge.infra.launching.output import Output
from tokenbridge.infra.launching.work import Ending, LaunchError, ParallelWork

ENDINGS = {"Complete": True, "Failed": False}  # conditions of a Job


def run(work: ParallelWork, output: Output) -> Ending:
    """Apply the manifest and follow the Job, or follow the Job that a killed driver left. Delete the Job at the end.

    Raises:
        UserError: if kubectl is not installed, naming the manifest; or if it refuses, with its message.
        LaunchError: if the cluster does not answer.
    """
    kubernetes = work.launcher.kubernetes
    assert kubernetes is not None  # the configuration's checks require it
    manifest = work.folder / "job.yaml"
    atomic_write_text(manifest, yaml.safe_dump_all(render(work, kubernetes), sort_keys=False))
    kubectl = Kubectl(str(manifest), work.name, kubernetes.namespace)
    left = kubectl.state()
    if left is None or left.ended:
        kubectl.delete()
        work.prepare()
        for log in work.folder.glob(log_pattern(work).name):  # from an earlier job with the same name
            log.unlink()
        kubectl("apply", "--filename", kubectl.manifest)
    name = f"Kubernetes job {work.name}"
    try:
        state = follow(name, LogFiles(log_pattern(work), recall=True), kubectl.current, output)
    finally:
        kubectl.delete()
    return Ending(state.ok, f"{name} ended as {state.words}; its output: {log_pattern(work)}")


class Kubectl:
    """The kubectl command for one job."""

    def __init__(self, manifest: str, name: str, namespace: str) -> None:
        self.manifest, self.name, self.namespace = manifest, name, namespace

    def __call__(self, *arguments: str) -> str:
        """Run kubectl and return its output."""
        command = ["kubectl", f"--namespace={self.namespace}", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise UserError(
                f"there is no kubectl here. The job is written: `kubectl apply -f {self.manifest}` starts it elsewhere"
            ) from error
        if done.returncode:
            words = f"kubectl {arguments[0]}: {done.stderr.strip()}"
            raise LaunchError(words) if arguments[0] == "get" else UserError(words)
        return done.stdout

    def delete(self) -> None:
        self("delete", "--ignore-not-found", "--cascade=foreground", "--filename", self.manifest)

    def current(self) -> JobState:
        """Return the job's state, or a state that says that the cluster does not answer now."""
        try:
            return self.state() or JobState("deleted", ended=True)
        except LaunchError as error:
            return JobState(f"not known now: {error}")

    def state(self) -> JobState | None:
        """Return the job's state, or None if there is no such job."""
        answer = self("get", "job", self.name, "--ignore-not-found", "--output=json")
        if not answer.strip():
            return None
        status = json.loads(answer)["status"]
        for condition in status.get("conditions", []):
            if condition["type"] in ENDINGS and condition["status"] == "True":
                words = " ".join([condition["type"], condition.get("message", "")]).strip()
                return JobState(words, ended=True, ok=ENDINGS[condition["type"]])
        counts = [f"{status[name]} {name}" for name in ("active", "ready", "failed") if status.get(name)]
        return JobState(", ".join(counts) or "no pod yet")
