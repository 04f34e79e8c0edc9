"""The model card of a trained pipeline, in Hugging Face's format: facts in, Markdown out.

This module reads no files and guesses nothing. What the facts lack is left out, with a line that says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

CARD, PICTURE = "README.md", "samples.png"  # files of an exported folder
PAPER = "[arXiv 2503.16430](https://arxiv.org/abs/2503.16430)"
UNRECORDED = "what `dvc.lock` no longer records"
LICENCE_IDS = {"MIT": "mit"}  # first word of a data licence -> Hugging Face's name; any other is `other`
HUB_DATASETS = {"fashion_mnist": "zalando-datasets/fashion_mnist"}  # data set whose bytes `fetch` checks -> Hub id

METRICS_NOTE = """\
The names are those of the report. `efficientnet_lite0` in a name means that EfficientNet-Lite0, pretrained on ImageNet,
gave the features: a Fréchet distance on them (`fd_efficientnet_lite0_...`) is **not FID**, nor the score on them the
usual IS, and both compare only with figures of the same name on the same data. `floor_` marks the same metric of as
many real training images; `class_accuracy` is a classifier's, of the classes asked for."""
LIMITS = """\
It is meant for research on and teaching of image tokenization and generation: it draws the classes above at the size
above, and nothing else. The figures are those of one training and one set of samples, by which its settings may have
been chosen, and the images carry the faults and the leanings of the data, so that it is unfit wherever a wrong or
unfair picture does harm."""


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
    sections = {
        "How to use it": _usage(facts),
        "Classes": ", ".join(f"{index} {name}" for index, name in enumerate(facts.classes)),
        "Size": _size(facts),
        "Training": _training(facts),
        "Data": _data(facts.data),
        "Metrics": "\n\n".join([METRICS_NOTE, *map(_report, facts.reports)]),
        "Limits and intended use": LIMITS,
        "Licence": _licence(facts),
        "Where it comes from": _origin(facts),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(facts)}---\n\n{_introduction(facts)}\n\n{body}\n"


def _front_matter(facts: CardFacts) -> str:
    fields: dict[str, Any] = {
        "license": _licence_id(facts),
        "library_name": "diffusers",
        "tags": ["image-generation", "class-conditional", "autoregressive", "tokenbridge"],
    }
    if facts.data["name"] in HUB_DATASETS:
        fields["datasets"] = [HUB_DATASETS[facts.data["name"]]]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _introduction(facts: CardFacts) -> str:
    height, width = facts.image_size
    shown = facts.no_picture or (
        f"![Samples, a row for each class, ten classes at most]({PICTURE})\n\n"
        "*Not picked: sample i depends on the seed and i alone.*"
    )
    return (
        f"# TokenBridge `{facts.name}`, trained on {facts.data['name']}\n\n"
        f"Draws images of {len(facts.classes)} classes, {width} x {height} pixels, by TokenBridge ({PAPER}): a "
        "quantizer turns every dimension of a VAE's latents into one of a few levels, and a masked autoregressive "
        f"transformer predicts these tokens.\n\n{shown}"
    )


def _usage(facts: CardFacts) -> str:
    labels = [facts.classes[0], len(facts.classes) - 1]
    settings = "".join(f"    {name}={value!r},\n" for name, value in facts.sampling.items())
    drawn_so = "The settings are those of the samples that were measured. " if settings else ""
    return f"""\
With the `tokenbridge` package of this project installed:

```python
import torch
from tokenbridge import TokenBridgePipeline

pipeline = TokenBridgePipeline.from_pretrained({facts.name!r})  # the path of this folder
generator = torch.Generator().manual_seed(0)
images = pipeline(
    class_labels={labels!r},
{settings}    generator=generator,
).images
images[0].save("image.png")
```

{drawn_so}A class is given by its name or its number."""


def _size(facts: CardFacts) -> str:
    rows = [f"| {part} | {facts.parameters[part]:,} | {_settings(sizes)} |" for part, sizes in facts.sizes.items()]
    total = f"| together | {sum(facts.parameters.values()):,} | |"
    return "\n".join(["| part | parameters | sizes |", "|---|---|---|", *rows, total])


def _training(facts: CardFacts) -> str:
    count = facts.data["splits"]["train"]["count"]
    text = (
        f"A VAE gave the latents of {count:,} training images, a quantizer was fitted to these without training, and "
        "the transformer learnt the tokens by cross-entropy. What each stage ran with, by the names of `params.yaml`:"
    )
    unknown = "not told, for `dvc.lock` does not trace it to this model"
    stages = [f"- `{stage}`: {_settings(values) or unknown}" for stage, values in facts.recipe.items()]
    return "\n".join([text, "", *stages])


def _data(data: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{split['count']:,} in `{name}`" for name, split in data["splits"].items())
    citation = f"```text\n{data['citation']}\n```" if data["citation"] else "The manifest names no citation."
    lines = [
        f"- name: {data['name']} ({counts})",
        f"- licence: {data['licence'] or 'the manifest names none'}",
        f"- digest: `{data['digest']}` (SHA-256 of image size, class names and files, from the manifest)",
    ]
    return "\n".join(lines) + f"\n\n{citation}"


def _report(report: Report) -> str:
    if report.metrics is None:
        return f"**{report.title}.** {report.absence}"
    rows = [f"| `{name}` | {_shown(value)} |" for name, value in report.metrics.items()]
    return "\n".join([f"**{report.title}** (`{report.path}`)", "", "| metric | value |", "|---|---|", *rows])


def _licence_id(facts: CardFacts) -> str:
    first = facts.data["licence"].replace(",", " ").split()[:1]
    return LICENCE_IDS.get("".join(first), "other") if _pretrained_vae(facts) is None else "other"


def _pretrained_vae(facts: CardFacts) -> str | None:
    """Return where the VAE comes from, or None if it was trained on these data."""
    source: str | None = facts.recipe.get("vae", {}).get("vae.pretrained", UNRECORDED)
    return source


def _licence(facts: CardFacts) -> str:
    licence = facts.data["licence"]
    told = f"is: {licence}" if licence else "is not named in its manifest, so ask before you share these weights"
    text = f"The code is MIT. The weights were learnt from {facts.data['name']}, whose licence {told}."
    source = _pretrained_vae(facts)
    if source is not None:
        text += f" The VAE's weights come from {source}, and are under the licence that they have there."
    return f"{text} This project adds no terms of its own to the weights."


def _origin(facts: CardFacts) -> str:
    return (
        f"- git commit at the export: {facts.code}\n"
        f"- SHA-256 of `dvc.lock`, which holds the digest of every input, module and out: `{facts.lock_digest}`"
    )


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in values.items() if value is not None)


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
