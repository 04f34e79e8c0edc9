"""Settings of where and how stages run: on this machine or on Slurm.

They are never stage parameters, because a move to another machine must not retrain a model.
"""

import re
from dataclasses import replace
from typing import Literal

from pydantic import Field

from tokenbridge.config.types import Count, Positive, PositiveNumber, Settings, refuse

LOCAL, SLURM = "local", "slurm"
DDP, FSDP = "ddp", "fsdp"
SLURM_TIME = r"(\d+-)?\d+:\d{2}(:\d{2})?|\d+-\d+"


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


@dataclass
class LauncherConfig:
    """The number of processes that train one model, where they run, and which checkpoints they keep."""

    kind: str  # local | slurm
    nodes: int
    processes: int  # on each node: one per GPU
    max_restarts: int  # how often all processes may restart after one of them died
    strategy: str  # ddp | fsdp (FSDP2)
    accumulation: int  # parts of a process's share of a batch, computed one after the other
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

    def __post_init__(self) -> None:
        require_choice("launcher.kind", self.kind, (LOCAL, SLURM))
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
        return replace(self, nodes=1, processes=1, slurm=slurm)

    def _check_place(self) -> None:
        require(self.kind != LOCAL or self.nodes == 1, f"launcher.nodes is {self.nodes}: launcher=local has 1")
        if self.kind == SLURM:
            require(self.slurm is not None, "launcher.kind is slurm without launcher.slurm: say launcher=slurm")
            assert self.slurm is not None
            self._check_gpus("slurm.gpus_per_node", self.slurm.gpus_per_node)

    def _check_gpus(self, name: str, gpus: int) -> None:
        require(
            gpus == 0 or self.processes <= gpus,
            f"launcher.processes is {self.processes}, more than launcher.{name} ({gpus}): each needs a GPU of its own",
        )
