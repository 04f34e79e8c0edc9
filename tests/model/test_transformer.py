"""The masked spatial transformer: sizes of the paper, and what each position may see."""

import math

import pytest
import torch

from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.model.transformer import split_order
from tokenbridge.params import compose_config, validate

PUBLISHED = {"large": 486_889_472, "huge": 910_040_576}
POSITIONS = 16


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_parameters(name: str) -> None:
    settings = vars(validate(compose_config([f"model={name}"])).models[name])
    with torch.device("meta"):
        model = TokenBridgeTransformer(
            grid_height=16,
            grid_width=16,
            dimensions=16,
            levels=64,
            num_classes=1000,
            **{key: value for key, value in settings.items() if key != "train"},
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def order(images: int) -> torch.Tensor:
    return torch.rand(images, POSITIONS, generator=torch.Generator().manual_seed(0)).argsort(dim=1)


@torch.no_grad()
def test_masked_values_are_never_seen(model: TokenBridgeTransformer) -> None:
    labels, masked_count = torch.tensor([0, 2]), 11
    masked, visible = split_order(order(2), masked_count)
    values = torch.randn(2, POSITIONS, 4)
    hidden = values.scatter(1, masked[..., None].expand(-1, -1, 4), 1e6)
    assert torch.equal(model.features(values, labels, visible), model.features(hidden, labels, visible))


@torch.no_grad()
def test_visible_values_and_the_class_are_seen(model: TokenBridgeTransformer) -> None:
    labels = torch.tensor([0, 2])
    _, visible = split_order(order(2), 11)
    values = torch.randn(2, POSITIONS, 4)
    before = model.features(values, labels, visible)
    assert not torch.allclose(before, model.features(values + 1, labels, visible))
    assert not torch.allclose(before, model.features(values, torch.tensor([1, 1]), visible))
    assert not torch.allclose(before, model.features(values, torch.tensor([3, 3]), visible))  # 3: no class


def test_a_fresh_model_predicts_from_the_condition_alone_and_near_uniformly() -> None:
    torch.manual_seed(0)
    model = TokenBridgeTransformer(
        grid_height=4,
        grid_width=4,
        dimensions=4,
        levels=8,
        num_classes=3,
        width=32,
        encoder_depth=1,
        decoder_depth=1,
        heads=2,
        head_width=32,
        head_depth=1,
        head_heads=2,
        buffer_size=2,
    )
    tokens = torch.randint(8, (4, POSITIONS, 4))
    # adaLN-zero: the final scale and shift start at zero, so the logits start as a plain normalised projection
    loss = model(torch.randn(4, POSITIONS, 4), tokens, torch.tensor([0, 1, 2, 3]), order(4), 12)
    assert abs(loss.item() - math.log(8)) < 1.0
    assert all(not block.modulation.weight.any() for block in model.head.blocks)
