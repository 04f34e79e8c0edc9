"""The parts of a batch: a share for each process, which computes it in one or more parts. Imports no torch."""

from itertools import groupby, pairwise

from tokenbridge.base.slices import share
from tokenbridge.config import FSDP, LauncherConfig, TrainConfig, require


def check_processes(recipe: TrainConfig, launcher: LauncherConfig, world: int) -> None:
    """Check, before anything starts, that the recipe can be trained by ``world`` processes.

    Raises:
        ConfigError: if it cannot; the message says what to change.
    """
    parts = world * launcher.accumulation
    require(
        recipe.batch_size >= parts,
        f"train.batch_size is {recipe.batch_size}, but {world} processes with launcher.accumulation="
        f"{launcher.accumulation} divide it into {parts} parts: use fewer processes or a smaller launcher.accumulation",
    )
    counts = {len(part_sizes(recipe, launcher, rank, world)) for rank in range(world)}
    groups = recipe.batch_size // recipe.mask_group
    require(
        len(counts) == 1,
        f"train.mask_group_size is {recipe.mask_group}, and {world} processes do not divide the {groups} groups of a "
        f"batch into equally many parts: use a number of processes that divides {groups}, or a multiple of it",
    )
    require(
        launcher.strategy != FSDP or world == 1 or recipe.optimizer != "muon",
        "launcher.strategy=fsdp shards the matrices that train.optimizer=muon needs whole: "
        "set train.optimizer=adamw or launcher.strategy=ddp",
    )


def part_sizes(recipe: TrainConfig, launcher: LauncherConfig, rank: int, world: int) -> list[int]:
    """Return the sizes of the parts of a batch that a process computes one after the other.

    Its share is divided into ``launcher.accumulation`` parts, the first of them the larger ones, and these where a mask
    group ends.
    """
    own = range(recipe.batch_size)[share(recipe.batch_size, rank, world)]
    size, larger = divmod(len(own), launcher.accumulation)
    ends = [number * size + min(number, larger) for number in range(launcher.accumulation + 1)]
    parts = [own[start:end] for start, end in pairwise(ends)]
    return [len(list(group)) for part in parts for _, group in groupby(part, lambda index: index // recipe.mask_group)]
