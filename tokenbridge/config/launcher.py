"""Settings of where and how stages run: on this machine, on Slurm, or on Kubernetes.

They are never stage parameters, because a move to another machine must not retrain a model.
"""

import re
from dataclasses import replace
from typing import Literal

from pydantic import Field

from tokenbridge.config.types import Count, Positive, PositiveNumber, Settings, refuse

LOCAL, SLURM, KUBERNETES = "local", "slurm", "kubernetes"
DDP, FSDP = "ddp", "fsdp"
SLURM_TIME = r"(\d+-)?\d+:\d{2}(:\d{2})?|\d+-\d+"
KUBERNETES_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


class SlurmConfig(Settings):
    """The resources and options of a job on Slurm; null means the cluster's default."""

    partition: str | None
    account: str | None
    gpus_per_node: Count  # 0: none
    cpus_per_task: Positive  # of each node, because its processes share one task
    memory: str | None  # of each node, such as 64G; 0: all of it
    time: str  # hours:minutes:seconds, or days-hours:minutes:seconds
    signal_seconds: Positive  # Slurm sends a signal this long before the time limit, so that a checkpoint is saved
    requeue: bool  # go on automatically after preemption, a lost node or the time limit
    setup: list[str] = Field(default_factory=list)  # shell lines of the job, such as `module load cuda`
    options: list[str] = Field(default_factory=list)  # more sbatch options, such as --qos=high

    def __post_init__(self) -> None:
        mistakes = {f"options has {option!r}: write --name=value": option[:1] != "-" for option in self.options}
        message = f"time is {self.time!r}: write hours:minutes:seconds or days-hours:minutes:seconds, in quotes"
        refuse(mistakes | {message: re.fullmatch(SLURM_TIME, self.time) is None})


class KubernetesConfig(Settings):
    """The image and resources of a job on Kubernetes, which has one pod for each node."""

    image: str  # holds this project's environment; docker/Dockerfile builds it
    namespace: str
    volume_claim: str  # a ReadWriteMany claim that holds the project
    mount: str  # the claim's path in the pods; the project has the same path in the pods as here
    gpus: Count  # of each pod; 0: none
    cpus: Positive  # of each pod
    memory: str  # of each pod, such as 64Gi
    shared_memory: str  # size of /dev/shm in each pod, which the GPUs of a node use to communicate
    node_selector: dict[str, str] = Field(default_factory=dict)  # labels that a machine must have

    def __post_init__(self) -> None:
        mistakes = {f"mount is {self.mount!r}: must be an absolute path": not self.mount.startswith("/")}
        for name, value in (("namespace", self.namespace), ("volume_claim", self.volume_claim)):
            bad = re.fullmatch(KUBERNETES_NAME, value) is None
            mistakes[f"{name} is {value!r}: use lower-case letters, digits and dashes"] = bad
        refuse(mistakes)


class LauncherConfig(Settings):
    """The number of processes that train one model, where they run, and which checkpoints they keep."""

    kind: Literal["local", "slurm", "kubernetes"]
    nodes: Positive
    processes: Positive  # on each node: one per GPU
    max_restarts: Count  # how often all processes may restart after one of them died
    strategy: Literal["ddp", "fsdp"]  # fsdp: FSDP2
    accumulation: Positive  # parts of a process's share of a batch, computed one after the other
    checkpoint_activations: bool  # saves memory, costs a third more work
    compile: bool  # use torch.compile on the repeated blocks
    keep_checkpoints: Positive  # the number of newest checkpoints that stay
    keep_every: Count  # the first checkpoint in every keep_every steps stays too; 0: none
    threads: Count  # CPU threads of each process; 0: an equal share of the cores in training, chunks.THREADS for chunks
    batch_size: Positive  # images per batch where nothing is trained
    log_seconds: PositiveNumber  # between progress lines
    checkpoint_seconds: PositiveNumber  # least seconds of training between checkpoints
    checkpoint_share: PositiveNumber  # share of the time that a training may stand still for checkpoints
    gpu_group: str  # flows of the same group train one at a time
    slurm: SlurmConfig | None = None
    kubernetes: KubernetesConfig | None = None

    def __post_init__(self) -> None:
        slurm, kubernetes = self.kind == SLURM, self.kind == KUBERNETES
        node_gpus = self.slurm.gpus_per_node if slurm and self.slurm else 0
        pod_gpus = self.kubernetes.gpus if kubernetes and self.kubernetes else 0
        start, why = f"processes is {self.processes}: must be at most", "because each needs a GPU of its own"
        refuse(
            {
                f"nodes is {self.nodes}: must be 1 with launcher=local": self.kind == LOCAL and self.nodes > 1,
                "slurm is null, and launcher.kind is slurm: set launcher=slurm": slurm and not self.slurm,
                "kubernetes is null: set launcher=kubernetes": kubernetes and not self.kubernetes,
                f"{start} launcher.slurm.gpus_per_node ({node_gpus}), {why}": 0 < node_gpus < self.processes,
                f"{start} launcher.kubernetes.gpus ({pod_gpus}), {why}": 0 < pod_gpus < self.processes,
            }
        )

    def for_one(self) -> "LauncherConfig":
        """Return these settings changed for one process, with one GPU if there are any."""
        slurm = self.slurm and replace(self.slurm, gpus_per_node=min(1, self.slurm.gpus_per_node))
        kubernetes = self.kubernetes and replace(self.kubernetes, gpus=min(1, self.kubernetes.gpus))
        return replace(self, nodes=1, processes=1, slurm=slurm, kubernetes=kubernetes)
