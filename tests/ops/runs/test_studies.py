"""Studies: experiments that compose, and a page whose table is the results'."""

import math
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.patience import PATIENCE
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import write_csv
from tokenbridge.config.params import compose_config, flatten, validate
from tokenbridge.ops.planning.sizes import Parameters, meta_model
from tokenbridge.ops.runs.costs import bits, coded_bits, memory, operations, sampling
from tokenbridge.ops.runs.pipeline_run import only_user
from tokenbridge.ops.runs.search import coordinate_search
from tokenbridge.ops.runs.studies import (
    END,
    START,
    experiment_names,
    experiment_overrides,
    markdown_table,
    paired_difference,
    read_table,
    run_study,
    write_results,
)
from tokenbridge.ops.runs.study import ABLATIONS, COMPARISON, FULL_COMPARISON, MODEL, SPEED, TRAIN_GFLOP, Study

RESULT = {
    "parameters": 2358816,
    "validation_fd_efficientnet_lite0_32px": 9.25,
    "validation_precision_efficientnet_lite0_32px": 0.5,
    "validation_recall_efficientnet_lite0_32px": 0.5,
    "class_accuracy": 0.875,
}


def settings(study: Study, name: str) -> dict[str, object]:
    return flatten(asdict(validate(compose_config([f"experiment={study.name}/{name}"], CHECKOUT / "conf"))))


@pytest.mark.parametrize(
    ("study", "name"),
    [(study, name) for study in (ABLATIONS, SPEED) for name in experiment_names(CHECKOUT, study) if name != study.base],
    ids=lambda part: part.name if isinstance(part, Study) else part,
)
def test_an_experiment_changes_something_of_the_base_and_little(study: Study, name: str) -> None:
    base, changed = settings(study, study.base), settings(study, name)
    different = {key.removeprefix("models.tiny.") for key in changed if changed[key] != base.get(key)}
    assert 1 <= len(different) <= 4


@pytest.mark.pipeline  # for its time alone
@pytest.mark.parametrize("study", [COMPARISON, FULL_COMPARISON], ids=lambda study: study.page_name)
def test_compared_systems_have_equal_parameters_and_training(study: Study) -> None:
    """Within what docs/comparison.md says: 5 % and 3 %."""
    costs = {}
    for name in experiment_names(CHECKOUT, study):
        config = validate(compose_config([f"experiment={study.name}/{name}", f"model={MODEL}"], CHECKOUT / "conf"))
        recipe = config.models[MODEL].train
        parameters = Parameters.of(meta_model(config, config.models[MODEL])).total
        costs[name] = parameters, operations(config)[TRAIN_GFLOP] * recipe.epochs
    for parameters, gflop in costs.values():
        assert parameters == pytest.approx(costs[study.base][0], rel=0.05)
        assert gflop == pytest.approx(costs[study.base][1], rel=0.03)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenbridge", 16 * 8 * 6),
        ("kmeans_masked", 16 * 10),
        ("vq_trained", 16 * 10),
        ("product_masked", 16 * 4 * 8),
        ("residual_masked", 16 * 3 * 8),
        ("entropy_coded", pytest.approx(16 * 8 * math.log2(113))),
        ("e8_masked", pytest.approx(16 * 9 * math.log2(105))),
        ("flow_like", None),
    ],
)
def test_bits_are_those_of_equally_long_numbers(name: str, expected: float | None) -> None:
    config = validate(compose_config([f"experiment={COMPARISON.name}/{name}", f"model={MODEL}"], CHECKOUT / "conf"))
    assert bits(config).get("bits") == expected


def test_the_coded_bits_of_a_model_that_knows_nothing_are_those_of_equally_long_numbers() -> None:
    config = validate(compose_config([f"experiment={COMPARISON.name}/kmeans_masked", "model=tiny"], CHECKOUT / "conf"))
    row = {"validation_loss": math.log(1024)}
    assert coded_bits(config, row) == {"coded_bits": pytest.approx(bits(config)["bits"])}
    latents = validate(compose_config([f"experiment={COMPARISON.name}/mar_like", "model=tiny"], CHECKOUT / "conf"))
    assert coded_bits(latents, row) == {}  # a squared error is no likelihood


def test_the_coded_bits_of_a_mixture_are_those_of_levels_in_the_base() -> None:
    config = validate(compose_config([f"experiment={COMPARISON.name}/givt_causal", "model=tiny"], CHECKOUT / "conf"))
    row = {"validation_loss": 0.3, "cell_loss": math.log(64)}
    assert coded_bits(config, row) == {"coded_bits": pytest.approx(16 * 8 * 6)}
    assert coded_bits(config, {"validation_loss": 0.3, "cell_loss": ""}) == {}  # not measured: the row is older


@pytest.mark.pipeline  # for its time alone
@pytest.mark.parametrize("name", experiment_names(CHECKOUT, COMPARISON))
def test_the_sampling_of_every_system_can_be_timed(name: str) -> None:
    config = validate(compose_config([f"experiment={COMPARISON.name}/{name}", f"model={MODEL}"], CHECKOUT / "conf"))
    sampling(config)  # fits the quantizer and builds the model; the call itself takes seconds


