"""The shared loop: seeded steps, and the same bits however often it is interrupted."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.small_model import LAUNCHER, Silent
from tokenbridge.base.checkpoints import Checkpoints
from tokenbridge.engine.loop import Evaluations, History, cosine_factor, run_steps
from tokenbridge.engine.optim import build_optimizers, update_weights

STEPS = 12


class Interrupted(Exception):
    """Stands for a kill between two steps."""


def run(checkpoint: Path, stop_at: int | None = None, evaluations: Evaluations | None = None) -> tuple[Tensor, History]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizers = build_optimizers(
        model,
        kind="muon",
        learning_rate=0.1,
        muon_learning_rate=0.02,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        is_matrix=lambda name, _: name == "weight",
    )

    def step(index: int) -> dict[str, Tensor]:
        if index == stop_at:
            raise Interrupted
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        factor = cosine_factor(index, STEPS, 2)
        update_weights(loss, model, list(optimizers.values()), factor=factor, clip_norm=1.0, step=index)
        return {"loss": loss}

    history = run_steps(
        label="test",
        state={"model": model, **optimizers},
        step_fn=step,
        total_steps=STEPS,
        images_per_step=4,
        seed=0,
        checkpoints=Checkpoints(checkpoint),
        launcher=LAUNCHER,
        tracker=Silent(),
        precision="fp32",
        evaluations=evaluations,
    )
    return model.weight.detach().clone(), history


def test_interrupted_twice_it_ends_with_the_same_bits_and_is_then_not_run_again(tmp_path: Path) -> None:
    weights, history = run(tmp_path / "whole.pt")
    assert [row["images"] for row in history] == [4 * (i + 1) for i in range(STEPS)]
    for stop_at in (5, 9):
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed.pt", stop_at)
    for stop_at in (None, 0):
        resumed_weights, resumed_history = run(tmp_path / "resumed.pt", stop_at)
        assert torch.equal(resumed_weights, weights)
        assert resumed_history == history


@pytest.mark.parametrize("times", [1, 5, 8, STEPS, 100])
def test_evaluations_are_evenly_spread_and_end_with_the_last_step(times: int) -> None:
    evaluations = Evaluations(lambda _: {}, times)
    due = [step for step in range(1, STEPS + 1) if evaluations.due(step, STEPS)]
    assert len(due) == min(times, STEPS)
    assert due[-1] == STEPS
    gaps = {later - earlier for earlier, later in pairwise([0, *due])}
    assert max(gaps) - min(gaps) <= 1


def test_evaluations_survive_a_kill(tmp_path: Path) -> None:
    def measured() -> Evaluations:
        return Evaluations(lambda step: {"quality": step / 8}, 3)

    with pytest.raises(Interrupted):
        run(tmp_path, stop_at=6, evaluations=measured())
    resumed = measured()
    run(tmp_path, evaluations=resumed)
    assert resumed.rows == [{"step": step, "images": 4 * step, "quality": step / 8} for step in (4, 8, 12)]
    ended = Evaluations(lambda _: pytest.fail("it was measured before"), 3)
    run(tmp_path, evaluations=ended)
    assert ended.rows == resumed.rows


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [cosine_factor(step, 100, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == 1.0
    assert rates[100] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
