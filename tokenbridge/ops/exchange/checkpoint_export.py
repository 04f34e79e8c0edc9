"""``tokenbridge export --checkpoint``: write the newest checkpoint of a training as a pipeline folder."""

from pathlib import Path

from tokenbridge.base.arrays import MANIFEST
from tokenbridge.base.checkpoints import Checkpoints, read_tensors
from tokenbridge.base.files import atomic_write_text, new_folder, read_json
from tokenbridge.base.seeding import EpochOrder
from tokenbridge.config import Config
from tokenbridge.config.params import load_params
from tokenbridge.images.shards import read_manifest
from tokenbridge.infra.dvc import read_stages
from tokenbridge.ops.exchange.export import ExportError
from tokenbridge.ops.exchange.model_card import CARD
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages.runtime import WORK
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import CHECKPOINTS, build_model
from tokenbridge.vae.autoencoder import load_vae


def export_checkpoint(root: Path, name: str, out: Path) -> None:
    """Write the newest checkpoint of the training of ``name`` to ``out``, with the averaged weights and a README.

    The training may continue during the export.

    Raises:
        UserError: if ``out`` exists, or there is no checkpoint for the current settings, code and data.
    """
    checkpoint, config = _newest_checkpoint(root, name), load_params(root)
    with new_folder(out) as target:
        quantizer = load_quantizer(root / "models/quantizer")
        shapes = FreshTokens(Moments(root / "data/validation_moments"), quantizer)
        model = build_model(config.models[name], shapes, quantizer)
        averages = {f"ema/average/{key}": parameter.detach() for key, parameter in model.named_parameters()}
        progress = read_tensors(checkpoint, averages)
        label_names = read_manifest(root / "data/images")["label_names"]
        TokenBridgePipeline(load_vae(root / "models/vae"), model, quantizer, label_names).save_pretrained(target)
        total = _total_steps(root, config, name)
        atomic_write_text(target / CARD, _readme(name, progress["step"], total, progress["evaluations"]))


def _newest_checkpoint(root: Path, name: str) -> Path:
    stages, stage = read_stages(root), f"train@{name}"
    if stage not in stages:
        known = [each.removeprefix("train@") for each in stages if each.startswith("train@")]
        raise ExportError(f"dvc.yaml trains no model {name!r}: choose one of {', '.join(known)}")
    folder = root / WORK / stage / stages[stage].key / CHECKPOINTS
    newest = Checkpoints(folder).newest()
    if newest is None:
        raise ExportError(
            f"{folder} has no whole checkpoint. If the training has just begun, repeat this later; if it has ended, "
            "leave out --checkpoint; if params.yaml, code or data changed since it began, set them back"
        )
    return newest


def _total_steps(root: Path, config: Config, name: str) -> int:
    """Return the number of steps of the whole training."""
    recipe = config.models[name].train
    images = read_json(root / "data" / config.train_on / MANIFEST)["images"]
    return EpochOrder(images, recipe.batch_size, recipe.seed).steps(recipe.epochs)


def _readme(name: str, step: int, total: int, evaluations: list[dict[str, float]]) -> str:
    measured = "The validation loss has not been measured yet."
    if evaluations:
        loss, at = evaluations[-1]["validation_loss"], evaluations[-1]["step"]
        measured = f"The last validation loss is {loss:.4f} (of levels: nats per dimension), after step {at:,}."
    return f"""\
# TokenBridge `{name}` after step {step:,} of {total:,}

The training had not ended when this folder was written. It holds the averaged weights of a checkpoint, to look at.
{measured}

`tokenbridge sample --model DIR` draws with it, where DIR is this folder. When the training has ended,
`tokenbridge export {name}` writes the whole model with its card.
"""