@pytest.mark.pipeline  # for its time alone
def test_the_memory_of_a_causal_trunk_is_at_least_that_of_its_cache() -> None:
    """Keys and values of both halves of the guidance, in float32, at each position but the last."""
    overrides = [f"experiment={COMPARISON.name}/tokenbridge_raster", "model=tiny"]
    config = validate(compose_config(overrides, CHECKOUT / "conf"))
    model = config.models[MODEL]
    numbers = 2 * 2 * (model.encoder_depth + model.decoder_depth) * 15 * model.width
    cache = 4 * numbers / 2**20
    assert cache < memory(config)["sample_mib"] < 4 * cache


def test_settings_are_searched_one_after_the_other_and_none_twice() -> None:
    tried: list[tuple[float, float]] = []

    def measure(settings: dict[str, float]) -> float:
        scale, temperature = settings["guidance_scale"], settings["temperature"]
        tried.append((scale, temperature))
        return (scale - 2) ** 2 + (temperature - 0.7) ** 2

    start = {"guidance_scale": 3.0, "temperature": 1.0}
    assert coordinate_search(measure, COMPARISON.search, start) == {"guidance_scale": 2.0, "temperature": 0.7}
    assert len(tried) == len(set(tried)) == 8
    assert coordinate_search(measure, {}, {}) == {}


def test_chosen_settings_change_the_learning_rates_and_the_sampling_of_the_experiment_and_nothing_else() -> None:
    def config(settings: dict[str, float]) -> dict[str, object]:
        overrides = experiment_overrides(CHECKOUT, COMPARISON, "kmeans_masked", 1, settings)
        return flatten(asdict(validate(compose_config(overrides, CHECKOUT / "conf"))))

    own, chosen = config({}), config({"rate": 2.0, "guidance_scale": 1.5, "temperature": 0.4})
    changed = {key.removeprefix("models.tiny."): chosen[key] for key in chosen if chosen[key] != own[key]}
    assert changed == {
        "train.learning_rate": 0.003,
        "train.muon_learning_rate": 0.04,
        "generate.guidance_scale": 1.5,
        "generate.temperature": 0.4,
    }
    assert own["models.tiny.train.learning_rate"] == 0.0015
    assert own["seed"] == own["models.tiny.train.seed"] == 1


def test_an_unknown_name_is_explained_by_the_names_with_the_base_first() -> None:
    with pytest.raises(UserError, match=r"no such experiment of ablation: nothing. Choose from base"):
        run_study(CHECKOUT, ABLATIONS, ["nothing"], [0])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one experiment of the study SPEED."""
    folder = tmp_path / SPEED.experiments
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("# @package _global_\n# Where it starts.\n")
    (tmp_path / SPEED.page).parent.mkdir()
    return tmp_path


def test_a_study_waits_for_the_process_that_uses_its_worktree(project: Path) -> None:
    """Two would change the settings below each other, and each would write the table without the other's rows."""
    write_csv(project / SPEED.table, [{"experiment": "base", "seed": 0} | RESULT])
    study = threading.Thread(target=run_study, args=(project, SPEED, [], [0]))
    with only_user(project, SPEED.worktree):
        study.start()
        study.join(0.5)
        assert study.is_alive()
    study.join(PATIENCE)
    assert not study.is_alive()


def test_the_table_shows_seeds_beside_each_other(project: Path) -> None:
    rows = [{"experiment": "base", "seed": seed} | RESULT | {"validation_loss": 2.5 + seed} for seed in (0, 1)]
    (project / SPEED.page).write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_results(project, SPEED, [rows[0] | {"sample_ms": 12.34}, rows[1]])
    page = (project / SPEED.page).read_text()
    assert "| `base` | Where it starts | 0 / 1 | 2.500 / 3.500 | 9.25 | 0.875 | 12.3 /" in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert [row["seed"] for row in read_table(project, SPEED)] == ["0", "1"]


def test_the_difference_to_the_base_is_paired_by_seed() -> None:
    def rows(*distances: float) -> list[dict[str, object]]:
        return [{"seed": seed, "validation_fd_efficientnet_lite0_32px": each} for seed, each in enumerate(distances)]

    base = rows(8.0, 9.0, 10.0)
    assert paired_difference(rows(7.0, 7.0, 7.0, 0.0), base) == "-2.00 ± 0.58"  # 1 / sqrt(3)
    assert not paired_difference(base, base)
    assert not paired_difference(rows(7.0), base)


@pytest.mark.parametrize("study", [ABLATIONS, COMPARISON, FULL_COMPARISON], ids=lambda study: study.page_name)
def test_the_page_shows_the_committed_results(study: Study) -> None:
    table = (CHECKOUT / study.page).read_text().split(START)[1].split(END)[0]
    assert table.strip() == markdown_table(CHECKOUT, study, read_table(CHECKOUT, study))
