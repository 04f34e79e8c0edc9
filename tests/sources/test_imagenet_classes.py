"""The thousand classes, against the tables that timm carries."""

import pytest
from timm.data import ImageNetInfo

from tokenbridge.images import DataError
from tokenbridge.sources.imagenet_classes import imagenet_names, names_of

OTHER_NAMES = {  # of classes whose first name in WordNet another class has too
    "n02012849": "crane (bird)",
    "n02113186": "Cardigan Welsh corgi",
    "n03126707": "crane (machine)",
    "n03710721": "tank suit",
}


def test_order_and_names_are_wordnets() -> None:
    info, wnids = ImageNetInfo(), list(imagenet_names())
    assert wnids == info.label_names() == sorted(info.label_names())
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")
    first = {wnid: info.label_name_to_description(wnid).split(", ")[0] for wnid in wnids}
    assert imagenet_names() == first | OTHER_NAMES


def test_every_class_has_a_name_of_its_own() -> None:
    assert len({name.lower() for name in imagenet_names().values()}) == 1000


def test_what_is_no_wnid_is_named() -> None:
    assert names_of(["n15075141", "n01440764"], "x") == ["toilet tissue", "tench"]
    with pytest.raises(DataError, match=r"/data has the class cat, which is no WordNet id .*data\.class_names=source"):
        names_of(["n01440764", "cat"], "/data")
