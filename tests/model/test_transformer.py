"""The masked spatial transformer: sizes of the paper, what each position may see, and where it can run."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_model import random_model, sizes_of, small_model
from tokenbridge.base.errors import UserError
from tokenbridge.base.loading import load_whole
from tokenbridge.config import LEVEL_HEADS
from tokenbridge.config.params import compose_config, validate
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.layers import gather
from tokenbridge.model.transformer import split_order

PUBLISHED = {"large": 486_889_472, "huge": 910_040_576}
IMAGENET = {"grid_height": 16, "grid_width": 16, "dimensions": 16, "levels": 64, "num_classes": 1000}
POSITIONS, MASKED = 16, 11
each_head = pytest.mark.parametrize(("head", "group"), [(kind, group) for kind in LEVEL_HEADS for group in (1, 2)])


def order(images: int) -> Tensor:
    return torch.rand(images, POSITIONS, generator=torch.Generator().manual_seed(0)).argsort(dim=1)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Arguments of ``forward`` for four images, the last without a class."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, POSITIONS, 4, generator=generator)
    tokens = torch.randint(8, (4, POSITIONS, 4), generator=generator)
    return values, tokens, torch.tensor([0, 1, 2, 3]), order(4), MASKED


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_parameters(name: str) -> None:
    sizes = sizes_of(validate(compose_config([f"model={name}"])).models[name])
    with torch.device("meta"):
        model = TokenBridgeTransformer(**IMAGENET, **sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@torch.no_grad()
def test_the_last_block_computes_the_wanted_positions_alone() -> None:
    model = random_model(decoder_depth=2)
    values, _, labels, reveal, count = batch()
    masked, visible = reveal[:, :count], reveal[:, count:]
    every = model.features(values, labels, visible)
    lengths: list[int] = []
    for block in model.decoder:
        block.mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    torch.testing.assert_close(model.features(values, labels, visible, masked), gather(every, masked))
    assert lengths == [model.buffer_size + POSITIONS, MASKED]


@torch.no_grad()
def test_visible_values_and_the_class_are_seen_and_masked_values_never(model: TokenBridgeTransformer) -> None:
    labels = torch.tensor([0, 2])
    masked, visible = split_order(order(2), MASKED)
    values = torch.randn(2, POSITIONS, 4)
    before = model.features(values, labels, visible)
    hidden = values.scatter(1, masked[..., None].expand(-1, -1, 4), 1e6)
    assert torch.equal(before, model.features(hidden, labels, visible))
    assert not torch.allclose(before, model.features(values + 1, labels, visible))
    assert not torch.allclose(before, model.features(values, torch.tensor([1, 1]), visible))
    assert not torch.allclose(before, model.features(values, torch.tensor([3, 3]), visible))  # 3: no class


@each_head
def test_a_fresh_model_predicts_from_the_condition_alone_and_near_uniformly(head: str, group: int) -> None:
    model = small_model(head=head, head_group=group)
    # adaLN-zero: the final scale and shift start at zero, so the logits start as a plain normalised projection
    assert abs(model(*batch()).item() - math.log(8)) < 1.0
    assert all(not block.modulation.weight.any() for block in model.head.blocks)


@each_head
def test_the_loss_is_in_nats_per_dimension(head: str, group: int) -> None:
    model = small_model(head=head, head_group=group)
    torch.nn.init.zeros_(model.head.output_weight)  # every joint class is then equally likely
    torch.testing.assert_close(model(*batch()), torch.tensor(math.log(8)))


@each_head
def test_every_parameter_learns(head: str, group: int) -> None:
    model = random_model(head=head, head_group=group)
    model(*batch()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@each_head
@torch.no_grad()
def test_it_is_saved_and_loaded_whole(head: str, group: int, tmp_path: Path) -> None:
    model = random_model(head=head, head_group=group)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_whole(TokenBridgeTransformer, tmp_path).eval()(*batch()), model(*batch()))


@each_head
@torch.no_grad()
def test_half_precision_is_near_full_precision(head: str, group: int) -> None:
    model = random_model(head=head, head_group=group)
    full = model(*batch())
    half = model.to(torch.bfloat16)
    assert half.features(batch()[0], batch()[2], order(4)).dtype == torch.bfloat16
    torch.testing.assert_close(half(*batch()), full, rtol=0.05, atol=0.05)
    tokens = half.head.sample(torch.randn(3, 32, dtype=torch.bfloat16), lambda logits, _: logits.argmax(-1))
    assert tokens.shape == (3, 4)


@pytest.mark.pipeline  # for its time alone
@each_head
def test_compiled_it_computes_the_same_loss_and_gradients(head: str, group: int) -> None:
    model, compiled = (random_model(head=head, head_group=group) for _ in range(2))
    loss = model(*batch())
    compiled_loss = torch.compile(compiled, backend="aot_eager", fullgraph=True)(*batch())
    torch.testing.assert_close(compiled_loss, loss)
    loss.backward()
    compiled_loss.backward()
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_its_features_compile_to_one_graph_whatever_the_number_of_visible_positions(
    model: TokenBridgeTransformer,
) -> None:
    features = torch.compile(model.features, backend="eager", fullgraph=True)
    values, _, labels, positions, _ = batch()
    for masked in (16, 11, 3):
        _, visible = split_order(positions, masked)
        torch.testing.assert_close(features(values, labels, visible), model.features(values, labels, visible))


@pytest.mark.pipeline  # for its time alone
@torch.no_grad()
def test_its_blocks_can_be_compiled_one_by_one_for_sampling(model: TokenBridgeTransformer) -> None:
    plain = random_model()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    values, _, labels, positions, _ = batch()
    _, visible = split_order(positions, MASKED)
    z = plain.features(values, labels, visible)
    torch.testing.assert_close(model.features(values, labels, visible), z)
    tokens = [m.head.sample(z.flatten(0, 1), lambda logits, _: logits.argmax(-1)) for m in (plain, model)]
    assert torch.equal(*tokens)


STARTS = {  # names of parameters -> mean and standard deviation at the start in the released code; None: Xavier's
    r"(?!.*output_bias)(.*norm\w*\.weight)": (1.0, 0.0),
    r".*bias|.*modulation\.weight": (0.0, 0.0),  # adaLN-zero
    r"class_embedding\.weight|no_class|mask_token|\w+_position|head\.(slot|modulation)_embedding": (0.0, 0.02),
    r"head\.level_embedding\.weight": (0.0, 1.0),  # torch's own; the released code leaves it alone
    r".*(in|condition|qkv|out|expand|contract)\.weight|head\.output_weight": (0.0, None),
}


@pytest.mark.parametrize("size", ["imagenet_l", "imagenet_h"])
def test_every_parameter_starts_as_in_the_released_code(size: str) -> None:
    (config,) = validate(compose_config([f"experiment={size}"])).models.values()
    small = replace(config, width=192, heads=3, head_width=128, encoder_depth=1, decoder_depth=1, head_depth=1)
    torch.manual_seed(0)
    kinds = set()
    for name, weight in TokenBridgeTransformer(**IMAGENET, **sizes_of(small)).named_parameters():
        (kind,) = (pattern for pattern in STARTS if re.fullmatch(pattern, name))
        kinds.add(kind)
        mean, std = STARTS[kind]
        if std is None:
            std = math.sqrt(2 / sum(weight.shape[-2:]))
            assert weight.abs().max() <= math.sqrt(3) * std  # of a uniform distribution
        error = 5 / math.sqrt(weight.numel())
        assert weight.mean().item() == pytest.approx(mean, abs=std * error), name
        assert weight.std(correction=0).item() == pytest.approx(std, rel=error), name
    assert kinds == set(STARTS)


def test_dropout_is_in_every_block_and_only_while_training() -> None:
    model = small_model(dropout=0.1)
    blocks = [*model.encoder, *model.decoder, *model.head.blocks]
    rates = [(b.attention.dropout, b.attention.out_dropout.p, b.mlp.dropout.p) for b in blocks]
    assert rates == [(0.1, 0.1, 0.1)] * len(blocks)
    torch.nn.init.normal_(model.head.output_weight)  # so that what the blocks do shows
    for block in model.head.blocks:
        torch.nn.init.normal_(block.modulation.weight)
    z, tokens = torch.randn(5, 32), torch.zeros(5, 4, dtype=torch.long)
    assert not torch.equal(model.head(z, tokens), model.head(z, tokens))
    model.eval()
    assert torch.equal(model.head(z, tokens), model.head(z, tokens))


def test_a_draft_changes_no_weight_of_a_fresh_model_and_is_saved_with_it(tmp_path: Path) -> None:
    plain, drafted = small_model(dropout=0.1), small_model(dropout=0.1, draft_depth=2)
    weights = drafted.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.state_dict().items())
    drafted.save_pretrained(tmp_path)
    loaded = load_whole(TokenBridgeTransformer, tmp_path).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in weights.items())


def test_the_draft_learns_its_own_cross_entropy_and_the_value_is_the_heads() -> None:
    model, plain = random_model(draft_depth=1).train(), random_model().train()
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if "draft." not in name})
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, (2, 16, 4), generator=random)
    inputs = tokens.float(), tokens, torch.tensor([0, 1]), torch.rand(2, 16, generator=random).argsort(1), 10
    loss, expected = model(*inputs), plain(*inputs)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(torch.equal(weight.grad, gradients[name]) for name, weight in plain.named_parameters())
    masked, visible = split_order(inputs[3], 10)
    z, known = model.features(inputs[0], inputs[2], visible, masked).detach(), gather(tokens, masked)
    logits = model.draft(z.flatten(0, 1), known.flatten(0, 1))
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), known.flatten())
    weights = list(model.draft.parameters())
    torch.testing.assert_close([weight.grad for weight in weights], list(torch.autograd.grad(own, weights)))


def test_a_draft_for_the_released_first_slot_is_refused() -> None:
    with pytest.raises(UserError, match="draft_depth is 1: a model with released_slot0 can have no draft"):
        small_model(draft_depth=1, released_slot0=True)
