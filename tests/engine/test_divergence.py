"""Watch over a training's numbers."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.support.small_data import write_moments
from tests.support.small_model import LAUNCHER, MODEL
from tokenbridge.base.distributed import SINGLE_PROCESS
from tokenbridge.base.loading import load_whole
from tokenbridge.engine.divergence import SETTLING, LossWatch, load_bad_step
from tokenbridge.engine.optim import NonFiniteError
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.batches import Batch, batch_loss
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.trainer import BAD_STEP, Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "places", "height", "found"),
    [
        (1000, [500], 2, [500]),
        (400, [200, 201, 202], 3, [200, 201, 202]),  # a spike does not hide the next
        (SETTLING, [SETTLING // 2], 100, []),  # none before the mean has settled
    ],
)
def test_a_jump_of_the_loss_is_a_spike_and_noise_is_none(
    count: int, places: list[int], height: float, found: list[int]
) -> None:
    watch = LossWatch()
    values = torch.linspace(4, 3, count) + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    values[places] += height
    assert [step for step, value in enumerate(values) if watch.is_spike(value)] == found


@pytest.fixture
def trainer(tmp_path: Path, vae_latents: torch.Tensor, quantizer: DimensionwiseQuantizer) -> Trainer:
    data = FreshTokens(write_moments(tmp_path / "moments", vae_latents), quantizer)
    return Trainer(MODEL, data, quantizer, tmp_path / "run", LAUNCHER, CPU, SINGLE_PROCESS)


def test_a_bad_step_stops_before_the_update_and_is_kept_for_a_replay(
    trainer: Trainer, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    trainer.step(0)
    with torch.no_grad():
        trainer.model.class_embedding.weight[1] = torch.inf  # images of class 1 have no finite loss
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="loss is nan at step 1: the weights were not changed") as raised:
        trainer.step(1)
    images = trainer.order.indices(1).tolist()
    assert f"rank 0 has loss nan on images {', '.join(map(str, images))}" in str(raised.value)
    assert all(torch.equal(before[name], each) for name, each in trainer.model.state_dict().items())

    fresh = Trainer(trainer.config, trainer.data, quantizer, tmp_path / "again", LAUNCHER, CPU, SINGLE_PROCESS)
    report, (part,) = load_bad_step(tmp_path / "run" / BAD_STEP, fresh.state)
    assert report["step"] == 1
    assert report["processes"] == [{"rank": 0, "loss": "nan", "images": images}]
    assert report["settings"]["model"] == asdict(trainer.config)
    kept = load_whole(DimensionwiseQuantizer, tmp_path / "run" / BAD_STEP / "quantizer")
    assert torch.equal(kept.levels, quantizer.levels)
    batch = Batch(**part)
    assert not torch.isfinite(batch_loss(fresh.model, quantizer, batch))
    assert all(torch.equal(before[name], each) for name, each in fresh.model.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_as_well(trainer: Trainer) -> None:
    weight = trainer.model.class_embedding.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    before = weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"gradient norm is (inf|nan) at step 0") as raised:
        trainer.step(0)
    images = ", ".join(map(str, trainer.order.indices(0).tolist()))
    assert "every loss is finite, but not every gradient: rank 0 has loss" in str(raised.value)
    assert f"on images {images}. Batch and weights are in" in str(raised.value)
    assert torch.equal(before, weight)
