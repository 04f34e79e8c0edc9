"""The 1,000 classes of ImageNet-1k: WordNet ids in the order of the labels, each with a readable and unique name."""

import csv
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from tokenbridge.images import DataError


@cache
def imagenet_names() -> dict[str, str]:
    """Return wnid -> name, in the order of the labels. This is the order of the sorted wnids.

    A name is the first of WordNet's names for the class. If two classes share it (crane, cardigan, maillot), one of
    them or both have another name.
    """
    table = files("tokenbridge.sources").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    return {row["wnid"]: row["name"] for row in csv.DictReader(table.splitlines())}


def names_of(wnids: Iterable[str], place: str) -> list[str]:
    """Return the readable names of wnids.

    Raises:
        DataError: if a wnid is not one of ImageNet-1k; the message names ``place``, where it was found.
    """
    names, wanted = imagenet_names(), list(wnids)
    unknown = [wnid for wnid in wanted if wnid not in names]
    if unknown:
        raise DataError(
            f"{place} has the class {unknown[0]}, which is no WordNet id of ImageNet-1k (n01440764, ...): correct it, "
            "or set data.class_names=source"
        )
    return [names[wnid] for wnid in wanted]
