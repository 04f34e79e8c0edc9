"""Stages: one thin module for each stage of dvc.yaml, and what all stages share."""

import importlib
from types import ModuleType


def import_stage(stage: str) -> ModuleType:
    """Import the module of a stage, such as ``train@tiny``."""
    from tokenbridge.base.imports import quick_imports  # not before Ctrl-C is arranged for: see __main__.py

    with quick_imports():
        return importlib.import_module(f"{__name__}.{stage.partition('@')[0]}")
