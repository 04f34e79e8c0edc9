"""Speculative sampling has the head's distribution, whatever the draft, in as many passes as the formula says."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from tests.sampling.test_sampler import Types
from tests.support.small_model import random_model
from tokenbridge.base.device import widest_float
from tokenbridge.base.seeding import generator
from tokenbridge.config.model import LEVEL_HEADS, REVEAL_ORDERS, SamplingSettings
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.head import DimensionHead
from tokenbridge.ops.planning.steps import HeldBytes
from tokenbridge.sampling import sampler as sampling
from tokenbridge.sampling.sampler import Draws, choose_levels, level_probabilities, sample_tokens
from tokenbridge.sampling.speculative import UNIFORMS, sample_speculatively
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

TOKENS = 200_000
SLOTS, LEVELS, FEATURES = 3, 4, 8
SETTINGS = SamplingSettings(steps=6, guidance_scale=2.0, top_p=0.9, speculative=True)
LABELS = torch.tensor([0, 2, 1])


def random_head(kind: str, seed: int, group: int = 1, spread: float = 0.5) -> DimensionHead:
    torch.manual_seed(seed)
    sizes = {"features": FEATURES, "width": 8, "depth": 1, "heads": 2}
    head = DimensionHead(kind=kind, group=group, dimensions=group * SLOTS, levels=LEVELS, **sizes)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=spread)
    return head.eval().requires_grad_(False)


class Tabled:
    """A head at one position's features. All its logits are computed once, so that many tokens are soon drawn."""

    def __init__(self, head: DimensionHead, z: Tensor) -> None:
        self.slots, self.split, self.join = head.slots, head.split, head.join
        self.everything = torch.tensor(list(itertools.product(range(head.classes), repeat=head.slots)))
        self.places = head.classes ** torch.arange(head.slots).flip(0)
        self.logits = head(z.expand(len(self.everything), -1), head.split(self.everything))
        self.rows = 0

    def number(self, tokens: Tensor) -> Tensor:
        """The row of ``everything`` that each of the tokens [M, C] is."""
        return (self.join(tokens) * self.places).sum(-1)

    def __call__(self, z: Tensor, tokens: Tensor) -> Tensor:
        self.rows += len(z)
        return self.logits[self.number(tokens)] if len(tokens) else self.logits[:1].expand(len(z), -1, -1)


