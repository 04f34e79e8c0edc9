"""The distribution of a training over GPUs."""

from dataclasses import dataclass

from tokenbridge.config import LauncherConfig, TrainConfig
from tokenbridge.config.launcher import FSDP


@dataclass(frozen=True)
class Cluster:
    """The launcher settings that a plan needs."""

    nodes: int
    gpus_per_node: int
    sharded: bool  # FSDP; else every GPU has a full copy
    accumulation: int  # parts of a GPU's share of a batch
    checkpointed: bool  # activations are recomputed in the backward

    @classmethod
    def of(cls, launcher: LauncherConfig, recipe: TrainConfig) -> "Cluster":
        """Return the cluster of a training. A part of a GPU's share has at most the images of one mask group."""
        groups = -(-recipe.batch_size // (launcher.nodes * launcher.processes * recipe.mask_group))
        return cls(
            nodes=launcher.nodes,
            gpus_per_node=launcher.processes,
            sharded=launcher.strategy == FSDP,
            accumulation=max(launcher.accumulation, groups),
            checkpointed=launcher.checkpoint_activations,
        )

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def images_at_once(self, batch_size: int) -> int:
        """Return the number of images that one GPU holds at once, for the batch size of all GPUs together."""
        return -(-batch_size // (self.gpus * self.accumulation))
