"""The project from Python: train, sample and evaluate in a few lines, such as in docs/quickstart.ipynb.

Each function calls what the stages, the flows and the command line call. Nothing is recorded in MLflow or DVC.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL.Image import Image

from tokenbridge.base.arrays import MANIFEST
from tokenbridge.base.console import log_to_console
from tokenbridge.base.device import pick_device
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text, read_json, sha256_tree
from tokenbridge.base.protocols import Discard
from tokenbridge.config import Config
from tokenbridge.config.model import SamplingSettings
from tokenbridge.ops.serving.draw import draw_grid
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages import evaluate as evaluation
from tokenbridge.stages import generate
from tokenbridge.stages import train as training
from tokenbridge.stages.context import StageContext
from tokenbridge.stages.runtime import PRECISION, WORK
from tokenbridge.training.trainer import CHECKPOINTS

KEY = "key"  # file of a training's folder: the digest of its settings and inputs


def train(config: Config, model: str, folder: Path | str, root: Path | str = ".") -> TokenBridgePipeline:
    """Train ``config.models[model]`` on the data below ``root``, and return the pipeline that draws with it.

    Args:
        model: its key in the settings, such as ``tiny``.
        folder: what the training writes: checkpoints, curves, and the pipeline in ``folder``/pipeline. A training that
            was interrupted continues there.
        root: the project's folder, in which ``make repro`` has made the VAE, the quantizer and the moments.

    Raises:
        UserError: with a message that says what to change: the folder, if it has a training with other settings.
    """
    log_to_console()
    root, folder = Path(root).resolve(), Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _key(config, model, root))
    device = pick_device(config.launcher)
    training.work(StageContext(f"train@{model}", config, root, folder, Discard(), device))
    return TokenBridgePipeline.from_pretrained(folder / "pipeline").to(device)


def _key(config: Config, model: str, root: Path) -> str:
    """Return a digest of all that decides a training."""
    manifests = [f"data/{name}/{MANIFEST}" for name in ("images", config.train_on, "validation_moments")]
    inputs = [sha256_tree(root / each) for each in (*manifests, "models/vae", "models/quantizer")]
    return hashlib.sha256(repr((asdict(config.models[model]), config.train_on, inputs)).encode()).hexdigest()


def _claim(folder: Path, key: str) -> None:
    """Note the training that ``folder`` is for.

    Raises:
        UserError: if it has another one.
    """
    if (folder / KEY).exists() and (folder / KEY).read_text() == key:
        return
    if (folder / CHECKPOINTS).exists():
        raise UserError(f"{folder} has a training with other settings or inputs: choose another folder, or delete it")
    (folder / PRECISION).unlink(missing_ok=True)  # of a training without a checkpoint
    atomic_write_text(folder / KEY, key)


def sample(
    pipeline: TokenBridgePipeline,
    classes: list[int | str] | None = None,
    count: int = 8,
    *,
    seed: int = 0,
    **settings: Any,
) -> Image:
    """Return a picture of ``count`` images of each class.

    Args:
        classes: names or indices, a row of the picture for each; None: all.
        settings: fields of ``SamplingSettings``, such as ``guidance_scale``.

    Raises:
        UserError: with a message that says what to change.
    """
    log_to_console()
    return draw_grid(pipeline, classes, count, seed=seed, settings=SamplingSettings(**settings))


def evaluate(folder: Path | str, config: Config, root: Path | str = ".") -> dict[str, Any]:
    """Return the metrics of a pipeline, as the stages ``generate`` and ``evaluate`` measure them, and their precisions.

    Choose by the metrics that begin with ``validation_``. The others are against the test images.

    Args:
        folder: a saved pipeline, such as ``models/tiny``.
        config: ``generate`` and ``evaluate`` say how many samples, how they are drawn and how they are measured.
        root: the project's folder, with the images and the classifier.

    Raises:
        UserError: with a message that says what to change.
    """
    log_to_console()
    root, device = Path(root).resolve(), pick_device(config.launcher)
    generate.check(config, root)
    (root / WORK).mkdir(exist_ok=True)
    with TemporaryDirectory(dir=root / WORK) as scratch:
        place = Path(scratch)  # with the inputs where the stages look for them, and a folder for the work of each
        drawing, measuring = place / "generate", place / "evaluate"
        links = {"data/images": root / "data/images", "models/classifier": root / "models/classifier"}
        for name, target in (links | {"models/it": Path(folder).resolve()}).items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).symlink_to(target)
        for work in (drawing, measuring, place / "data/samples"):
            work.mkdir()
        generate.work(StageContext("generate@it", config, place, drawing, Discard(), device))
        (drawing / "samples").rename(place / "data/samples/it")
        evaluation.work(StageContext("evaluate@it", config, place, measuring, Discard(), device))
        metrics: dict[str, Any] = read_json(measuring / "metrics.json")
    return metrics
