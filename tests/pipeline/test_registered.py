"""A pipeline run registers what it evaluated."""

import pytest

from tests.pipeline.project import Project
from tokenbridge.infra.dvc import locked_outs
from tokenbridge.infra.tracking.registry import Registry, Version
from tokenbridge.infra.tracking.store import connect

pytestmark = pytest.mark.pipeline


def versions(project: Project) -> list[Version]:
    return Registry(connect(project.root)).versions("tokenbridge-fashion_mnist-tiny")


def test_the_model_is_a_version_under_the_pipelines_run(project: Project) -> None:
    project.settle()
    version = versions(project)[0]
    assert version.md5 == locked_outs(project.root)["models/tiny"]
    assert float(version.tags["metric.fd_efficientnet_lite0_32px"]) > 0
    assert version.tags["git.commit"] == project.run("git", "rev-parse", "HEAD").strip()
    run = project.runs("register@tiny")[-1]
    assert run.data.tags["mlflow.parentRunId"] in {parent.info.run_id for parent in project.runs("pipeline")}
    assert {"README.md", "samples.png", "tiny.json"} <= set(project.artifacts(run))
    model = connect(project.root).client.get_logged_model(version.model_id)
    assert model.source_run_id in {training.info.run_id for training in project.runs("train@tiny")}  # logged once


def test_a_run_that_changes_nothing_registers_nothing(project: Project) -> None:
    project.settle()
    before = len(versions(project)), len(project.runs("register@tiny"))
    output = project.repro()
    assert "registry:" not in output
    assert (len(versions(project)), len(project.runs("register@tiny"))) == before
