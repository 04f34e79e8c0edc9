"""Stages shared by two processes of one machine: the same bytes, and no harm done by the death of one of them."""

from collections.abc import Iterator

import pytest

from tests.pipeline.project import Project, descendant, outcomes, wait_for

pytestmark = pytest.mark.slow

TWO = ("launcher=multi_gpu", "launcher.processes=2", *Project.launching)
WEIGHTS = "models/tiny/transformer"


@pytest.fixture
def settled(project: Project) -> Iterator[Project]:
    """The project, with the model that one process trains before and after."""
    project.settle()
    yield project
    project.forget("train@tiny")
    project.repro()


def test_shards_samples_and_metrics_are_the_bytes_of_one_process(project: Project) -> None:
    project.settle()
    made = ("data/moments", "data/samples/tiny", "reports/evaluate/tiny.json")
    before = [project.digest(out) for out in made]
    for stage in ("encode", "generate@tiny", "evaluate@tiny"):
        project.forget(stage)
    output = project.repro(*TWO)
    assert [outcomes(output)[stage] for stage in ("encode", "generate@tiny", "evaluate@tiny")] == ["ran"] * 3
    assert outcomes(output)["train@tiny"] == "skipped"  # where a stage runs is nothing to DVC
    assert "[rank 0] encode: 600/600 images" in output
    assert [project.digest(out) for out in made] == before


def test_a_killed_worker_does_not_change_what_is_learnt(settled: Project) -> None:
    settled.forget("train@tiny")
    settled.repro(*TWO)
    undisturbed = settled.digest(WEIGHTS)

    settled.forget("train@tiny")
    repro = settled.start_repro(*TWO)
    worker = wait_for(lambda: descendant(repro, "-u", "tokenbridge.worker"), "worker")
    work = settled.root / ".work/train@tiny"
    wait_for(lambda: next(work.glob("*/checkpoints/step-*"), None), "checkpoint")
    worker.kill()
    output, _ = repro.communicate()
    assert repro.returncode == 0, output
    assert "train: resuming at" in output
    assert settled.digest(WEIGHTS) == undisturbed
    killed = settled.runs("train@tiny")[-1]
    assert killed.info.status == "FINISHED"
    assert killed.data.metrics["loss"] == settled.runs("train@tiny")[-2].data.metrics["loss"]  # passed on by workers