class Drawn:
    """Tokens of one position's features, drawn speculatively ``TOKENS`` times, and the head's passes for a token."""

    def __init__(
        self, head: DimensionHead, draft: DimensionHead, seed: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(1, FEATURES, generator=random)
        self.uniforms = torch.rand(TOKENS, UNIFORMS, SLOTS, generator=random)
        self.law = partial(level_probabilities, temperature=temperature, top_p=top_p)
        self.head, self.draft = Tabled(head, z), Tabled(draft, z)
        many = z.expand(TOKENS, -1)
        self.tokens = sample_speculatively(self.head, self.draft, many, self.uniforms, self.law)
        self.passes = self.head.rows / TOKENS

    def conditionals(self) -> tuple[Tensor, Tensor, Tensor]:
        """The probability of each token, and p and q [A, G, J] of each slot given the slots before it."""
        p, q = (each / each.sum(-1, keepdim=True) for each in map(self.law, (self.head.logits, self.draft.logits)))
        return p.gather(-1, self.head.everything[..., None])[..., 0].prod(-1), p, q

    def p_value(self) -> float:
        """Of the chi-square test that the tokens have the head's distribution."""
        expected = TOKENS * self.conditionals()[0]
        counts = self.head.number(self.tokens).bincount(minlength=len(expected))
        assert not counts[expected == 0].any()
        likely = expected > 5  # the rest count as one cell
        observed, wanted = (torch.cat([x[likely], x[~likely].sum()[None]]) for x in (counts, expected))
        cells = wanted > 0
        statistic = ((observed - wanted)[cells] ** 2 / wanted[cells]).sum()
        return float(chi2.sf(statistic, int(cells.sum()) - 1))

    def expected_passes(self) -> float:
        """1 + the sum over slots but the last of the mean total variation between p and q."""
        law, p, q = self.conditionals()
        variation = (p - q).abs().sum(-1) / 2
        return 1 + float((law[:, None] * variation)[:, :-1].sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_distribution_is_the_heads_whatever_the_draft(seed: int) -> None:
    drawn = Drawn(random_head("autoregressive", seed), random_head("parallel", 100 + seed), seed)
    assert drawn.p_value() > 0.001
    assert drawn.passes == pytest.approx(drawn.expected_passes(), rel=0.01)
    assert 1.3 < drawn.passes < SLOTS  # the draft is wrong


@pytest.mark.parametrize(("temperature", "top_p", "group"), [(0.6, 1.0, 1), (1.3, 0.7, 1), (0.8, 0.9, 2)])
def test_temperature_top_p_and_groups_keep_it(temperature: float, top_p: float, group: int) -> None:
    heads = (random_head(kind, 7, group, spread=0.4) for kind in LEVEL_HEADS)
    drawn = Drawn(*heads, 7, temperature, top_p)
    assert drawn.p_value() > 0.001
    assert drawn.passes == pytest.approx(drawn.expected_passes(), rel=0.01)


def with_bias(head: DimensionHead, bias: Tensor) -> DimensionHead:
    """The head with the same logits for every slot and input."""
    head.output_weight.data.zero_()
    head.output_bias.data.copy_(bias)
    return head


def test_a_perfect_draft_takes_one_pass_and_gives_the_tokens_of_plain_sampling() -> None:
    bias = torch.tensor([0.3, -1.0, 0.0, 0.7])
    head, draft = (with_bias(random_head(kind, 0), bias) for kind in LEVEL_HEADS)
    drawn = Drawn(head, draft, 0)
    assert drawn.passes == 1
    plain = choose_levels(bias.expand(TOKENS * SLOTS, -1), drawn.uniforms[:, 0].flatten(), 1.0)
    assert torch.equal(drawn.tokens.flatten(), plain)


def test_a_draft_that_is_never_right_takes_a_pass_for_each_slot() -> None:
    low, high = torch.tensor([0.0, 1.0, -math.inf, -math.inf]), torch.tensor([-math.inf, -math.inf, 0.0, 0.0])
    drawn = Drawn(with_bias(random_head("autoregressive", 0), low), with_bias(random_head("parallel", 0), high), 0)
    assert drawn.passes == SLOTS
    assert drawn.p_value() > 0.001


@pytest.fixture
def drafted() -> TokenBridgeTransformer:
    return random_model(draft_depth=1)


def draw(indices: list[int], speculative: bool = True) -> Draws:
    return Draws.from_generators([generator(0, "sample", i) for i in indices], 16, 4, speculative)


def test_the_uniforms_of_a_seed_stay() -> None:
    plain, speculative = draw([0, 1], speculative=False), draw([0, 1])
    assert torch.equal(plain.order, speculative.order)
    assert torch.equal(plain.uniforms, speculative.uniforms[..., :4])
    assert speculative.uniforms.flatten().unique().numel() == speculative.uniforms.numel()


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_an_image_does_not_depend_on_its_batch(
    drafted: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, order=order)
    together = sample_tokens(drafted, quantizer, LABELS, draw([0, 1, 2]), settings)
    alone = [sample_tokens(drafted, quantizer, LABELS[i : i + 1], draw([i]), settings) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    monkeypatch.setattr(sampling, "positions_at_once", lambda _: 5)
    assert torch.equal(together, sample_tokens(drafted, quantizer, LABELS, draw([0, 1, 2]), settings))


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_the_likeliest_levels_are_those_of_plain_sampling(
    drafted: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, order: str
) -> None:
    """With temperature 0 nothing is random, so also the confidence must be the same."""
    settings = SamplingSettings(6, 2.0, temperature=0, order=order)
    plain = sample_tokens(drafted, quantizer, LABELS, draw([0, 1, 2], speculative=False), settings)
    speculative = sample_tokens(drafted, quantizer, LABELS, draw([0, 1, 2]), replace(settings, speculative=True))
    assert torch.equal(plain, speculative)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_no_float64_on_apples_gpus(
    drafted: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("tokenbridge.sampling.sampler.widest_float", lambda _: widest_float(torch.device(device)))
    with Types() as types:
        sample_tokens(drafted, quantizer, LABELS, draw([0, 1, 2]), SETTINGS)
    assert (torch.float64 in types.made) is (device == "cpu")


@pytest.mark.parametrize("levels", [8, 256])
def test_the_memory_is_bounded_whatever_is_drawn_at_once(
    quantizer: DimensionwiseQuantizer, monkeypatch: pytest.MonkeyPatch, levels: int
) -> None:
    model = random_model(draft_depth=2, levels=levels)
    monkeypatch.setattr(sampling, "MAX_BYTES", 2**20)
    rows = sampling.positions_at_once(model.head)
    z, uniforms = torch.randn(rows, 32), torch.rand(rows, UNIFORMS, 4)
    law = partial(level_probabilities, temperature=1.0, top_p=0.9)
    with torch.no_grad(), HeldBytes() as held:
        sample_speculatively(model.head, model.draft, z, uniforms, law)
    assert held.most < 1.15 * sampling.MAX_BYTES


def test_a_model_without_a_draft_is_refused(model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer) -> None:
    with pytest.raises(ValueError, match="this model has no draft: set speculative=false"):
        sample_tokens(model, quantizer, LABELS, draw([0, 1, 2]), SETTINGS)
