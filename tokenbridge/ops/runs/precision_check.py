"""A check of the precision settings before the first stage runs, for stages that run on this machine."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenbridge.base.checks import AUTO, BF16
from tokenbridge.config import Config
from tokenbridge.config.launcher import LOCAL
from tokenbridge.infra.dvc import StageSpec
from tokenbridge.stages.runtime import WORK, begun_in

logger = logging.getLogger(__name__)


def check_precision(root: Path, config: Config, stages: Iterable[StageSpec]) -> None:
    """Print a line for each setting that asks for emulated bfloat16.

    Only the local launcher is checked, because the stages of other launchers run elsewhere.

    Raises:
        UserError: if ``auto`` began a stage in bf16 on another machine, and this machine only emulates bf16.
    """
    settings = precision_settings(config)
    asked = [name for name, setting in settings.items() if setting == BF16]
    automatic = [stage for stage in stages if settings.get(setting_of(stage.name)) == AUTO]
    works = [root / WORK / stage.name / stage.key for stage in automatic]
    begun = [work for work in works if begun_in(work) == BF16]
    if config.launcher.kind != LOCAL or not (asked or begun):
        return
    # these import torch, which takes a second
    from tokenbridge.base.device import best_device, emulation_cost, has_bf16
    from tokenbridge.stages.context import check_resumable

    device = best_device()
    for name in asked if not has_bf16(device) else []:
        logger.info(f"note: {emulation_cost(name, device)}")
    for work in begun:
        check_resumable(work, BF16, device)


def precision_settings(config: Config) -> Mapping[str, str]:
    """Return every precision setting by its dotted name."""
    groups = ("classifier", "vae", "encode", "reconstruct", "generate", "evaluate")
    settings: dict[str, str] = {f"{group}.precision": getattr(config, group).precision for group in groups}
    return settings | {f"models.{name}.train.precision": m.train.precision for name, m in config.models.items()}


def setting_of(stage: str) -> str:
    """Return the name of the setting that decides a stage's precision."""
    kind, _, model = stage.partition("@")
    return f"models.{model}.train.precision" if kind == "train" else f"{kind}.precision"
