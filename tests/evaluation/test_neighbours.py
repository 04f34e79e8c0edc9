"""Nearest training images: found in any parts, and a model that copies them shows in the numbers."""

import pytest
import torch

from tokenbridge.evaluation import neighbours
from tokenbridge.evaluation.neighbours import memorisation, nearest


@pytest.mark.parametrize("size", [1, 7, 40])
def test_parts_and_blocks_do_not_change_what_is_found(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "QUERIES", 4)
    random = torch.Generator().manual_seed(0)
    queries, searched = (torch.randn(count, 6, generator=random) for count in (10, 40))
    distances, indices = nearest(queries, searched.split(size), 3, torch.device("cpu"))
    expected = torch.cdist(queries, searched).topk(3, largest=False)
    torch.testing.assert_close(distances, expected.values)
    assert torch.equal(indices, expected.indices)


def test_copies_of_training_images_are_counted() -> None:
    random = torch.Generator().manual_seed(0)
    train, honest, test = (torch.randn(count, 20, generator=random) for count in (300, 500, 500))
    copies = torch.cat([train[:100] + 0.01, honest[100:]])
    found = []
    for samples in (honest, copies):
        distances, _ = nearest(torch.cat([samples, test]), [train], 1, torch.device("cpu"))
        found.append(memorisation(distances[:500, 0], distances[500:, 0]))
    assert found[0]["memorised"] < 0.03
    assert found[1]["memorised"] == pytest.approx(0.2, abs=0.03)
    assert found[0]["nearest_train"] == pytest.approx(found[0]["test_nearest_train"], rel=0.05)
