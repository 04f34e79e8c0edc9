"""Training of the autoregressive model on tokens."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.small_data import store_tokens
from tests.support.small_model import LAUNCHER, MODEL, PRECISIONS, QUANTIZER, RECIPE, SHAPE
from tests.training.conftest import run
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.seeding import generator
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training import trainer as training
from tokenbridge.training.batches import batch_loss, draw_batch
from tokenbridge.training.datasets import FreshTokens, TrainingData
from tokenbridge.training.trainer import Trained, Trainer, build_model

SELDOM = replace(LAUNCHER, checkpoint_seconds=60)


def losses(trained: Trained) -> list[float]:
    return [row["loss"] for row in trained.history]


def test_the_model_takes_its_shapes_from_data_and_quantizer(data: FreshTokens, vae_latents: torch.Tensor) -> None:
    config = build_model(MODEL, data, data.quantizer).config
    assert {name: config[name] for name in SHAPE} == SHAPE
    assert not config.released_slot0
    patches = FreshTokens(data.moments, fit_quantizer(vae_latents, replace(QUANTIZER, patch_size=2)))
    config = build_model(MODEL, patches, patches.quantizer).config
    assert (config.grid_height, config.grid_width, config.dimensions) == (2, 2, 16)


@pytest.mark.pipeline  # for its time alone
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_draft_learns_beside_the_model_and_changes_none_of_its_bits(
    data: FreshTokens, tmp_path: Path, optimizer: str
) -> None:
    """With dropout, several parts of a batch, and a gradient that is clipped at each step."""
    launcher = replace(LAUNCHER, accumulation=2)

    def trained(draft_depth: int | None, name: str) -> tuple[Trainer, list[float]]:
        recipe = replace(RECIPE, optimizer=optimizer, epochs=10, clip_norm=0.1, mask_group_size=4)
        config = replace(MODEL, dropout=0.1, draft_depth=draft_depth, train=recipe)
        one = Trainer(config, data, data.quantizer, tmp_path / name, launcher, torch.device("cpu"), SINGLE_PROCESS)
        return one, [float(one.step(step)["loss"]) for step in range(8)]

    (plain, losses), (drafted, same) = trained(None, "plain"), trained(2, "drafted")
    assert losses == same
    beside = drafted.model.state_dict()
    assert all(torch.equal(weight, beside[name]) for name, weight in plain.model.state_dict().items())
    averages = drafted.ema.averages
    assert all(torch.equal(average, averages[name]) for name, average in plain.ema.averages.items())
    start = build_model(replace(MODEL, draft_depth=2), data, data.quantizer).draft
    assert all(not torch.equal(a, b) for a, b in zip(start.parameters(), drafted.model.draft.parameters(), strict=True))


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
from tests.support.small_model import PRECISIONS
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


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 2), (4, 1), (8, 1)])
def test_groups_apart_give_the_gradient_of_the_mean_of_their_means(
    data: FreshTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, accumulation: int
) -> None:
    """As DDP does with a group on each process, for any number of processes and parts."""
    recipe = replace(RECIPE, batch_size=16, mask_group_size=4, mask_ratio_min=0.1)
    launcher = replace(LAUNCHER, accumulation=accumulation)
    monkeypatch.setattr(training, "distribute", lambda model, *_: model)  # the test takes the mean over processes

    def trainer(rank: int) -> Trainer:
        config = replace(MODEL, train=recipe)
        return Trainer(config, data, data.quantizer, tmp_path, launcher, torch.device("cpu"), Processes(rank, world))

    def gradient(model: torch.nn.Module) -> torch.Tensor:
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    trainers = [trainer(rank) for rank in range(world)]
    losses = [each.accumulate_gradients(each.draw(0)) for each in trainers]
    one = trainer(0)
    groups = draw_batch(data, one.order.indices(0), recipe, generator(0, "train", 0), one.model).split([4] * 4)
    assert len({int(group.num_masked[0]) for group in groups}) > 1
    expected = torch.stack([batch_loss(one.model, data.quantizer, group) for group in groups]).mean()
    expected.backward()
    torch.testing.assert_close(torch.stack(losses).mean(), expected.detach())
    together = torch.stack([gradient(each.model) for each in trainers]).mean(0)
    torch.testing.assert_close(together, gradient(one.model), atol=1e-6, rtol=1e-4)
