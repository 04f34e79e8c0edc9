"""Training of the autoregressive model on tokens."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import LAUNCHER, MODEL, PRECISIONS, QUANTIZER, RECIPE, SHAPE
from tests.support.small_data import store_tokens
from tests.training.conftest import run
from tokenbridge.base.seeding import generator
from tokenbridge.tokenizer.quantizer import fit_quantizer
from tokenbridge.training.batches import draw_batch, num_masked_positions
from tokenbridge.training.datasets import FreshTokens, TrainingData
from tokenbridge.training.trainer import Trained, build_model

SELDOM = replace(LAUNCHER, checkpoint_seconds=60)


def losses(trained: Trained) -> list[float]:
    return [row["loss"] for row in trained.history]


def test_masking_ratio_follows_the_truncated_normal() -> None:
    uniforms = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([num_masked_positions(u, 256, RECIPE) for u in uniforms]) / 256
    assert counts.min() >= 0.7
    assert counts.max() <= 1.0
    # of |N(0, 0.25)| below 0.3, the mean is 0.25 sqrt(2/pi) (1 - exp(-0.72)) / erf(1.2 / sqrt 2)
    assert counts.mean().item() == pytest.approx(1 - 0.1331, abs=0.005)


@pytest.mark.parametrize(("uniform", "masked"), [(0.0, 12), (1.0, 16)])
def test_masking_is_rounded_up_and_leaves_nothing_out(uniform: float, masked: int) -> None:
    assert num_masked_positions(torch.tensor(uniform), 16, RECIPE) == masked


def test_labels_are_dropped_at_their_rate(data: FreshTokens) -> None:
    recipe = replace(RECIPE, label_dropout=0.25)
    labels = torch.cat([draw_batch(data, torch.arange(64), recipe, generator(step)).labels for step in range(50)])
    assert (labels == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_model_takes_its_shapes_from_data_and_quantizer(data: FreshTokens, vae_latents: torch.Tensor) -> None:
    config = build_model(MODEL, data, data.quantizer).config
    assert {name: config[name] for name in SHAPE} == SHAPE
    patches = FreshTokens(data.moments, fit_quantizer(vae_latents, replace(QUANTIZER, patch_size=2)))
    config = build_model(MODEL, patches, patches.quantizer).config
    assert (config.grid_height, config.grid_width, config.dimensions) == (2, 2, 16)


def test_it_learns(data: FreshTokens, tmp_path: Path) -> None:
    falling = losses(run(tmp_path / "run", data, launcher=SELDOM, epochs=30))
    assert sum(falling[-20:]) / 20 < falling[0] - 0.5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_seed_gives_the_same_bits_and_another_others(
    data: FreshTokens, tmp_path: Path, precision: str
) -> None:
    first, second, other = (
        run(tmp_path / str(i), data, dropout=0.1, precision=precision, seed=seed).model
        for i, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.token_in.weight, other.token_in.weight)


@pytest.mark.pipeline
def test_stored_tokens_end_at_the_loss_of_fresh_ones_within_the_noise_of_seeds(
    data: FreshTokens, tmp_path: Path
) -> None:
    def final_losses(source: TrainingData, name: str) -> torch.Tensor:
        runs = [
            run(tmp_path / f"{name}{seed}", data, source, launcher=SELDOM, seed=seed, epochs=8) for seed in range(4)
        ]
        return torch.tensor([losses(trained)[-32:] for trained in runs]).mean(1)

    fresh = final_losses(data, "fresh")
    stored = final_losses(store_tokens(tmp_path, data.moments, data.quantizer), "stored")
    standard_error = ((fresh.var() + stored.var()) / len(fresh)).sqrt()
    assert (fresh.mean() - stored.mean()).abs() < 3 * standard_error


KILLED = """
import sys
from pathlib import Path
import torch
from tests.conftest import PRECISIONS
from tests.training.conftest import run
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.base.loading import load_whole
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer
from tokenbridge.training.datasets import FreshTokens
folder = Path(sys.argv[1])
quantizer = load_whole(DimensionwiseQuantizer, folder / "quantizer")
data = FreshTokens(Moments(folder / "moments"), quantizer)
trained = run(folder / sys.argv[2], data, dropout=0.1, epochs=10, precision=PRECISIONS[-1], optimizer="muon")
torch.save(trained.model.state_dict(), folder / f"{sys.argv[2]}.weights")
"""


@pytest.mark.pipeline
def test_killed_and_run_again_it_ends_with_the_same_bits(data: FreshTokens, tmp_path: Path) -> None:
    data.quantizer.save_pretrained(tmp_path / "quantizer")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    subprocess.run([*command, "whole"], check=True)
    killed = subprocess.Popen([*command, "killed"])
    while not list(tmp_path.glob("killed/checkpoints/step-*")):
        assert killed.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    time.sleep(0.3)  # some steps past a checkpoint
    killed.kill()
    assert killed.wait() == -9
    subprocess.run([*command, "killed"], check=True)
    whole, resumed = (torch.load(tmp_path / f"{name}.weights", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
