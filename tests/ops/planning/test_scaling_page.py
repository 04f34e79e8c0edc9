"""docs/scaling.md has the tables that docs/scaling.py computes."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tests.support.checkout import CHECKOUT

SCRIPT = CHECKOUT / "docs/scaling.py"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script; docs is no package."""
    spec = spec_from_file_location("scaling_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.pipeline
def test_the_tables_are_what_the_plans_give_now(scaling: ModuleType) -> None:
    """If not: ``python docs/scaling.py``."""
    cases = [scaling.Case.of(name) for name in scaling.EXPERIMENTS]
    assert scaling.page(cases) == scaling.PAGE.read_text(encoding="utf-8")
