"""The ablations: experiments that compose, and a page whose table is the results'."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import write_csv
from tokenbridge.config.params import compose_config, flatten, validate
from tokenbridge.ops.runs.ablations import (
    BASE,
    END,
    EXPERIMENTS,
    PAGE,
    START,
    TABLE,
    ablation_names,
    markdown_table,
    read_table,
    run_ablations,
    write_page,
)

RESULT = {
    "parameters": 2358816,
    "validation_fd_efficientnet_lite0_32px": 9.25,
    "validation_precision_efficientnet_lite0_32px": 0.5,
    "validation_recall_efficientnet_lite0_32px": 0.5,
    "class_accuracy": 0.875,
}


def settings(name: str) -> dict[str, object]:
    return flatten(asdict(validate(compose_config([f"experiment={EXPERIMENTS.name}/{name}"], CHECKOUT / "conf"))))


@pytest.mark.parametrize("name", [name for name in ablation_names(CHECKOUT) if name != BASE])
def test_an_ablation_changes_something_of_the_base_and_little(name: str) -> None:
    base, changed = settings(BASE), settings(name)
    different = {key.removeprefix("models.tiny.") for key in changed if changed[key] != base.get(key)}
    assert 1 <= len(different) <= 4


def test_an_unknown_name_is_explained_by_the_names_with_the_base_first() -> None:
    with pytest.raises(UserError, match=r"no such ablation: nothing. Choose from base"):
        run_ablations(CHECKOUT, ["nothing"], [0])


def test_the_table_shows_seeds_beside_each_other(tmp_path: Path) -> None:
    folder = tmp_path / EXPERIMENTS
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("# @package _global_\n# Where it starts.\n")
    (tmp_path / TABLE).parent.mkdir()
    rows = [{"ablation": "base", "seed": seed} | RESULT | {"validation_loss": 2.5 + seed} for seed in (0, 1)]
    write_csv(tmp_path / TABLE, rows)
    (tmp_path / PAGE).write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_page(tmp_path, read_table(tmp_path))
    page = (tmp_path / PAGE).read_text()
    assert "| `base` | Where it starts | 0 / 1 | 2.500 / 3.500 | 9.25 / 9.25 | 0.875 / 0.875 |" in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page


def test_the_page_shows_the_committed_results() -> None:
    table = (CHECKOUT / PAGE).read_text().split(START)[1].split(END)[0]
    assert table.strip() == markdown_table(CHECKOUT, read_table(CHECKOUT))
