"""A check of the precision settings before the first stage runs, for stages that run on this machine."""

import logging
from collections.abc import Mapping
from pathlib import Path

from tokenbridge.base.checks import AUTO, BF16
from tokenbridge.base.device import best_device, emulation_cost, has_bf16
from tokenbridge.config import Config
from tokenbridge.config.launcher import LOCAL
from tokenbridge.infra.dvc import read_stages
from tokenbridge.stages.context import begun_in, check_resumable
from tokenbridge.stages.runtime import WORK

logger = logging.getLogger(__name__)


def check_precision(root: Path, config: Config) -> None:
    """Print a line for each setting that asks for emulated bfloat16.

    Only the local launcher is checked, because the stages of other launchers run elsewhere.

    Raises:
        UserError: if ``auto`` began a stage in bf16 on another machine, and this machine only emulates bf16.
    """
    device = best_device()
    if config.launcher.kind != LOCAL or has_bf16(device):
        return
    settings = precision_settings(config)
    for name, setting in settings.items():
        if setting == BF16:
            logger.info(f"note: {emulation_cost(name, device)}")
    for stage in read_stages(root).values():
        work = root / WORK / stage.name / stage.key
        if settings.get(setting_of(stage.name)) == AUTO and (precision := begun_in(work)):
            check_resumable(work, precision, device)


def precision_settings(config: Config) -> Mapping[str, str]:
    """Return every precision setting by its dotted name."""
    groups = ("classifier", "vae", "encode", "reconstruct", "generate", "evaluate")
    settings: dict[str, str] = {f"{group}.precision": getattr(config, group).precision for group in groups}
    return settings | {f"models.{name}.train.precision": m.train.precision for name, m in config.models.items()}


def setting_of(stage: str) -> str:
    """Return the name of the setting that decides a stage's precision."""
    kind, _, model = stage.partition("@")
    return f"models.{model}.train.precision" if kind == "train" else f"{kind}.precision"
