"""Stages shared by two processes of one machine: the same bytes, and no harm done by the death of one of them."""

import pytest

from tests.pipeline.fixtures import TRAIN, TWO
from tests.pipeline.project import Project, descendant, first_match, wait_for
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.pipeline


def test_two_processes_draw_and_learn_the_same_even_if_one_is_killed(
    project: Project, learnt_by_two: dict[str, str]
) -> None:
    """Of ``encode``, ``tokenize`` and ``evaluate``, tests/test_shared_work.py shows it."""
    with project.by_hand(*TWO):
        before = project.digest("data/samples/tiny")
        output = project.run("python", "-m", "tokenbridge.stages", "generate@tiny")
        assert "[rank 0] " in output
        assert project.digest("data/samples/tiny") == before

        stage = project.start(*TRAIN)
        worker = wait_for(lambda: descendant(stage, "-u", "tokenbridge.stages.worker"), "worker")
        work = project.root / ".work/train@tiny"
        wait_for(lambda: first_match(work, "*/checkpoints/step-*"), "checkpoint")
        worker.kill()
        output, _ = stage.communicate(timeout=PATIENCE)
        assert stage.returncode == 0, output
        assert "train: resuming at" in output
        assert project.artifacts(project.runs("train@tiny")[-1], "workers") == ["workers/workers-here.log"]
        assert {out: project.digest(out) for out in learnt_by_two} == learnt_by_two
