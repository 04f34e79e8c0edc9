"""``tokenbridge export``: write a trained model with its model card as a folder that can be shared.

Everything that the card says is checked against dvc.lock: the model, the data's manifest and each report must be the
files recorded there, and a report must come from this same model.
"""

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import new_folder, read_json, sha256_file
from tokenbridge.config.model import SamplingSettings
from tokenbridge.config.params import flatten
from tokenbridge.images.shards import MANIFEST, read_manifest
from tokenbridge.infra.dvc import LOCK_FILE, LockedStage, md5_as_dvc, read_lock
from tokenbridge.infra.git import git_tags
from tokenbridge.infra.lineage import belong_together, stages_behind
from tokenbridge.ops.exchange.model_card import CARD, PICTURE, CardFacts, Report, render_card
from tokenbridge.sampling.pipeline import TokenBridgePipeline

IMAGES = "data/images"
CALL_NAMES = {"steps": "num_inference_steps"}  # settings for which the pipeline's call has diffusers' name
VAE_SIZES = ("block_out_channels", "layers_per_block", "latent_channels")
REMEDY = "`tokenbridge repro` makes what is missing or out of date"


class ExportError(UserError):
    """A model that cannot be exported, because it is not what dvc.lock records."""


def export_model(root: Path, name: str, out: Path) -> None:
    """Copy root/models/<name> to ``out``, with its card and the picture of its samples.

    Raises:
        UserError: if ``out`` exists, or this project's stages did not train the model on the data that is here.
    """
    folder = root / "models" / name
    if out.resolve().is_relative_to(folder.resolve()):
        raise ExportError(f"{out} lies in the model's own folder: name another")
    with new_folder(out) as target:
        facts = model_facts(root, name)
        shutil.copytree(folder, target, copy_function=shutil.copyfile)  # files of DVC's cache are read-only
        if not facts.no_picture:
            shutil.copyfile(root / _picture(name), target / PICTURE)
        (target / CARD).write_text(render_card(facts), encoding="utf-8", newline="\n")


def model_facts(root: Path, name: str) -> CardFacts:
    """Return the facts about the model ``name`` of the project in ``root``, for ``render_card``.

    Raises:
        UserError: as ``export_model``.
    """
    lock, train = read_lock(root), f"train@{name}"
    _check(root, lock, name)
    pipeline = TokenBridgePipeline.from_pretrained(root / "models" / name)
    recipe = _recipe(lock, name)
    parts = {part: getattr(pipeline, part) for part in ("transformer", "vae", "quantizer")}
    return CardFacts(
        name=name,
        classes=pipeline.class_names,
        image_size=pipeline.image_size,
        sizes={part: _sizes(module.config) for part, module in parts.items()},
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
        data=read_manifest(root / IMAGES),
        recipe=recipe,
        sampling=_sampling(recipe[f"generate@{name}"]),
        no_picture=_why_not(root, lock, _picture(name), f"generate@{name}", train),
        reports=_reports(root, lock, name),
        code=_code(root),
        lock_digest=sha256_file(root / LOCK_FILE),
    )


def _check(root: Path, lock: Mapping[str, LockedStage], name: str) -> None:
    """Check that the model is what its stage trained, on the data whose manifest is here."""
    train, folder, manifest = f"train@{name}", f"models/{name}", f"{IMAGES}/{MANIFEST}"
    if train not in lock:
        trained = ", ".join(stage.removeprefix("train@") for stage in lock if stage.startswith("train@"))
        raise ExportError(f"no stage trained a model {name!r}, says {LOCK_FILE}. Trained: {trained or 'none'}")
    pretrained = flatten(lock[train].params).get(f"models.{name}.pretrained")
    if pretrained is not None:
        raise ExportError(f"{name} was not trained here but taken from {pretrained}: its card is its makers' to write")
    for path, recorded in ((folder, lock[train].outs), (manifest, lock[train].deps)):
        if not (root / path).exists():
            raise ExportError(f"{path} is missing: `dvc checkout` restores it if the cache has it; {REMEDY}")
        if md5_as_dvc(root / path) != recorded.get(path):
            raise ExportError(f"{path} is not what {train} had when {LOCK_FILE} was written: {REMEDY}")


def _recipe(lock: Mapping[str, LockedStage], name: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of each stage up to the model's samples; none for a stage that ran again without it."""
    train = f"train@{name}"
    stages = [*stages_behind(lock, train), f"generate@{name}"]
    listed = [stage for stage in stages if stage != "fetch"]  # the manifest says more about the data
    recipe = {stage: flatten(lock[stage].params) if belong_together(lock, stage, train) else {} for stage in listed}
    prefix = f"models.{name}."  # holds the sizes, which the model's config has too, and its train.*
    recipe[train] = {
        key.removeprefix(prefix): value
        for key, value in recipe[train].items()
        if not key.startswith(prefix) or key.startswith(f"{prefix}train.")
    }
    return recipe


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's settings without diffusers' notes; for a VAE, which has many, only those in VAE_SIZES."""
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and ("block_out_channels" not in config or name in VAE_SIZES)
    }


def _sampling(generate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the stage ``generate`` as arguments of the pipeline's call."""
    names = [field.name for field in fields(SamplingSettings) if f"generate.{field.name}" in generate]
    return {CALL_NAMES.get(name, name): generate[f"generate.{name}"] for name in names}


def _picture(name: str) -> str:
    return f"reports/samples/{name}.png"


def _reports(root: Path, lock: Mapping[str, LockedStage], name: str) -> list[Report]:
    train = f"train@{name}"
    wanted = (
        ("Samples against test images", f"reports/evaluate/{name}.json", f"evaluate@{name}"),
        ("Test images through the VAE, and through the tokens", "reports/reconstruct.json", "reconstruct"),
        ("Training", f"reports/train/{name}.json", train),
    )
    reports = []
    for title, path, stage in wanted:
        absence = _why_not(root, lock, path, stage, train)
        reports.append(Report(title, path, None if absence else flatten(read_json(root / path)), absence))
    return reports


def _why_not(root: Path, lock: Mapping[str, LockedStage], path: str, stage: str, train: str) -> str:
    """Return why ``path``, an out of ``stage``, cannot be shown as the model's; empty if it can."""
    if not (root / path).exists():
        return f"`{path}` was missing at the export."
    if not belong_together(lock, stage, train) or not _same_quantizer(lock, stage, train):
        return f"`{path}` is left out: by `{LOCK_FILE}` it was not made from this model and its parts."
    if md5_as_dvc(root / path) != lock[stage].outs.get(path):
        return f"`{path}` is left out: it is not the file that `{LOCK_FILE}` records."
    return ""


def _same_quantizer(lock: Mapping[str, LockedStage], stage: str, train: str) -> bool:
    """Return whether ``stage`` used the quantizer of the model.

    ``reconstruct`` fits a quantizer of its own, so it must have had the settings that ``fit_quantizer`` had.
    """
    if stage != "reconstruct":
        return True
    fitted = belong_together(lock, "fit_quantizer", train)
    return fitted and lock["fit_quantizer"].params.items() <= lock[stage].params.items()


def _code(root: Path) -> str:
    tags = git_tags(root)
    if not tags:
        return "unknown, the project is in no git repository"
    return f"`{tags['git.commit']}`" + (", with changes not committed" if tags["git.dirty"] == "true" else "")
