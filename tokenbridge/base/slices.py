"""Which images are computed by which process, and how many at once: as many as fit into a bounded memory."""

VALUES = 2**30  # float32 values that the images computed at once may hold: 4 GiB


def images_at_once(values: int, most: int) -> int:
    """Return how many images to compute at once: at least one, at most ``most``.

    Args:
        values: the numbers that one image holds when its computation needs the most memory.
    """
    return max(1, min(VALUES // values, most))


def share(count: int, rank: int, world: int) -> slice:
    """Return the part of ``count`` consecutive items of one of ``world`` processes; sizes differ by one at most."""
    return slice(count * rank // world, count * (rank + 1) // world)


def slices(count: int, values: int, most: int | None = None) -> list[slice]:
    """Return the slices of ``count`` images that are computed one after the other; one slice if there are no images."""
    step = images_at_once(values, max(1, count) if most is None else most)
    return [slice(start, start + step) for start in range(0, max(1, count), step)]
