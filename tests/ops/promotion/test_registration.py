"""What a pipeline run leaves to be registered: models whose evaluation is the one in dvc.lock."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.ops.promotion.conftest import NAME, Project, small
from tokenbridge.base.files import write_json
from tokenbridge.infra.dvc import md5_as_dvc, read_stages
from tokenbridge.infra.tracking.pending import find_spools
from tokenbridge.infra.tracking.registry import EVALUATION, MODEL_ID
from tokenbridge.infra.tracking.sync import sync_all
from tokenbridge.ops.promotion.registration import register_models, registered_name

pytestmark = pytest.mark.pipeline
REPORT = "reports/evaluate/tiny.json"


@pytest.fixture
def evaluated(project: Project) -> Project:
    """A project whose pipeline has run to its end, by dvc.lock."""
    root = project.root
    small(1).save_pretrained(root / "models/tiny")
    for path in ("reports/samples", "reports/evaluate"):
        (root / path).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "reports/samples/tiny.png")
    write_json(root / REPORT, {"samples": 24, "fd_efficientnet_lite0_32px": 6.25, "class_accuracy": 0.5})
    for out in (root / out for stage in read_stages(root).values() for out in stage.outs):
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            out.write_text("{}")
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q"], cwd=root, check=True)
    return project


def register(project: Project) -> None:
    register_models(project.root, ["tiny"], "no-parent")
    assert sync_all(project.root).problem is None


@contextmanager
def edited_lock(project: Project) -> Iterator[dict[str, Any]]:
    path = project.root / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    yield lock["stages"]
    path.write_text(yaml.safe_dump(lock, sort_keys=False))


def test_a_version_tells_where_it_comes_from_and_its_newest_evaluation(evaluated: Project) -> None:
    register(evaluated)
    (version,) = evaluated.registry.versions(NAME)
    assert version.md5 == md5_as_dvc(evaluated.root / "models/tiny")
    assert {
        "metric.fd_efficientnet_lite0_32px": "6.25",
        "data.name": "shapes",
        "generate.steps": "2",
        "seed": "0",
    }.items() <= version.tags.items()
    assert len(version.tags["data.digest"]) == len(version.tags["dvc.lock.sha256"]) == 64
    (run,) = evaluated.runs("register@tiny")
    assert evaluated.artifacts(run) == {"README.md", "samples.png", "tiny.json"}
    description = evaluated.store.client.get_model_version(NAME, "1").description
    assert description.startswith("# TokenBridge `tiny`, trained on shapes")
    assert "artifact `samples.png` of the run that registered it" in description
    model = evaluated.store.client.get_logged_model(version.tags[MODEL_ID])
    assert {metric.key: metric.value for metric in model.metrics}["class_accuracy"] == 0.5

    register_models(evaluated.root, ["tiny"], "no-parent")  # the same again
    assert find_spools(evaluated.root) == []
    assert len(evaluated.runs("register@tiny")) == 1

    write_json(evaluated.root / REPORT, {"class_accuracy": 0.75})
    with edited_lock(evaluated) as stages:
        record = next(out for out in stages["evaluate@tiny"]["outs"] if out["path"] == REPORT)
        record["md5"] = md5_as_dvc(evaluated.root / REPORT)
    register(evaluated)
    (version,) = evaluated.registry.versions(NAME)  # another evaluation is news of the same version
    assert version.tags["metric.class_accuracy"] == "0.75"
    assert version.tags[EVALUATION] == md5_as_dvc(evaluated.root / REPORT)


@pytest.mark.parametrize("path", [REPORT, "models/tiny/transformer/config.json"])
def test_what_dvc_did_not_record_is_not_registered(
    evaluated: Project, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (evaluated.root / path).open("a") as file:
        file.write(" ")
    register(evaluated)
    assert evaluated.registry.versions(NAME) == []
    assert "registry: tiny is not registered" in capsys.readouterr().out


def test_an_evaluation_of_an_earlier_model_is_not_this_ones(
    evaluated: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with edited_lock(evaluated) as stages:
        (evaluated.root / "models/tiny/note").write_text("trained again")
        record = next(out for out in stages["train@tiny"]["outs"] if out["path"] == "models/tiny")
        record["md5"] = md5_as_dvc(evaluated.root / "models/tiny")
    register(evaluated)
    assert "dvc.lock records no evaluation of it" in capsys.readouterr().out


def test_weights_from_elsewhere_are_registered_without_a_card(evaluated: Project) -> None:
    with edited_lock(evaluated) as stages:
        stages["train@tiny"]["params"]["params.yaml"]["models.tiny"]["pretrained"] = "elsewhere"
    register(evaluated)
    assert len(evaluated.registry.versions(NAME)) == 1
    assert "No model card: tiny was not trained here" in evaluated.store.client.get_model_version(NAME, "1").description


def test_names_hold_what_mlflow_takes(tmp_path: Path) -> None:
    assert registered_name("my data/v2:x", "tiny") == "tokenbridge-my-data-v2-x-tiny"
