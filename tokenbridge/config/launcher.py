"""Settings of where and how stages run: on this machine, on Slurm, or on Kubernetes.

They are never stage parameters, because a move to another machine must not retrain a model.
"""

import re
from dataclasses import dataclass, field, replace

from tokenbridge.base.checks import require, require_choice, require_positive

LOCAL, SLURM, KUBERNETES = "local", "slurm", "kubernetes"
DDP, FSDP = "ddp", "fsdp"
SLURM_TIME = r"(\d+-)?\d+:\d{2}(:\d{2})?|\d+-\d+"
KUBERNETES_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


@dataclass
class SlurmConfig:
    """The resources and options of a job on Slurm; null means the cluster's default."""

    partition: str | None
    account: str | None
    gpus_per_node: int  # 0: none
    cpus_per_task: int  # of each node, because its processes share one task
    memory: str | None  # of each node, such as 64G; 0: all of it
    time: str  # hours:minutes:seconds, or days-hours:minutes:seconds
    signal_seconds: int  # Slurm sends a signal this long before the time limit, so that a checkpoint is saved
    requeue: bool  # go on automatically after preemption, a lost node or the time limit
    setup: list[str] = field(default_factory=list)  # shell lines of the job, such as `module load cuda`
    options: list[str] = field(default_factory=list)  # more sbatch options, such as --qos=high

    def __post_init__(self) -> None:
        require_positive("launcher.slurm", cpus_per_task=self.cpus_per_task, signal_seconds=self.signal_seconds)
        require(self.gpus_per_node >= 0, f"launcher.slurm.gpus_per_node is {self.gpus_per_node}: 0 is the least")
        require(
            re.fullmatch(SLURM_TIME, self.time) is not None,
            f"launcher.slurm.time is {self.time!r}: write hours:minutes:seconds or days-hours:minutes:seconds, "
            "in quotes, without which YAML makes a number of it",
        )
        for option in self.options:
            require(option.startswith("-"), f"launcher.slurm.options has {option!r}: write --name=value")


@dataclass
class KubernetesConfig:
    """The image and resources of a job on Kubernetes, which has one pod for each node."""

    image: str  # holds this project's environment; docker/Dockerfile builds it
    namespace: str
    volume_claim: str  # a ReadWriteMany claim that holds the project
    mount: str  # the claim's path in the pods; the project has the same path in the pods as here
    gpus: int  # of each pod; 0: none
    cpus: int  # of each pod
    memory: str  # of each pod, such as 64Gi
    shared_memory: str  # size of /dev/shm in each pod, which the GPUs of a node use to communicate
    node_selector: dict[str, str] = field(default_factory=dict)  # labels that a machine must have

    def __post_init__(self) -> None:
        require_positive("launcher.kubernetes", cpus=self.cpus)
        require(self.gpus >= 0, f"launcher.kubernetes.gpus is {self.gpus}: 0 is the least")
        require(self.mount.startswith("/"), f"launcher.kubernetes.mount is {self.mount!r}: give an absolute path")
        for name, value in (("namespace", self.namespace), ("volume_claim", self.volume_claim)):
            require(
                re.fullmatch(KUBERNETES_NAME, value) is not None,
                f"launcher.kubernetes.{name} is {value!r}: use lower-case letters, digits and dashes",
            )


@dataclass
class LauncherConfig:
    """The number of processes that train one model, where they run, and which checkpoints they keep."""

    kind: str  # local | slurm | kubernetes
    nodes: int
    processes: int  # on each node: one per GPU
    max_restarts: int  # how often all processes may restart after one of them died
    strategy: str  # ddp | fsdp (FSDP2)
    accumulation: int  # parts of a process's share of a batch, computed one after the other
    checkpoint_activations: bool  # saves memory, costs a third more work
    compile: bool  # use torch.compile on the repeated blocks
    keep_checkpoints: int  # the number of newest checkpoints that stay
    keep_every: int  # the first checkpoint in every keep_every steps stays too; 0: none
    threads: int  # CPU threads of each process; 0: an equal share of the cores in training, chunks.THREADS for chunks
    batch_size: int  # images per batch where nothing is trained
    log_seconds: float  # between progress lines
    checkpoint_seconds: float  # least seconds of training between checkpoints
    checkpoint_share: float  # share of the time that a training may stand still for checkpoints
    gpu_group: str  # flows of the same group train one at a time
    slurm: SlurmConfig | None = None
    kubernetes: KubernetesConfig | None = None

    def __post_init__(self) -> None:
        require_choice("launcher.kind", self.kind, (LOCAL, SLURM, KUBERNETES))
        require_choice("launcher.strategy", self.strategy, (DDP, FSDP))
        counts = ("nodes", "processes", "accumulation", "keep_checkpoints", "batch_size")
        names = (*counts, "log_seconds", "checkpoint_seconds", "checkpoint_share")
        require_positive("launcher", **{name: getattr(self, name) for name in names})
        for name in ("max_restarts", "keep_every", "threads"):
            require(getattr(self, name) >= 0, f"launcher.{name} is {getattr(self, name)}: 0 is the least")
        self._check_place()

    def for_one(self) -> "LauncherConfig":
        """Return these settings changed for one process, with one GPU if there are any."""
        slurm = self.slurm and replace(self.slurm, gpus_per_node=min(1, self.slurm.gpus_per_node))
        kubernetes = self.kubernetes and replace(self.kubernetes, gpus=min(1, self.kubernetes.gpus))
        return replace(self, nodes=1, processes=1, slurm=slurm, kubernetes=kubernetes)

    def _check_place(self) -> None:
        require(self.kind != LOCAL or self.nodes == 1, f"launcher.nodes is {self.nodes}: launcher=local has 1")
        if self.kind == SLURM:
            require(self.slurm is not None, "launcher.kind is slurm without launcher.slurm: say launcher=slurm")
            assert self.slurm is not None
            self._check_gpus("slurm.gpus_per_node", self.slurm.gpus_per_node)
        if self.kind == KUBERNETES:
            require(self.kubernetes is not None, "launcher.kind is kubernetes: say launcher=kubernetes")
            assert self.kubernetes is not None
            self._check_gpus("kubernetes.gpus", self.kubernetes.gpus)

    def _check_gpus(self, name: str, gpus: int) -> None:
        require(
            gpus == 0 or self.processes <= gpus,
            f"launcher.processes is {self.processes}, more than launcher.{name} ({gpus}): each needs a GPU of its own",
        )
