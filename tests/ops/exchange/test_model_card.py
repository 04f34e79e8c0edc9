"""The model card: facts in, Markdown out."""

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tokenbridge.ops.exchange.model_card import CardFacts, Report, render_card

FACTS = CardFacts(
    name="tiny",
    classes=["Sneaker", "Bag"],
    image_size=(16, 24),
    sizes={"transformer": {"width": 32, "heads": 2}, "vae": {"latent_channels": 4}, "quantizer": {"num_levels": 8}},
    parameters={"transformer": 1500, "vae": 500, "quantizer": 0},
    data={
        "name": "fashion_mnist",
        "licence": "MIT, Copyright (c) 2017 Zalando SE",
        "citation": "Xiao, Rasul, Vollgraf",
        "digest": "d" * 64,
        "splits": {"train": {"count": 60000}, "test": {"count": 10000}},
    },
    recipe={"vae": {"vae.pretrained": None}, "train@tiny": {"train.epochs": 1.9}},
    sampling={"num_inference_steps": 16, "guidance_scale": 2.0},
    no_picture="",
    reports=[Report("Samples", "reports/evaluate/tiny.json", {"samples": 2000, "fd_efficientnet_lite0_32px": 6.494})],
    code="`abc`",
    lock_digest="e" * 64,
)


def front_matter(card: str) -> dict[str, Any]:
    """As the Hub's own client reads it."""
    return dict(ModelCard(card).data.to_dict())


def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(render_card(FACTS)) == {
        "license": "mit",
        "library_name": "diffusers",
        "tags": ["image-generation", "class-conditional", "autoregressive", "tokenbridge"],
        "datasets": ["zalando-datasets/fashion_mnist"],
    }


def test_the_card_tells_every_fact() -> None:
    card = render_card(FACTS)
    for expected in (
        "24 x 16 pixels",
        "0 Sneaker, 1 Bag",
        "| transformer | 1,500 | `width` 32, `heads` 2 |",
        "| together | 2,000 |",
        "`train.epochs` 1.9",
        "60,000 in `train`, 10,000 in `test`",
        "whose licence is: MIT, Copyright (c) 2017 Zalando SE",
        "Xiao, Rasul, Vollgraf",
        "d" * 64,
        "| `samples` | 2,000 |",
        "| `fd_efficientnet_lite0_32px` | 6.494 |",
        "is **not FID**",
        "](samples.png)",
        "`abc`",
        "e" * 64,
    ):
        assert expected in card


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ({"levels": 64, "slots": None}, ["one of a few levels, and", "learnt the tokens by cross-entropy"]),
        ({"levels": 1024, "slots": 1}, ["become indices of vectors", "learnt the tokens by cross-entropy"]),
        ({"levels": None, "head": "flow"}, ["without quantization (`head` flow)", "learnt their distribution"]),
    ],
)
def test_the_kind_of_token_is_said(token: dict[str, Any], words: list[str]) -> None:
    card = render_card(replace(FACTS, sizes=dict(FACTS.sizes) | {"transformer": {"width": 32} | token}))
    assert all(each in card for each in words)


def test_what_cannot_be_shown_is_named() -> None:
    missing = Report("Samples", "reports/evaluate/tiny.json", None, "`reports/evaluate/tiny.json` was missing.")
    card = render_card(
        replace(FACTS, reports=[missing], no_picture="No picture.", recipe={"vae": {}, "train@tiny": {"seed": 0}})
    )
    assert "**Samples.** `reports/evaluate/tiny.json` was missing." in card
    assert "No picture." in card
    assert "samples.png" not in card
    assert "- `vae`: unknown, because" in card


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {**FACTS.data, "licence": "for research only"}}, "whose licence is: for research only"),
        ({"data": {**FACTS.data, "licence": ""}}, "whose licence is not named"),
        ({"recipe": {"vae": {"vae.pretrained": "pretrained/kl16"}}}, "come from pretrained/kl16"),
        ({"recipe": {"vae": {}}}, "come from what `dvc.lock` no longer"),
    ],
)
def test_what_is_not_all_from_mit_data_is_not_called_mit(changes: dict[str, Any], expected: str) -> None:
    card = render_card(replace(FACTS, **changes))
    assert front_matter(card)["license"] == "other"
    assert expected in card


def test_data_that_the_hub_lacks_are_not_named() -> None:
    assert "datasets" not in front_matter(render_card(replace(FACTS, data={**FACTS.data, "name": "mine"})))
