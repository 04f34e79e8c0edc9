"""The head: what a slot may see, of one dimension or of a group, and that sampling computes what training did."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_model import random_model
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json
from tokenbridge.base.loading import load_whole
from tokenbridge.config import HEAD_MODULATIONS, LEVEL_HEADS
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.head import DimensionHead

DIMENSIONS, LEVELS = 4, 8
each_head = pytest.mark.parametrize(
    "head",
    [
        pytest.param((kind, group, modulation), id=f"{kind}-{group}-{modulation}")
        for kind in LEVEL_HEADS
        for group in (1, 2, DIMENSIONS)
        for modulation in HEAD_MODULATIONS
    ],
    indirect=True,
)


@pytest.fixture
def head(request: pytest.FixtureRequest) -> DimensionHead:
    kind, group, modulation = request.param
    return random_model(head=kind, head_group=group, head_modulation=modulation).head


def features(count: int) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(3))


def every_pair() -> Tensor:
    """All tokens [B * B, 2] of two dimensions, the first dimension's level counting slowly."""
    return torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))


@each_head
@torch.no_grad()
def test_sampling_sees_the_teacher_forced_logits(head: DimensionHead) -> None:
    z, seen = features(5), []

    def choose(logits: Tensor, slot: int) -> Tensor:
        seen.append(logits)
        return (logits.argmax(-1) + slot + 1) % head.classes  # any choice will do; not the likeliest

    tokens = head.sample(z, choose)
    assert tokens.shape == (5, DIMENSIONS)
    assert 0 <= tokens.min() <= tokens.max() < LEVELS
    torch.testing.assert_close(torch.stack(seen, dim=1), head(z, tokens), atol=1e-5, rtol=1e-5)


@each_head
@torch.no_grad()
def test_an_autoregressive_slot_sees_the_slots_before_it_and_a_parallel_one_none(head: DimensionHead) -> None:
    z, tokens = features(2), torch.zeros(2, DIMENSIONS, dtype=torch.long)
    before = head(z, tokens)
    for changed in range(DIMENSIONS):
        other = tokens.clone()
        other[:, changed] = 5
        moved = (head(z, other) - before).abs().amax(dim=(0, 2)) > 1e-6
        own_slot = changed // head.group
        assert moved.tolist() == [head.autoregressive and slot > own_slot for slot in range(head.slots)]


@each_head
@torch.no_grad()
def test_a_position_sees_only_its_own_features(head: DimensionHead) -> None:
    z, tokens = features(3), torch.zeros(3, DIMENSIONS, dtype=torch.long)
    other = z.clone()
    other[1] += 1
    moved = (head(other, tokens) - head(z, tokens)).abs().amax(dim=(1, 2)) > 1e-6
    assert moved.tolist() == [False, True, False]


@torch.no_grad()
def test_parallel_slots_differ_in_what_they_predict() -> None:
    logits = random_model(head="parallel").head(features(1), torch.zeros(1, DIMENSIONS, dtype=torch.long))[0]
    assert torch.pdist(logits).min() > 0.1


