"""The manifest of a job on Kubernetes: an indexed Job, a pod for each node, and the Service that names its pods."""

from pathlib import Path
from typing import Any

from tokenbridge.config.launcher import KubernetesConfig
from tokenbridge.infra.launching.work import ParallelWork

PORT = 29_400  # at which the nodes meet, in the first pod
GPU_RESOURCE = "nvidia.com/gpu"
JOB_LABEL = "batch.kubernetes.io/job-name"  # which Kubernetes gives to a Job's pods
# A file for each pod, written by the agent itself so that its last words are there; `kubectl logs` shows it too.
AND_LOG = """LOG="${LOG%.log}-$JOB_COMPLETION_INDEX.log"; touch "$LOG"
tail --pid=$$ --follow "$LOG" & exec "$@" &>> "$LOG\""""
WORKERS, VOLUME, MEMORY = "workers", "project", "shared-memory"  # names of the parts


def render(work: ParallelWork, kubernetes: KubernetesConfig) -> list[dict[str, Any]]:
    """The Service and the Job."""
    metadata = {"name": work.name, "namespace": kubernetes.namespace}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        # headless, and before pods are ready: they look each other up while they start
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {JOB_LABEL: work.name}},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": work.launcher.nodes,
            "parallelism": work.launcher.nodes,
            "backoffLimit": work.launcher.nodes * work.launcher.max_restarts,
            "podFailurePolicy": _FREE_OF_BLAME,
            "template": {"spec": _pod(work, kubernetes)},
        },
    }
    return [service, job]


# A pod that was evicted or preempted, or whose machine was lost, does not count as a failure.
_FREE_OF_BLAME = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}


def _pod(work: ParallelWork, kubernetes: KubernetesConfig) -> dict[str, Any]:
    memory = {"medium": "Memory", "sizeLimit": kubernetes.shared_memory}
    return {
        "subdomain": work.name,  # the Service's: pods are found as <job>-<index>.<service>
        "restartPolicy": "Never",  # the Job replaces pods, by the policy above
        "nodeSelector": kubernetes.node_selector,
        "containers": [_container(work, kubernetes)],
        "volumes": [
            {"name": VOLUME, "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}},
            {"name": MEMORY, "emptyDir": memory},
        ],
    }


def _container(work: ParallelWork, kubernetes: KubernetesConfig) -> dict[str, Any]:
    gpus = {GPU_RESOURCE: str(kubernetes.gpus)} if kubernetes.gpus else {}
    resources = {"cpu": str(kubernetes.cpus), "memory": kubernetes.memory, **gpus}
    meeting = ("--rdzv-backend=c10d", f"--rdzv-id={work.name}", f"--rdzv-endpoint={work.name}-0.{work.name}:{PORT}")
    environment = work.environment(kubernetes.cpus) | {"LOG": str(work.log(work.name))}
    return {
        "name": WORKERS,
        "image": kubernetes.image,
        "workingDir": str(work.root),
        "command": ["bash", "-c", AND_LOG, "agent", *work.torchrun(*meeting, python="python")],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"requests": resources, "limits": resources},
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [
            {"name": VOLUME, "mountPath": kubernetes.mount},
            {"name": MEMORY, "mountPath": "/dev/shm"},
        ],
    }


def log_pattern(work: ParallelWork) -> Path:
    """Of the pods' logs, one for each, on the shared volume."""
    return work.log(f"{work.name}-*")
