"""dvc.yaml against the code: a stage depends on exactly the modules that decide what it writes."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tokenbridge"

# How a stage is run, watched and checked; none of it changes what a stage writes.
INFRASTRUCTURE = {
    "checkpoints.py",
    "chunks.py",
    "config/checks.py",
    "config/data.py",
    "config/launcher.py",
    "config/model.py",
    "config/planning.py",
    "config/promotion.py",
    "config/storage.py",
    "config/tokenizer.py",
    "device.py",
    "errors.py",
    "evaluation/checks.py",
    "files.py",
    "machine.py",
    "parallel.py",
    "params.py",
    "processes.py",
    "progress.py",
    "repository.py",
    "stage_graph.py",
    "stages/job.py",
    "stages/runtime.py",
    "storage/bucket.py",
    "storage/client.py",
    "storage/paths.py",
    "straight_writer.py",
    "watching.py",
}
APART = ("launching/", "tracking/")  # folders of the same kind
# `train` imports the pipeline only as the container of its weights: a change of the sampler must not retrain.
# What draws its pictures during the training changes no out either, and a picture shows what `generate` would draw.
# `fetch` and `generate` only ask whether `evaluate` will find its files.
EXEMPT = {
    "fetch": {"evaluation/inception.py"},
    "generate": {"evaluation/inception.py"},
    "train": {"generation.py", "pipeline.py", "plots.py", "sampling.py"},
}

DEFINITIONS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DEFINITIONS.items()}  # `do` stands below a `foreach`


def imported_modules(module: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenbridge"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {path for name in names if (path := ROOT / (name.replace(".", "/") + ".py")).exists()}
            found |= {path for name in names if (path := ROOT / name.replace(".", "/") / "__init__.py").exists()}
    return found


def needed_modules(stage: str) -> set[str]:
    """Every module that the stage imports, directly or not, relative to the package."""
    start = PACKAGE / "stages" / f"{stage}.py"
    seen, todo = {start}, [start]
    while todo:
        fresh = imported_modules(todo.pop()) - seen
        seen |= fresh
        todo += fresh
    names = {path.relative_to(PACKAGE).as_posix() for path in seen}
    names = {name for name in names if not name.endswith("__init__.py") and not name.startswith(APART)}
    return names - INFRASTRUCTURE - EXEMPT.get(stage, set())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_it_imports(stage: str) -> None:
    declared = {dep.removeprefix("tokenbridge/") for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert declared == needed_modules(stage)


def test_where_things_run_and_lie_is_no_parameter_of_any_stage() -> None:
    declared = [name for stage in STAGES.values() for name in stage["params"]]
    assert not [name for name in declared if name.startswith(("launcher", "storage"))]


def test_train_depends_on_its_own_model_only() -> None:
    assert STAGES["train"]["params"] == ["train_on", "models.${item.model}"]


def test_train_depends_on_what_it_trains_on() -> None:
    assert "data/${train_on}" in STAGES["train"]["deps"]
    assert "data/moments" not in STAGES["train"]["deps"]
