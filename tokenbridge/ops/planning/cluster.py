"""The distribution of a training over GPUs."""

from dataclasses import dataclass

from tokenbridge.config import LauncherConfig, require
from tokenbridge.config.launcher import FSDP


@dataclass(frozen=True)
class Cluster:
    """The launcher settings that a plan needs."""

    nodes: int
    gpus_per_node: int
    sharded: bool  # FSDP; else every GPU has a full copy
    accumulation: int
    checkpointed: bool  # activations are recomputed in the backward

    @classmethod
    def of(cls, launcher: LauncherConfig) -> "Cluster":
        return cls(
            nodes=launcher.nodes,
            gpus_per_node=launcher.processes,
            sharded=launcher.strategy == FSDP,
            accumulation=launcher.accumulation,
            checkpointed=launcher.checkpoint_activations,
        )

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def images_at_once(self, batch_size: int) -> int:
        """Return the number of images that one GPU holds at once, for the batch size of all GPUs together.

        Raises:
            ConfigError: if the batch has fewer images than there are GPUs and parts.
        """
        parts = self.gpus * self.accumulation
        require(
            batch_size >= parts,
            f"train.batch_size is {batch_size}: {self.gpus} GPUs times launcher.accumulation need {parts} images",
        )
        return -(-batch_size // parts)