@each_head
def test_joint_classes_are_whole_tokens(head: DimensionHead) -> None:
    tokens = torch.randint(LEVELS, (2, 5, DIMENSIONS), generator=torch.Generator().manual_seed(0))
    joint = head.join(tokens)
    assert joint.shape == (2, 5, DIMENSIONS // head.group)
    assert 0 <= joint.min() <= joint.max() < head.classes == LEVELS**head.group
    assert torch.equal(head.split(joint), tokens)


def test_the_first_dimension_of_a_group_is_its_most_significant_digit() -> None:
    head = random_model(head_group=2).head
    assert head.join(torch.tensor([1, 2, 7, 0])).tolist() == [1 * LEVELS + 2, 7 * LEVELS]
    assert head.split(torch.tensor([10, 56])).tolist() == [1, 2, 7, 0]
    pairs = every_pair().repeat(1, 2)  # the same in both groups
    assert torch.equal(head.join(pairs)[:, 0], torch.arange(LEVELS**2))


@pytest.mark.parametrize("kind", LEVEL_HEADS)
@torch.no_grad()
def test_the_probabilities_of_all_pairs_of_levels_sum_to_one(kind: str) -> None:
    """Over the second group, given the first: the joint probability of two dimensions, level by level."""
    head = random_model(head=kind, head_group=2).head
    tokens = torch.cat([torch.tensor([3, 1]).expand(LEVELS**2, -1), every_pair()], dim=1)
    log_probabilities = head(features(1).expand(LEVELS**2, -1), tokens)[:, 1].log_softmax(-1)
    of_each_pair = log_probabilities.gather(1, head.join(tokens)[:, 1:]).exp().view(LEVELS, LEVELS)
    torch.testing.assert_close(of_each_pair.sum(), torch.tensor(1.0))
    first_level = log_probabilities[0].exp().view(LEVELS, LEVELS).sum(1)  # by the order of digits
    torch.testing.assert_close(of_each_pair.sum(1), first_level)


def test_the_parallel_head_has_the_same_parameters_but_for_the_embeddings_of_levels() -> None:
    both = {kind: dict(random_model(head=kind).head.named_parameters()) for kind in LEVEL_HEADS}
    assert both["autoregressive"].keys() - both["parallel"].keys() == {"level_embedding.weight"}
    assert all(both["autoregressive"][name].shape == weight.shape for name, weight in both["parallel"].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "diagonal"}, "head is 'diagonal': choose one of autoregressive, parallel"),
        ({"head_group": 3}, "head_group is 3: it must divide the 4 dimensions"),
        ({"head_group": 0}, "head_group is 0"),
        ({"head_modulation": "image"}, "head_modulation is 'image': choose one of slot, position"),
        ({"head_modulation": "position", "released_slot0": True}, "released_slot0 needs slot"),
    ],
)
def test_a_head_that_cannot_be_made_says_why(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_model(**changes)


@torch.no_grad()
def test_modulation_once_per_position_is_that_per_slot_without_its_embedding() -> None:
    of_slots, of_position = (random_model(head_modulation=each) for each in HEAD_MODULATIONS)
    weights = of_slots.state_dict()
    weights.pop("head.modulation_embedding")
    of_position.load_state_dict(weights)
    of_slots.head.modulation_embedding.zero_()
    z, tokens = features(50), torch.randint(LEVELS, (50, DIMENSIONS), generator=torch.Generator().manual_seed(0))
    rows = []
    of_position.head.blocks[0].modulation.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    torch.testing.assert_close(of_position.head(z, tokens), of_slots.head(z, tokens), atol=1e-5, rtol=1e-5)
    assert rows == [1]


@pytest.mark.parametrize("released_slot0", [True, False])
@torch.no_grad()
def test_slot_0_is_sampled_as_trained_or_as_the_released_sampler_does(released_slot0: bool, tmp_path: Path) -> None:
    """Against the released sampler written plainly: it computes the whole prefix again for every slot."""
    random_model(released_slot0=released_slot0).save_pretrained(tmp_path)
    head = load_whole(TokenBridgeTransformer, tmp_path).head
    assert head.modulation_embedding[:, 0].abs().max() > 0.1
    z, seen = features(50), []
    c = head.condition(z)[:, None]
    modulated = c + head.modulation_embedding
    inputs, expected = [modulated[:, :1] if released_slot0 else c], []
    for slot in range(DIMENSIONS):
        x = torch.cat(inputs, dim=1) + head.slot_embedding[:, : slot + 1]
        for block in head.blocks:
            x = block(x, torch.nn.functional.silu(modulated[:, : slot + 1]))
        scale, shift = head.final_modulation(torch.nn.functional.silu(modulated[:, slot])).chunk(2, dim=-1)
        x = head.final_norm(head.norm(x[:, -1])) * (1 + scale) + shift
        expected.append(x @ head.output_weight[slot].T + head.output_bias[slot])
        table = head.level_embedding.weight[slot * LEVELS : (slot + 1) * LEVELS]
        inputs.append(table[expected[-1].argmax(-1)][:, None] if slot < DIMENSIONS - 1 else x)

    def choose(logits: Tensor, _: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    head.sample(z, choose)
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_model_saved_before_the_setting_existed_samples_as_trained(tmp_path: Path) -> None:
    random_model(released_slot0=True).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert config.pop("released_slot0")
    write_json(tmp_path / "config.json", config)
    assert not load_whole(TokenBridgeTransformer, tmp_path).head.released_slot0


@torch.no_grad()
def test_sampling_keeps_its_cache_short(model: TokenBridgeTransformer) -> None:
    """Every step works on one slot alone; a prefix computed again would show as longer inputs."""
    lengths: list[int] = []
    block = model.head.blocks[0]
    handle = block.attention.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model.head.sample(features(2), lambda logits, _: logits.argmax(-1))
    handle.remove()
    assert lengths == [1] * DIMENSIONS
