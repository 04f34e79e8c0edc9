"""dvc.yaml against the code: a stage depends on exactly the packages that decide what it writes."""

from pathlib import Path

import pytest
import yaml

from tests.support.checkout import CHECKOUT
from tests.support.imports import PACKAGE, imported_modules

# How a stage is run, watched and checked; none of it changes what a stage writes.
RUNNING = ("base/", "config/", "infra/", "stages/")
DECIDING = {f"base/{name}.py" for name in ("arrays", "figures", "image_grid", "loading", "seeding")}  # all the same
# Packages that hold more than a stage needs: their modules are dependencies of their own.
SHARED = {"base", "vae", "classifier"}
# `train` takes the pipeline only as the container of its weights: a change of the sampler must not retrain. What draws
# pictures during the training changes no out either. `fetch` and `generate` only ask whether `evaluate` will work.
EXEMPT = {"fetch": ("evaluation/",), "generate": ("evaluation/",), "train": ("sampling/", "base/image_grid.py")}

DEFINITIONS = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DEFINITIONS.items()}  # `do` stands below a `foreach`

# An edit in the folder or file makes these stages stale; stages after them run again if an out changes.
STALE = {
    "base/progress.py": set(),
    "config": set(),
    "infra": set(),
    "ops": set(),
    "sources": {"fetch"},
    "images": {"fetch", "classifier", "vae", "encode", "reconstruct", "train", "generate", "evaluate"},
    "classifier/training.py": {"classifier"},
    "classifier/network.py": {"classifier", "evaluate"},
    "vae/training.py": {"vae"},
    "vae/discriminator.py": {"vae"},
    "vae/vector_quantization.py": {"vae", "fit_quantizer", "reconstruct"},
    "vae/autoencoder.py": {"vae", "encode", "reconstruct", "train", "generate"},
    "tokenizer": {"fit_quantizer", "tokenize", "reconstruct", "train", "generate"},
    "model": {"train", "generate"},
    "training": {"train"},
    "engine": {"classifier", "vae", "train"},
    "sampling": {"generate"},
    "evaluation": {"reconstruct", "evaluate"},
}


def needed_modules(stage: str) -> set[str]:
    """Modules that the stage imports, directly or not, and that decide what it writes, relative to the package."""
    own = f"stages/{stage}.py"
    start = PACKAGE / own
    seen, todo = {start}, [start]
    while todo:
        fresh = imported_modules(todo.pop()) - seen
        seen |= fresh
        todo += fresh
    names = {path.relative_to(PACKAGE).as_posix() for path in seen if path.name != "__init__.py"} & modules()
    deciding = {name for name in names if name in DECIDING | {own} or not name.startswith(RUNNING)}
    return {name for name in deciding if not name.startswith(EXEMPT.get(stage, ("none",)))}


def modules() -> set[str]:
    return {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}


def declared(stage: str) -> set[str]:
    return {dep.removeprefix("tokenbridge/") for dep in STAGES[stage]["deps"] if dep.startswith("tokenbridge/")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_packages_it_imports(stage: str) -> None:
    packages = {
        name if name.split("/")[0] in {*SHARED, "stages"} else name.split("/")[0] for name in needed_modules(stage)
    }
    whole = {package for package in SHARED if package in declared(stage)}  # where a stage needs all of a shared one
    expected = {name for name in packages if name.split("/")[0] not in whole} | whole
    assert declared(stage) == expected


def test_a_whole_shared_package_is_needed_whole() -> None:
    for stage in STAGES:
        for package in SHARED & declared(stage):
            parts = {name for name in modules() if name.startswith(f"{package}/") and not name.endswith("__init__.py")}
            assert parts <= needed_modules(stage)


@pytest.mark.parametrize("edited", STALE)
def test_an_edit_makes_only_what_it_may_change_stale(edited: str) -> None:
    assert (PACKAGE / edited).exists()
    covering = {edited, *(parent.as_posix() for parent in Path(edited).parents)}
    assert {stage for stage in STAGES if declared(stage) & covering} == STALE[edited]


def test_where_things_run_and_lie_is_no_parameter_of_any_stage() -> None:
    declared_parameters = [name for stage in STAGES.values() for name in stage["params"]]
    assert not [name for name in declared_parameters if name.startswith(("launcher", "storage"))]


def test_train_depends_on_its_own_model_and_on_what_it_trains_on_only() -> None:
    assert STAGES["train"]["params"] == ["train_on", "models.${item.model}"]
    assert "data/${train_on}" in STAGES["train"]["deps"]
    assert "data/moments" not in STAGES["train"]["deps"]
