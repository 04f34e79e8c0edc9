"""How a training is spread over GPUs."""

from dataclasses import dataclass

from tokenbridge.config import LauncherConfig, require
from tokenbridge.config.launcher import FSDP


@dataclass(frozen=True)
class Cluster:
    """What a plan needs to know of the launcher."""

    nodes: int
    gpus_per_node: int
    sharded: bool  # FSDP; else every GPU has a whole copy
    accumulation: int
    checkpointed: bool  # activations

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
        """Images that one GPU holds, of a batch of all.

        Raises:
            ConfigError: if the batch has fewer images than there are GPUs and parts.
        """
        parts = self.gpus * self.accumulation
        require(
            batch_size >= parts,
            f"train.batch_size is {batch_size}: {self.gpus} GPUs times launcher.accumulation need {parts} images",
        )
        return -(-batch_size // parts)
