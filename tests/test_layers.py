"""The packages of tokenbridge stand in layers: imports go down only."""

from pathlib import Path

import pytest

from tests.support.imports import PACKAGE, imported_modules

# from the ground up; packages of one layer do not know of each other
LAYERS = [
    {"base"},
    {"config"},
    {"engine", "images", "infra", "model", "tokenizer"},
    {"evaluation", "sources", "training", "vae"},
    {"classifier", "sampling"},
    {"stages"},
    {"ops"},
    {"api", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def package_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_package_has_its_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert packages | modules == set(LEVEL)


@pytest.mark.parametrize("package", sorted(LEVEL))
def test_imports_go_down(package: str) -> None:
    modules = [module for module in PACKAGE.rglob("*.py") if package_of(module) == package]
    for module in modules:
        imported = {package_of(file) for file in imported_modules(module)} - {package, "__init__"}
        upward = {name for name in imported if LEVEL[name] >= LEVEL[package]}
        assert not upward, f"{module.relative_to(PACKAGE)} imports {upward}"
