"""The benchmark suite: its plain baseline gives what ours gives, and its results become a table and a picture."""

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.arithmetic import count_flops
from benchmarks.growth import exponent
from benchmarks.suite import cases

SMALL = {
    "quantize": partial(cases.quantize, 2),
    "dequantize": partial(cases.dequantize, 2),
    "head": partial(cases.head, "tiny", 8, 7),
    "sampling": partial(cases.sampling, "tiny", 4, 8, 3, 5),
    "training step": partial(cases.training_step, "tiny", 4, 8, 8),
    "loader of moments": partial(cases.loader, "moments", 20),
    "loader of tokens": partial(cases.loader, "tokens", 20),
}


@pytest.mark.parametrize("name", SMALL)
def test_both_sides_give_the_same(name: str) -> None:
    case = SMALL[name]()
    assert case.plain is not None
    for _ in range(2):  # a training step must leave the same weights, too
        cases.check(case.ours(), case.plain())


def test_a_difference_is_found() -> None:
    loss = torch.tensor(1.0)
    cases.check(loss, loss + cases.TOLERANCE / 2)
    with pytest.raises(AssertionError):
        cases.check(loss, loss + 2 * cases.TOLERANCE)
    with pytest.raises(AssertionError):
        cases.check(torch.tensor([1, 2]), torch.tensor([1, 3]))


@pytest.mark.parametrize("queries", [3, 5])
def test_operations_of_fused_attention_count(queries: int) -> None:
    q, k, v = torch.randn(2, 4, queries, 8, requires_grad=True), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    forward, mixed = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert forward == 2 * 2 * 2 * 4 * queries * 7 * 8  # two products
    assert count_flops(lambda: mixed.sum().backward())[0] >= 2 * forward


def test_a_row_has_what_was_measured() -> None:
    info = {"images": 10, "plain_seconds": 0.2, "matrix_rate": 1e11}
    info |= {"ours_flops": 5e9, "plain_flops": 6e9, "ours_bytes": 2**20, "plain_bytes": 3 * 2**20}
    cells = report.row({"param": "a part", "stats": {"median": 0.1}, "extra_info": info})
    assert cells == ["a part", "10", "200", "100", "2.00", "6", "5", "3", "1", "50%"]


def test_a_row_without_a_baseline_has_empty_cells() -> None:
    info = {"images": 10, "ours_flops": 0, "ours_bytes": 0, "matrix_rate": 1e11}
    cells = dict(
        zip(report.HEADER, report.row({"param": "a", "stats": {"median": 0.1}, "extra_info": info}), strict=True)
    )
    assert {name for name, cell in cells.items() if not cell} == {
        "plain, ms",
        "times as fast",
        "plain, GFLOP",
        "plain, MiB",
        "share of the matrix rate",
    }


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_the_exponent_is_that_of_the_larger_half(power: float) -> None:
    sizes = [1, 10, 100, 1000]
    costs = [7.0, 7.0, *(3 * size**power for size in sizes[2:])]
    assert exponent(sizes, costs) == pytest.approx(power, abs=1e-9)


def test_the_page_shows_the_stored_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "speed.png"
    page.write_text(report.PAGE.read_text())
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PICTURE", picture)
    before = page.read_text()
    report.main()
    assert page.read_text() == before
    assert picture.stat().st_size > 1000
