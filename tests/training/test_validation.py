"""The validation loss: a function of the weights and the validation images alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.checkout import CHECKOUT
from tests.support.small_data import store_tokens
from tests.support.small_model import Silent, random_model
from tests.training.conftest import run
from tokenbridge.base.checks import FP32
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes
from tokenbridge.base.files import read_json
from tokenbridge.base.slices import VALUES, images_at_once
from tokenbridge.config.params import compose_config, validate
from tokenbridge.ops.planning.sizes import meta_model, step_inputs
from tokenbridge.ops.planning.steps import GpuNumerics, HeldBytes
from tokenbridge.training import validation
from tokenbridge.training.batches import batch_loss
from tokenbridge.training.datasets import FreshTokens
from tokenbridge.training.validation import BATCHES, MAX_IMAGES, Validation, held_values


class Artifacts(Silent):
    """A sink that keeps the names of artifacts, too."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[tuple[str, str]] = []

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.files.append((folder, path.name))


def draw_grid(_: Any) -> Image.Image:
    return Image.new("RGB", (8, 8))


class OneOf(Processes):
    """A process that leaves the sum over processes to the test."""

    def total(self, value: Tensor) -> Tensor:
        return value


@pytest.mark.parametrize("memory", [2**30, 1])
@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_processes_add_up_to_the_loss_of_one(
    data: FreshTokens, world: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    alone = Validation(data, data.quantizer, SINGLE_PROCESS).loss(model)
    monkeypatch.setattr("tokenbridge.base.slices.VALUES", memory)
    sizes: list[int] = []
    model.head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    shares = [Validation(data, data.quantizer, OneOf(rank, world)).loss(model) for rank in range(world)]
    parts = [-(-len(range(number, 64, BATCHES)) // world) if memory == 1 else 1 for number in range(BATCHES)]
    assert len(sizes) == world * sum(parts)  # as often in every process, because FSDP needs all of them
    assert sum(shares) == pytest.approx(alone, rel=1e-5)
    assert (0.0 in shares) == (world == 40)  # batches have 6 or 7 images: some of so many processes have none


@pytest.mark.parametrize("change", ["head=autoregressive", "head=parallel", "head_group=2"])
def test_as_many_images_at_once_as_fit_into_the_memory(change: str) -> None:
    """100 images of L at once took 32 GiB."""
    config = validate(compose_config(["experiment=imagenet_l", f"models.large.{change}"], CHECKOUT / "conf"))
    model = meta_model(config, replace(config.models["large"], encoder_depth=1, decoder_depth=1, head_depth=1)).eval()
    model.head.loss_by_parts = False  # as with FSDP; otherwise the head needs less
    count = images_at_once(held_values(model), 100)
    with torch.no_grad(), GpuNumerics(FP32), HeldBytes() as held:
        model(*step_inputs(model, count), model.positions)
    assert 0.6 * 4 * VALUES < held.most < 1.1 * 4 * VALUES


def test_it_is_the_mean_over_images_each_seen_once_with_its_class_and_masks_from_few_to_many(data: FreshTokens) -> None:
    model, measured = random_model(), Validation(data, data.quantizer, SINGLE_PROCESS)
    batches = [measured.batch(number, slice(None), model) for number in range(BATCHES)]
    assert sum(len(batch.labels) for batch in batches) == len(data)
    assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == data.labels.bincount().tolist()
    assert [int(batch.num_masked[0]) for batch in batches] == [1, 3, 4, 6, 8, 9, 11, 12, 14, 16]
    summed = sum(float(batch_loss(model, data.quantizer, batch)) * len(batch.labels) for batch in batches)
    assert measured.loss(model) == pytest.approx(summed / len(data), rel=1e-6)


def test_of_many_images_some_are_taken_from_all_over(data: FreshTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_IMAGES >= 100
    monkeypatch.setattr(validation, "MAX_IMAGES", 16)
    seen: list[int] = []
    draw = data.draw
    monkeypatch.setattr(data, "draw", lambda indices, *rest: seen.extend(indices.tolist()) or draw(indices, *rest))
    Validation(data, data.quantizer, SINGLE_PROCESS).loss(random_model())
    assert sorted(seen) == list(range(0, 64, 4))


def test_being_evaluated_changes_nothing_of_a_training(data: FreshTokens, tmp_path: Path) -> None:
    seldom = run(tmp_path / "seldom", data, evaluations=1, dropout=0.1)
    often = run(tmp_path / "often", data, evaluations=8, dropout=0.1, draw_grid=draw_grid)
    assert seldom.history == often.history
    assert seldom.evaluations == often.evaluations[-1:]
    assert all(torch.equal(a, b) for a, b in zip(seldom.model.parameters(), often.model.parameters(), strict=True))
    measured = Validation(data, data.quantizer, SINGLE_PROCESS).loss(often.model)
    assert often.evaluations[-1]["validation_loss"] == measured


def test_no_recipe_changes_what_is_measured(data: FreshTokens, tmp_path: Path) -> None:
    """A learning rate of nearly 0 leaves all of them the same model."""
    stored = store_tokens(tmp_path, data.moments, data.quantizer)
    same: dict[str, Any] = {"learning_rate": 1e-30, "weight_decay": 0.0, "evaluations": 1}
    trainings = [
        run(tmp_path / "a", data, **same),
        run(tmp_path / "b", data, **same, batch_size=16, mask_ratio_min=0.1, label_dropout=0.5, head_share=0.5),
        run(tmp_path / "c", data, **same, trained_on=stored),
    ]
    losses = {trained.evaluations[-1]["validation_loss"] for trained in trainings}
    assert len(losses) == 1


def test_it_is_logged_and_kept_in_the_checkpoint(data: FreshTokens, tmp_path: Path) -> None:
    tracker = Artifacts()
    trained = run(tmp_path / "run", data, tracker=tracker, evaluations=2, draw_grid=draw_grid)
    rows = [(step, values["validation_loss"]) for step, values in tracker.rows if "validation_loss" in values]
    assert rows == [(row["step"], row["validation_loss"]) for row in trained.evaluations]
    assert [step for step, _ in rows] == [4, 8]
    assert tracker.files == [("samples", "step-00000004.png"), ("samples", "step-00000008.png")]
    progress = read_json(tmp_path / "run/checkpoints/step-00000008/progress.json")["progress"]
    assert progress["evaluations"] == trained.evaluations
    assert run(tmp_path / "run", data, evaluations=2).evaluations == trained.evaluations  # taken from there
