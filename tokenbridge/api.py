"""The project from Python: train, sample and evaluate in a few lines, such as in docs/quickstart.ipynb.

Each function calls what the stages, the flows and the command line call. Nothing is recorded in MLflow or DVC.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL.Image import Image

from tokenbridge.base.console import log_to_console
from tokenbridge.base.device import pick_device
from tokenbridge.base.files import read_json
from tokenbridge.base.protocols import Discard
from tokenbridge.config import Config
from tokenbridge.config.model import SamplingSettings
from tokenbridge.ops.serving.draw import draw_grid
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages import evaluate as evaluation
from tokenbridge.stages import generate
from tokenbridge.stages import train as training
from tokenbridge.stages.context import StageContext
from tokenbridge.stages.runtime import WORK


def train(config: Config, model: str, folder: Path | str, root: Path | str = ".") -> TokenBridgePipeline:
    """Train ``config.models[model]`` on the data below ``root``, and return the pipeline that draws with it.

    Args:
        model: its key in the settings, such as ``tiny``.
        folder: what the training writes: checkpoints, curves, and the pipeline in ``folder``/pipeline. A training that
            was interrupted continues there.
        root: the project's folder, in which ``make repro`` has made the VAE, the quantizer and the moments.

    Raises:
        UserError: with a message that says what to change.
    """
    log_to_console()
    root, folder = Path(root).resolve(), Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device(config.launcher)
    training.work(StageContext(f"train@{model}", config, root, folder, Discard(), device))
    return TokenBridgePipeline.from_pretrained(folder / "pipeline").to(device)


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
        place = Path(scratch)  # with the inputs where the stages look for them
        links = {"data/images": root / "data/images", "models/classifier": root / "models/classifier"}
        for name, target in (links | {"models/it": Path(folder).resolve()}).items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).symlink_to(target)
        generate.work(StageContext("generate@it", config, place, place, Discard(), device))
        (place / "data/samples").mkdir()
        (place / "samples").rename(place / "data/samples/it")
        evaluation.work(StageContext("evaluate@it", config, place, place, Discard(), device))
        metrics: dict[str, Any] = read_json(place / "metrics.json")
    return metrics
