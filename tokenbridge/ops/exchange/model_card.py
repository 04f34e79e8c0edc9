"""The model card of a trained pipeline, in Hugging Face's format: facts in, Markdown out.

The text is in ``model_card.md``, a Jinja template. Nothing is guessed: what the facts lack is left out, with a line
that says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD, PICTURE = "README.md", "samples.png"  # files of an exported folder
TEMPLATE = Path(__file__).with_name("model_card.md")
UNRECORDED = "what `dvc.lock` no longer records"
LICENCE_IDS = {"MIT": "mit"}  # first word of a data licence -> Hugging Face's name
OTHER = "other"  # Hugging Face's name of any other licence
HUB_DATASETS = {"fashion_mnist": "zalando-datasets/fashion_mnist"}  # data set whose bytes `fetch` checks -> Hub id


@dataclass(frozen=True)
class Report:
    """A report of a stage.

    Attributes:
        metrics: None if it cannot be shown; ``absence`` then says why.
    """

    title: str
    path: str
    metrics: Mapping[str, float | str] | None
    absence: str = ""


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card shows.

    Attributes:
        name: the model's key in params.yaml.
        image_size: height and width in pixels.
        sizes: part of the pipeline -> its settings.
        parameters: part of the pipeline -> number of learnt weights.
        data: the manifest of the training images.
        recipe: stage -> the parameters with which it made this model or its samples; empty where they are not known.
        sampling: arguments of the pipeline's call with which the reported samples were drawn.
        no_picture: why there is no picture of the samples; empty if there is one.
        reports: the reports in the order of the card.
        code: the git commit, in words.
        lock_digest: SHA-256 of dvc.lock.
    """

    name: str
    classes: list[str]
    image_size: tuple[int, int]
    sizes: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, int]
    data: Mapping[str, Any]
    recipe: Mapping[str, Mapping[str, Any]]
    sampling: Mapping[str, Any]
    no_picture: str
    reports: list[Report]
    code: str
    lock_digest: str


def render_card(facts: CardFacts) -> str:
    """Render the whole card as Markdown."""
    from huggingface_hub import ModelCard, ModelCardData  # slow to import, and most runs write no card

    name, licence = facts.data["name"], facts.data["licence"].replace(",", " ").split()
    # where the VAE's weights come from, or None if they were trained on these data
    vae_source = facts.recipe.get("vae", {}).get("vae.pretrained", UNRECORDED)
    front_matter = ModelCardData(
        license=LICENCE_IDS.get(licence[0], OTHER) if licence and vae_source is None else OTHER,
        library_name="diffusers",
        tags=["image-generation", "class-conditional", "autoregressive", "tokenbridge"],
        datasets=[HUB_DATASETS[name]] if name in HUB_DATASETS else None,
    )
    shown = vars(facts) | {"vae_source": vae_source, "picture": PICTURE}
    return f"{ModelCard.from_template(front_matter, str(TEMPLATE), **shown)}\n"
