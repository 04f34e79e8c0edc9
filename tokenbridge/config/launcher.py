"""Settings of where and how stages run: on this machine or on Slurm.

They are never stage parameters, because a move to another machine must not retrain a model.
"""

import re
from dataclasses import replace
from typing import Literal

from pydantic import Field

from tokenbridge.config.types import Count, Line, Name, Positive, PositiveNumber, Settings, refuse

LOCAL, SLURM = "local", "slurm"
FSDP = "fsdp"
SLURM_TIME = r"(\d+-)?\d+:\d{2}(:\d{2})?|\d+-\d+"


class SlurmConfig(Settings):
    """The resources and options of a job on Slurm; null means the cluster's default."""

    partition: Line | None
    account: Line | None
    gpus_per_node: Count  # 0: none
    cpus_per_task: Positive  # of each node, because its processes share one task
    memory: Line | None  # of each node, such as 64G; 0: all of it
    time: str  # hours:minutes:seconds, or days-hours:minutes:seconds
    signal_seconds: Positive  # Slurm sends a signal this long before the time limit, so that a checkpoint is saved
    requeue: bool  # go on automatically after preemption, a lost node or the time limit
    setup: list[str] = Field(default_factory=list)  # shell lines of the job, such as `module load cuda`
    options: list[Line] = Field(default_factory=list)  # more sbatch options, such as --qos=high

    def __post_init__(self) -> None:
        mistakes = {f"options has {option!r}: write --name=value": option[:1] != "-" for option in self.options}
        message = f"time is {self.time!r}: write hours:minutes:seconds or days-hours:minutes:seconds, in quotes"
        refuse(mistakes | {message: re.fullmatch(SLURM_TIME, self.time) is None})


class LauncherConfig(Settings):
    """The number of processes that train one model, where they run, and which checkpoints they keep."""

    kind: Literal["local", "slurm"]
    nodes: Positive
    processes: Positive  # on each node: one per GPU
    max_restarts: Count  # how often all processes may restart after one of them died
    strategy: Literal["ddp", "fsdp"]  # fsdp: FSDP2
    accumulation: Positive  # parts of a process's share of a batch, computed one after the other
    checkpoint_activations: bool  # saves memory, costs a third more work
    compile: bool | None  # use torch.compile on the repeated blocks; null: on GPUs
    deterministic: bool  # GPUs: only operations that repeat their bits, slower; CPUs always repeat them
    keep_checkpoints: Positive  # the number of newest checkpoints that stay
    keep_every: Count  # the first checkpoint in every keep_every steps stays too; 0: none
    threads: Count  # CPU threads of each process; 0: an equal share of the cores in training, chunks.THREADS for chunks
    batch_size: Positive  # images per batch where nothing is trained
    log_seconds: PositiveNumber  # between progress lines
    checkpoint_seconds: PositiveNumber  # least seconds of training between checkpoints
    checkpoint_share: PositiveNumber  # share of the time that a training may stand still for checkpoints
    gpu_group: Name  # flows of the same group train one at a time
    slurm: SlurmConfig | None = None

    def __post_init__(self) -> None:
        slurm = self.kind == SLURM
        node_gpus = self.slurm.gpus_per_node if slurm and self.slurm else 0
        too_many = f"processes is {self.processes}: must be at most launcher.slurm.gpus_per_node ({node_gpus})"
        refuse(
            {
                f"nodes is {self.nodes}: must be 1 with launcher=local": self.kind == LOCAL and self.nodes > 1,
                "slurm is null, and launcher.kind is slurm: set launcher=slurm": slurm and not self.slurm,
                f"{too_many}, because each needs a GPU of its own": 0 < node_gpus < self.processes,
            }
        )

    def for_one(self) -> "LauncherConfig":
        """Return these settings changed for one process, with one GPU if there are any."""
        slurm = self.slurm and replace(self.slurm, gpus_per_node=min(1, self.slurm.gpus_per_node))
        return replace(self, nodes=1, processes=1, slurm=slurm)
