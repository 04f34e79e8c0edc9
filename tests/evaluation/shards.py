"""Drawn images as the folder of shards that the stages read."""

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tests.evaluation.conftest import Shapes
from tokenbridge.images.shards import write_manifest, write_shards


def save_shards(
    folder: Path, splits: dict[str, Shapes], label_names: list[str], drawn: dict[str, Any] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, (images, labels) in splits.items():
        examples = []
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
            examples.append((buffer.getvalue(), f"{number}.png", int(label)))
        written[split] = write_shards(folder, split, examples, label_names, 10000, len(examples))
    size = images.shape[-1]
    write_manifest(folder, name="shapes", image_size=size, label_names=label_names, splits=written, drawn=drawn)
