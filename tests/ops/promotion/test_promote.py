"""``promote`` and ``rollback`` on a real registry: who becomes the champion, and what stays on record."""

import argparse
import base64
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from mlflow import pyfunc
from PIL import Image

from tests.ops.promotion.conftest import NAME, Project, small
from tokenbridge.base.checks import ConfigError
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json
from tokenbridge.config.params import load_params
from tokenbridge.images.shards import MANIFEST
from tokenbridge.infra.dvc import md5_as_dvc, read_stages
from tokenbridge.infra.tracking.registry import VETO, Registry, RegistryError
from tokenbridge.ops.promotion import PromotionError
from tokenbridge.ops.promotion.cli import add_commands
from tokenbridge.ops.promotion.measurement import Bench, settings_for_versions
from tokenbridge.ops.promotion.promote import carry_out, promote, rollback
from tokenbridge.ops.promotion.trial import Trial

pytestmark = pytest.mark.pipeline


def files_of(folder: Path) -> dict[Path, int]:
    """Every file with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def measured(project: Project) -> dict[Path, int]:
    """What was drawn and measured."""
    return {path: time for path, time in files_of(project.root / ".work/promotion").items() if NAME not in str(path)}


def bench_of(project: Project, *changes: str) -> Bench:
    return Bench(project.root, load_params(project.root, changes), project.registry, "tiny")


def test_the_first_champion_passes_the_absolute_gates_and_is_served(
    arena: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = arena.promote(number=1)
    assert (decision.outcome, decision.candidate, decision.champion) == ("promoted", 1, None)
    assert [gate.name for gate in decision.gates] == [
        "veto",
        "weights",
        "finite",
        "class_accuracy",
        "precision",
        "recall",
    ]
    assert arena.holders() == {"champion": 1}
    with pytest.raises(PromotionError, match="nothing to go back to"):
        rollback(arena.root, "tiny")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", arena.store.uri)
    served = pyfunc.load_model(f"models:/{NAME}@champion")
    (png,) = served.predict(pd.DataFrame({"class": ["Bag"], "seed": [3]}))
    expected = small(1)(["Bag"], generator=torch.Generator().manual_seed(3)).images[0]
    assert Image.open(io.BytesIO(base64.b64decode(png))).tobytes() == expected.tobytes()


def test_the_newest_version_takes_over_and_the_run_says_why(arena: Project) -> None:
    arena.promote(number=1)
    decision = arena.promote()
    assert arena.holders() == {"champion": 2, "previous": 1}
    run = arena.runs("promotion")[0]
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "promoted")
    assert {"candidate": "2", "champion": "1", "model": NAME}.items() <= run.data.tags.items()
    assert {run.data.params[f"protocol.{each}.images"] for each in ("candidate", "champion")} == {"24"}
    assert arena.artifacts(run) == {"decision.json", "report.md", "samples.png", "differences.png"}
    assert run.data.metrics["difference.fd.low"] <= run.data.metrics["difference.fd.high"]
    assert run.data.metrics["gate.slowdown"] == 1
    assert {"fd", "kid", "is", "precision", "recall"} <= {name.split("_")[0] for name in decision.candidate_metrics}
    assert run.data.params["generate.samples"] == "24"
    assert arena.registry.version(NAME, 2).tags["promotion"] == decision.summary()
    written = json.loads((decision.pictures[0].parent / "decision.json").read_text())
    assert written["gates"][-1]["name"] == "slowdown"

    metric = next(name for name in decision.candidate_metrics if name.startswith("fd_"))
    expected = decision.candidate_metrics[metric] - decision.champion_metrics[metric]
    assert decision.differences["fd"]["observed"] == pytest.approx(expected, abs=1e-3)
    expected = decision.candidate_metrics["class_accuracy"] - decision.champion_metrics["class_accuracy"]
    assert decision.differences["class_accuracy"]["observed"] == pytest.approx(expected)

    runs = len(arena.runs("promotion"))
    assert arena.promote().outcome == "unchanged"  # the champion need not be measured again
    assert len(arena.runs("promotion")) == runs


def test_each_model_is_timed_in_every_round(arena: Project) -> None:
    bench = bench_of(arena, "promotion.timing_rounds=3")
    new, old = bench.seconds_per_image([small(1), small(2)])
    assert len(new) == len(old) == 3
    assert min(new + old) > 0


def test_nothing_is_drawn_twice_with_the_same_settings(arena: Project) -> None:
    arena.promote(number=1)
    decision = arena.promote(dry_run=True)
    before = measured(arena)
    assert len([path for path in before if path.name == "manifest.json"]) == 2  # samples of both
    arena.promote(dry_run=True)
    assert measured(arena) == before
    other = promote(arena.root, "tiny", dry_run=True, changes=["generate.guidance_scale=1.0", "seed=7"])
    assert {"generate.guidance_scale": 1.0, "seed": 7}.items() <= other.settings.items()
    assert all(getattr(other, name) != getattr(decision, name) for name in ("candidate_metrics", "champion_metrics"))


def test_the_reasons_are_kept_if_the_registry_fails_then(arena: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RegistryError("away")

    monkeypatch.setattr(Registry, "point", fail)
    with pytest.raises(RegistryError):
        arena.promote(number=1)
    run = arena.runs("promotion")[0]
    assert run.info.status == "FAILED"
    assert arena.artifacts(run) >= {"decision.json", "report.md"}
    assert arena.holders() == {}


def test_a_refused_candidate_changes_nothing_but_the_record(arena: Project) -> None:
    decision = arena.promote("min_precision=1", number=1)
    assert decision.outcome == "refused"
    assert "precision is" in decision.reason
    assert arena.holders() == {}
    arena.promote(number=1)
    decision = arena.promote("max_slowdown=1e-6")
    assert decision.outcome == "refused"
    assert "time per image over the champion's is" in decision.reason
    assert arena.holders() == {"champion": 1}
    assert arena.runs("promotion")[0].data.tags["outcome"] == "refused"


def test_a_dry_run_says_the_same_and_changes_nothing(arena: Project) -> None:
    runs = len(arena.runs("promotion"))
    tags = arena.registry.version(NAME, 2).tags
    decision = arena.promote(dry_run=True)
    assert decision.summary().startswith(f"{NAME} version 2: would be promoted.")
    assert arena.holders() == {}
    assert len(arena.runs("promotion")) == runs
    assert arena.registry.version(NAME, 2).tags == tags


def test_rollback_exchanges_the_two_and_a_veto_keeps_one_away(arena: Project) -> None:
    arena.promote(number=1)
    arena.promote()
    assert rollback(arena.root, "tiny") == f"{NAME} version 1 is the champion again, version 2 is `previous`"
    assert arena.holders() == {"champion": 1, "previous": 2}
    rollback(arena.root, "tiny")
    assert arena.holders() == {"champion": 2, "previous": 1}
    assert arena.runs("rollback")[0].data.tags["outcome"].startswith(f"{NAME} version 2 is the champion again")

    rollback(arena.root, "tiny", veto="bert: too dark")
    decision = arena.promote()
    assert (decision.outcome, decision.reason) == ("refused", "vetoed: bert: too dark")
    assert not decision.candidate_metrics  # nothing was measured
    with pytest.raises(PromotionError, match=r"version 2 is vetoed \(bert: too dark\)"):
        rollback(arena.root, "tiny")
    assert arena.holders() == {"champion": 1, "previous": 2}


def test_versions_are_drawn_in_the_precision_as_set(arena: Project) -> None:
    version = arena.registry.version(NAME, 1)
    for precision in ("fp32", "bf16"):
        assert bench_of(arena, f"generate.precision={precision}").load(version).precision == precision


def test_what_happened_during_the_measurement_counts(arena: Project) -> None:
    registry, changes = arena.registry, ["promotion.min_class_accuracy=0", "promotion.min_precision=0"]
    config = load_params(arena.root, [*changes, "promotion.min_recall=0"])
    trial = Trial(arena.root, config, registry, "tiny", registry.version(NAME, 2), None)
    decision = trial.decide()
    assert decision.outcome == "promoted"

    registry.point("champion", registry.version(NAME, 1))
    after = carry_out(trial, decision)
    assert (after.outcome, after.reason) == ("refused", "version 1 became the champion meanwhile: promote again.")
    assert arena.holders() == {"champion": 1}

    arena.store.client.delete_registered_model_alias(NAME, "champion")
    registry.tag(trial.candidate, {VETO: "anna: wait"})
    after = carry_out(trial, decision)
    assert (after.outcome, after.reason) == ("refused", "vetoed: anna: wait")
    assert arena.holders() == {}


def test_weights_that_are_not_finite_are_refused(arena: Project) -> None:
    broken = small(3)
    with torch.no_grad():
        next(broken.transformer.parameters()).fill_(float("nan"))
    version = arena.register(broken)
    decision = arena.promote()
    assert (decision.candidate, decision.outcome) == (version.number, "refused")
    assert "NaN" in decision.reason


def test_the_workspaces_samples_are_taken_if_they_are_this_models(arena: Project) -> None:
    """As dvc.lock records them, with these settings and by this code; a copy of what would be drawn stands in."""
    version, workspace = arena.registry.version(NAME, 1), arena.root / "data/samples/tiny"
    here = arena.root / "reports/samples/tiny.png"

    def picture(*changes: str) -> Path:
        return bench_of(arena, *changes).measure(version).picture

    drawn = picture()
    shutil.copytree(drawn.parent / "samples", workspace)
    here.parent.mkdir(parents=True)
    shutil.copy(drawn, here)
    record_samples(arena.root, version.md5)
    assert picture() == here
    assert picture("seed=3") != here
    (workspace / "note").write_text("another folder now")
    assert picture() == drawn
    write_json(workspace / MANIFEST, read_json(workspace / MANIFEST) | {"precision": "another"})
    record_samples(arena.root, version.md5)
    assert picture() == drawn
    shutil.rmtree(workspace)
    (arena.root / "dvc.lock").unlink()


def record_samples(root: Path, md5: str) -> None:
    """dvc.lock as it is after ``generate@tiny``."""
    stage = read_stages(root)["generate@tiny"]
    record = {
        "cmd": "python",
        "deps": [{"path": path, "md5": found} for path, found in (stage.deps | {"models/tiny": md5}).items()],
        "params": {"params.yaml": stage.params},
        "outs": [{"path": out, "md5": md5_as_dvc(root / out)} for out in stage.outs],
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"generate@tiny": record}}))


def command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    options = parser.parse_args(arguments)
    options.command(options)


def test_the_command_prints_the_report_and_fails_if_refused(
    arena: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(arena.root)
    with pytest.raises(SystemExit) as ending:
        command("promote", "tiny", "--version", "1", "--dry-run", "--set", "promotion.min_recall=1")
    assert ending.value.code == 1
    shown = capsys.readouterr().out
    assert f"# {NAME} version 1: would be refused." in shown
    assert "samples.png" in shown


def test_the_trunk_of_each_version_decides_what_it_can_follow(arena: Project) -> None:
    """The settings of the project may be those of another trunk by now, and have ``generate.steps=2`` here."""
    settings = settings_for_versions(arena.root, "tiny", ["models.tiny.trunk=causal_raster"])
    bench = Bench(arena.root, settings, arena.registry, "tiny")
    bench.load(arena.registry.version(NAME, 1))  # masked
    raster = arena.register(small(3, "causal_raster"))
    with pytest.raises(ConfigError, match=r"cannot be drawn: generate.steps is 2, but .* use steps=16"):
        bench.load(raster)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--version", "9", f"{NAME} has no version 9: choose one of 2, 1"),
        ("--set", "promotion.secs=1", "promotion.secs is no setting: did you mean seconds?"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(
    arena: Project, monkeypatch: pytest.MonkeyPatch, option: str, value: str, message: str
) -> None:
    monkeypatch.chdir(arena.root)
    with pytest.raises(UserError) as mistake:
        command("promote", "tiny", option, value)
    assert message in str(mistake.value)
