"""Training of the autoregressive model on moments."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import LAUNCHER, RECIPE, Silent
from tokenbridge.config import ModelConfig
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.moments import Moments, shard_name, write_manifest
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.training import draw_batch, num_masked_positions, train

CPU = torch.device("cpu")
MODEL = ModelConfig(
    width=32,
    encoder_depth=1,
    decoder_depth=1,
    heads=2,
    head_width=32,
    head_depth=1,
    head_heads=2,
    buffer_size=2,
    dropout=0.1,
    train=RECIPE,
)


def write_moments(folder: Path, vae_latents: torch.Tensor) -> Moments:
    """Two shards and two flips, of means ``vae_latents`` and little variance."""
    folder.mkdir()
    moments = torch.cat([vae_latents, torch.full_like(vae_latents, -6.0)], dim=1)
    both = torch.stack([moments, moments.flip(-1)], dim=1).half().numpy()
    for index, part in enumerate(np.split(both, 2)):
        np.save(folder / shard_name(index), part)
    write_manifest(folder, np.arange(len(both)) % 3, shards=2, num_classes=3)
    return Moments(folder)


@pytest.fixture
def moments(tmp_path: Path, vae_latents: torch.Tensor) -> Moments:
    return write_moments(tmp_path / "moments", vae_latents)


def run(
    config: ModelConfig, moments: Moments, quantizer: DimensionwiseQuantizer, checkpoint: Path
) -> tuple[TokenBridgeTransformer, list[float]]:
    model, history = train(
        config,
        moments,
        quantizer,
        seed=0,
        checkpoint=checkpoint,
        launcher=LAUNCHER,
        tracker=Silent(),
        device=CPU,
    )
    return model, [row["loss"] for row in history]


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


def test_a_batch_is_a_function_of_the_seed(moments: Moments, quantizer: DimensionwiseQuantizer) -> None:
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(draw_batch(moments, quantizer, torch.arange(8), RECIPE, CPU))
    assert torch.equal(batches[0].latents, batches[1].latents)
    assert torch.equal(batches[0].order, batches[1].order)


def test_labels_are_dropped_at_their_rate(moments: Moments, quantizer: DimensionwiseQuantizer) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, label_dropout=0.25)
    labels = torch.cat([draw_batch(moments, quantizer, torch.arange(64), recipe, CPU).labels for _ in range(50)])
    assert (labels == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_it_learns(moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path) -> None:
    config = replace(MODEL, dropout=0.0, train=replace(RECIPE, epochs=30))
    _, losses = run(config, moments, quantizer, tmp_path / "checkpoint.pt")
    assert sum(losses[-20:]) / 20 < losses[0] - 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(
    moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path, precision: str
) -> None:
    config = replace(MODEL, train=replace(RECIPE, precision=precision))
    first, second = (run(config, moments, quantizer, tmp_path / f"{i}.pt")[0] for i in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


KILLED = """
import sys
from pathlib import Path
import torch
from tests import conftest
from tests.test_training import MODEL, RECIPE, run
from tokenbridge.moments import Moments
from tokenbridge.loading import load_whole
from tokenbridge.quantizer import DimensionwiseQuantizer
from dataclasses import replace
folder = Path(sys.argv[1])
quantizer = load_whole(DimensionwiseQuantizer, folder / "quantizer")
config = replace(MODEL, train=replace(RECIPE, epochs=40, precision="bf16", optimizer="muon"))
model, _ = run(config, Moments(folder / "moments"), quantizer, folder / sys.argv[2])
torch.save(model.state_dict(), folder / f"{sys.argv[2]}.weights")
"""


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bits(
    moments: Moments, quantizer: DimensionwiseQuantizer, tmp_path: Path
) -> None:
    quantizer.save_pretrained(tmp_path / "quantizer")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    subprocess.run([*command, "whole"], check=True)
    killed = subprocess.Popen([*command, "killed"])
    while not (tmp_path / "killed").exists():
        assert killed.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    time.sleep(0.3)  # some steps past a checkpoint
    killed.kill()
    assert killed.wait() == -9
    subprocess.run([*command, "killed"], check=True)
    whole, resumed = (torch.load(tmp_path / f"{name}.weights", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
