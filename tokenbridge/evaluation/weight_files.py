"""A cheap check of the weights that the settings name, for use before samples are drawn."""

from pathlib import Path

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation.inception import check_inception


def check_networks(config: EvaluateConfig) -> None:
    """Check that the files that the settings name can be used.

    Raises:
        EvaluationError, LoadError: if not; the message says what to change.
    """
    check_inception(config)
    if config.dinov2_weights is not None:
        from tokenbridge.evaluation.dinov2 import load_dinov2  # imports torch

        load_dinov2(Path(config.dinov2_weights).expanduser())
