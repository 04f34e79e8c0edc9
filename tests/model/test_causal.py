"""The causal trunk: what each place may see, and that a cache changes nothing."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_model import random_model, small_model
from tokenbridge.base.errors import UserError
from tokenbridge.model.causal import CausalTransformer, RasterTransformer, burst_mask
from tokenbridge.model.layers import gather
from tokenbridge.model.trunks import load_model

POSITIONS = 16
LABELS = torch.tensor([0, 2, 3])  # the last is no class


@pytest.fixture(scope="module")
def model() -> CausalTransformer:
    return random_model("causal_random")


@pytest.fixture(scope="module")
def values() -> Tensor:
    return torch.randn(3, POSITIONS, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def order() -> Tensor:
    """An order of reading for each image."""
    return torch.rand(3, POSITIONS, generator=torch.Generator().manual_seed(2)).argsort(dim=1)


@torch.no_grad()
def forced(model: CausalTransformer, values: Tensor, order: Tensor) -> Tensor:
    """Features [N, S, D] of every position in the order of reading, each from the true values before it."""
    return model.features(values, LABELS[: len(values)], order, order)


@torch.no_grad()
@pytest.mark.parametrize("counts", [[1] * 16, [1, 2, 3, 4, 6], [5, 1, 1, 9], [16]])
def test_cached_features_are_those_of_one_pass(
    model: CausalTransformer, values: Tensor, order: Tensor, counts: list[int]
) -> None:
    """The first query of each step is the position that one pass predicts next; the others need a pass of their own."""
    reader, known, teacher = model.reader(), 0, forced(model, values, order)
    for count in counts:
        read, wanted = order[:, :known], order[:, known : known + count]
        z = reader(values, LABELS, read, wanted)
        torch.testing.assert_close(z[:, 0], teacher[:, known], rtol=0, atol=1e-5)
        for query in range(1, count):  # as if it were next in the order
            others = torch.cat([read, wanted[:, query:], wanted[:, :query], order[:, known + count :]], dim=1)
            torch.testing.assert_close(z[:, query], forced(model, values, others)[:, known], rtol=0, atol=1e-5)
        known += count


@torch.no_grad()
def test_no_output_before_a_token_depends_on_it(model: CausalTransformer, values: Tensor, order: Tensor) -> None:
    before = forced(model, values, order)
    for place in (0, 7, 14):
        after = forced(model, values.scatter(1, order[:, place, None, None].expand(-1, 1, 4), 9.0), order)
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        assert not torch.isclose(after[:, place + 1], before[:, place + 1]).all()


@torch.no_grad()
def test_what_comes_later_in_the_order_changes_nothing(model: CausalTransformer, values: Tensor, order: Tensor) -> None:
    later = torch.cat([order[:, :8], order[:, 8:].flip(1)], dim=1)
    assert torch.equal(forced(model, values, later)[:, :7], forced(model, values, order)[:, :7])
    assert not torch.isclose(forced(model, values, later)[:, 8], forced(model, values, order)[:, 8]).all()


@torch.no_grad()
def test_the_class_and_every_earlier_token_are_seen(model: CausalTransformer, values: Tensor, order: Tensor) -> None:
    before = model.features(values, LABELS, order, order)
    assert not torch.isclose(model.features(values, LABELS.roll(1), order, order), before).all(dim=-1).any()
    for place in range(15):
        changed = values.scatter(1, order[:, place, None, None].expand(-1, 1, 4), 9.0)
        assert not torch.isclose(forced(model, changed, order)[:, 15], before[:, 15]).all()


@torch.no_grad()
def test_raster_order_is_the_identity_through_the_code_of_random_orders(values: Tensor) -> None:
    random, raster = random_model("causal_random"), random_model("causal_raster")
    identity = torch.arange(POSITIONS).expand(3, -1)
    tokens = torch.randint(8, (3, POSITIONS, 4), generator=torch.Generator().manual_seed(3))
    loss = random(values, tokens, LABELS, identity.flip(1), POSITIONS)
    for shuffled in (identity, identity.roll(5, dims=1)):  # whatever the batch's order is
        assert torch.equal(raster(values, tokens, LABELS, shuffled, POSITIONS), loss)


@torch.no_grad()
def test_known_positions_are_read_in_one_pass_or_one_by_one(
    model: CausalTransformer, values: Tensor, order: Tensor
) -> None:
    one_by_one = model.reader()
    for known in range(10):
        one_by_one(values, LABELS, order[:, :known], order[:, known : known + 1])
    steps, at_once = (reader(values, LABELS, order[:, :10], order[:, 10:13]) for reader in (one_by_one, model.reader()))
    torch.testing.assert_close(steps, at_once, rtol=0, atol=1e-5)


def test_queries_see_all_but_each_other() -> None:
    assert burst_mask(2, 3, 1, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5]
    assert burst_mask(1, 3, 2, torch.device("cpu")).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


def test_a_step_learns_every_position_and_every_parameter(values: Tensor, order: Tensor) -> None:
    model = random_model("causal_random")
    tokens = torch.randint(8, (3, POSITIONS, 4), generator=torch.Generator().manual_seed(3))
    loss = model(values, tokens, LABELS, order, POSITIONS)
    z, known = (each.flatten(0, 1) for each in (forced(model, values, order.flip(1)), gather(tokens, order.flip(1))))
    expected = torch.nn.functional.cross_entropy(model.head(z, known).flatten(0, 1), known.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_gradient_checkpointing_changes_no_gradient(values: Tensor, order: Tensor) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = random_model("causal_random")
        model.enable_gradient_checkpointing() if checkpointed else model.disable_gradient_checkpointing()
        model(values, torch.zeros(3, POSITIONS, 4, dtype=torch.long), LABELS, order, POSITIONS).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_it_has_the_blocks_of_encoder_and_decoder_and_starts_near_uniform(values: Tensor, order: Tensor) -> None:
    model = small_model("causal_random", encoder_depth=2, decoder_depth=3)
    assert (type(model), len(model.decoder)) == (CausalTransformer, 5)
    loss = model(values, torch.zeros(3, POSITIONS, 4, dtype=torch.long), LABELS, order, POSITIONS)
    assert abs(loss.item() - math.log(8)) < 1.0
    assert model.input_position.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
@pytest.mark.parametrize("kind", [CausalTransformer, RasterTransformer])
def test_it_is_saved_and_loaded_with_its_trunk(kind: type[CausalTransformer], values: Tensor, tmp_path: Path) -> None:
    model = random_model(kind.trunk)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is kind
    read = torch.arange(POSITIONS).expand(3, -1)
    assert torch.equal(loaded.features(values, LABELS, read, read), model.features(values, LABELS, read, read))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="holds a UNet2DModel, not a model of tokens"):
        load_model(tmp_path)


@torch.no_grad()
def test_half_precision_is_near_full_precision(values: Tensor, order: Tensor) -> None:
    model = random_model("causal_random")
    full = model.features(values, LABELS, order, order)
    half = model.to(torch.bfloat16).features(values, LABELS, order, order)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)
    z = model.reader()(values, LABELS, order[:, :3], order[:, 3:5])
    torch.testing.assert_close(z[:, 0], half[:, 3], rtol=0.1, atol=0.1)


def test_it_learns_four_images_by_heart_and_draws_them_again() -> None:
    """One image for each of three classes and one without a class, in random orders."""
    model = small_model("causal_random", grid_height=2, grid_width=2, head="parallel")
    tokens, labels = torch.randint(8, (4, 4, 4)), torch.arange(4)
    values = tokens / 4 - 0.875
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(values, tokens, labels, torch.rand(4, 4).argsort(dim=1), 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # guessing costs 2.08
    drawn, read, order = torch.zeros(4, 4, 4, dtype=torch.long), model.eval().reader(), torch.tensor([[2, 0, 3, 1]] * 4)
    with torch.no_grad():
        for place in range(4):
            wanted = order[:, place : place + 1]
            z = read(drawn / 4 - 0.875, labels, order[:, :place], wanted)[:, 0]
            token = model.head.sample(z, lambda logits, _: logits.argmax(-1))
            drawn.scatter_(1, wanted[..., None].expand(-1, -1, 4), token[:, None])
    assert torch.equal(drawn, tokens)
