"""The thousand classes, against the tables that timm carries."""

import pytest
from timm.data import ImageNetInfo

from tokenbridge.images import DataError
from tokenbridge.sources.imagenet_classes import imagenet_names, names_of

WORDNET_NAMES = {"crane (bird)": "crane", "crane (machine)": "crane"}  # WordNet has no other name for these two


def test_a_thousand_classes_with_names_of_their_own() -> None:
    names = list(imagenet_names().values())
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert all(name == name.strip() and name for name in names)


@pytest.mark.parametrize(
    ("label", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane (bird)"),
        (264, "n02113186", "Cardigan Welsh corgi"),
        (281, "n02123045", "tabby"),
        (474, "n02963159", "cardigan"),
        (517, "n03126707", "crane (machine)"),
        (638, "n03710637", "maillot"),
        (639, "n03710721", "tank suit"),
        (836, "n04355933", "sunglass"),
        (837, "n04356056", "sunglasses"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_labels_follow_the_sorted_wnids(label: int, wnid: str, name: str) -> None:
    assert list(imagenet_names().items())[label] == (wnid, name)


def test_order_and_names_are_wordnets() -> None:
    info = ImageNetInfo()
    assert list(imagenet_names()) == info.label_names() == sorted(info.label_names())
    for wnid, name in imagenet_names().items():
        assert WORDNET_NAMES.get(name, name) in info.label_name_to_description(wnid).split(", ")


def test_what_is_no_wnid_is_named() -> None:
    assert names_of(["n15075141", "n01440764"], "x") == ["toilet tissue", "tench"]
    with pytest.raises(DataError, match=r"/data has the class cat, which is no WordNet id .*data\.class_names=source"):
        names_of(["n01440764", "cat"], "/data")
