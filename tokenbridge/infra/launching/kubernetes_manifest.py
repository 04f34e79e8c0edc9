"""The manifest of a job on Kubernetes: an indexed Job with one pod per node, and the Service that names the pods."""

from pathlib import Path
from typing import Any

from tokenbridge.config.launcher import KubernetesConfig
from tokenbridge.infra.launching.work import ParallelWork

PORT = 29_400  # of the nodes' rendezvous in the first pod
GPU_RESOURCE = "nvidia.com/gpu"
JOB_LABEL = "batch.kubernetes.io/job-name"  # Kubernetes gives this label to a Job's pods
# One log file per pod. The agent writes it directly, so that no last lines are lost. `kubectl logs` shows them too.
AND_LOG = """LOG="${LOG%.log}-$JOB_COMPLETION_INDEX.log"; touch "$LOG"
tail --pid=$$ --follow "$LOG" & exec "$@" &>> "$LOG\""""
WORKERS, VOLUME, MEMORY = "workers", "project", "shared-memory"  # names in the manifest


def render(work: ParallelWork, kubernetes: KubernetesConfig) -> list[dict[str, Any]]:
    """Return the Service and the Job."""
    metadata = {"name": work.name, "namespace": kubernetes.namespace}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        # headless, and published before the pods are ready, because pods look each other up while they start
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
        "subdomain": work.name,  # the Service's name, since a pod's address is <job>-<index>.<service>
        "restartPolicy": "Never",  # the Job replaces failed pods, by the policy above
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
    """Return the glob pattern of the pods' logs on the shared volume, one log per pod."""
    return work.log(f"{work.name}-*")
