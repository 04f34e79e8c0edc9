"""Studies: the experiments of a folder of conf/experiment, one after the other, as rows of one table.

They run in a git worktree of the last commit, so your own files do not change. The worktree shares DVC's cache, so the
VAE and the moments are made once. A row that is already in the table is not run again, and a killed row resumes.
"""

import csv
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text, read_json, write_csv
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.config import Config
from tokenbridge.config.params import compose_config, load_params, validate
from tokenbridge.infra.git import git
from tokenbridge.ops.runs.cell_loss import cell_loss
from tokenbridge.ops.runs.pipeline_run import only_user, run_in_worktree
from tokenbridge.ops.runs.search import SampledDistance, coordinate_search
from tokenbridge.ops.runs.study import CELL_LOSS, METRICS, MODEL, RATE, Study

logger = logging.getLogger(__name__)

EVALUATION = f"reports/evaluate/{MODEL}.json"
LEARNING_RATES = ("learning_rate", "muon_learning_rate")  # settings of train
DIFFERENCE = "difference of the distance to the first row"
START, END = "<!-- table -->", "<!-- end of table -->"
Row = dict[str, Any]


def experiment_names(root: Path, study: Study) -> list[str]:
    """Return the name of every experiment in the folder, starting with the base that the others are compared with."""
    names = (path.stem for path in (root / study.experiments).glob("*.yaml"))
    return sorted(names, key=lambda name: (name != study.base, name))


def run_study(root: Path, study: Study, names: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Run ``run_rows`` while no other process changes the study."""
    with only_user(root, study.worktree):
        return run_rows(root, study, names, seeds)


def run_rows(root: Path, study: Study, names: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Run the rows that the table lacks, one seed after the other, and write each row as soon as it is finished.

    Returns:
        Every row of the table.

    Raises:
        UserError: if a name is not an experiment, or a row fails.
    """
    known = experiment_names(root, study)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no such experiment of {study.name}: {', '.join(unknown)}. Choose from {', '.join(known)}")
    wanted = [(name, seed) for seed in seeds for name in (names or known)]
    table = read_table(root, study)
    done = {(row["experiment"], int(row["seed"])) for row in table}
    missing = [row for row in wanted if row not in done]
    logger.info(f"{study.page_name}: {len(wanted) - len(missing)} of {len(wanted)} rows are in {study.table}")
    for position, (name, seed) in enumerate(missing, 1):
        logger.info(f"\n{study.page_name}: row {position} of {len(missing)}: {name}, seed {seed}")
        table.append(_run_row(root, study, name, seed, table))
        write_results(root, study, table)
    return table


def read_table(root: Path, study: Study) -> list[Row]:
    path = root / study.table
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _run_row(root: Path, study: Study, name: str, seed: int, table: Sequence[Row]) -> Row:
    run = partial(_run, root, study, name, seed)
    known = [row for row in table if row["experiment"] == name]  # of another seed
    if known:
        settings = {setting: float(known[0][setting]) for setting in (RATE, *study.search) if known[0].get(setting)}
    else:
        settings = _choose(study, run) if study.search else {}
    return _read_row(root, study, run(settings), name, seed) | settings


def _choose(study: Study, run: Callable[[Mapping[str, float]], Path]) -> dict[str, float]:
    """Return the learning rate, then the settings of ``generate``, whose Fréchet distance is least.

    The learning rates are compared by whole runs with the experiment's own settings of ``generate``.
    """

    def evaluated(rate: Mapping[str, float]) -> float:
        return float(read_json(run(rate) / EVALUATION)[METRICS[0]])

    rate = coordinate_search(evaluated, {RATE: study.rates}, {RATE: 1.0})
    measure = SampledDistance(run(rate), MODEL)
    start = {setting: getattr(measure.config.generate, setting) for setting in study.search}
    return rate | coordinate_search(measure, study.search, start)


def _run(root: Path, study: Study, name: str, seed: int, settings: Mapping[str, float]) -> Path:
    """Run an experiment with other ``settings``, and return its folder."""
    overrides = experiment_overrides(root, study, name, seed, settings)
    try:
        return run_in_worktree(root, study.worktree, overrides, logger.info)
    except StageFailedError as error:
        raise UserError(
            f"the experiment {study.name}/{name} stopped ({error}); fix it and run the same command again"
        ) from error


def experiment_overrides(root: Path, study: Study, name: str, seed: int, settings: Mapping[str, float]) -> list[str]:
    """Return the overrides of an experiment with chosen ``settings``: of generate, and a multiple of learning rates."""
    recipe = experiment_config(root, study, name).models[MODEL].train
    rates = [f"train.{rate}={settings.get(RATE, 1.0) * getattr(recipe, rate)}" for rate in LEARNING_RATES]
    sampling = [f"generate.{setting}={settings[setting]}" for setting in study.search if setting in settings]
    return [*_experiment(study, name), f"{study.seed}={seed}", *rates, *sampling]


def experiment_config(root: Path, study: Study, name: str) -> Config:
    """Return the settings of an experiment as its file has them."""
    return validate(compose_config(_experiment(study, name), root / "conf"))


def _experiment(study: Study, name: str) -> list[str]:
    return [f"experiment={study.name}/{name}", f"model={MODEL}"]


def _read_row(root: Path, study: Study, worktree: Path, name: str, seed: int) -> Row:
    reports, config = worktree / "reports", load_params(worktree)
    evaluation, training = read_json(worktree / EVALUATION), read_json(reports / f"train/{MODEL}.json")
    row = {
        "experiment": name,
        "seed": seed,
        "data": config.data.name,
        "epochs": config.models[MODEL].train.epochs,
        "parameters": training["parameters"],
        "validation_loss": training["validation_loss"],
        "validation_psnr": read_json(reports / "reconstruct.json")["validation_quantized_psnr"],
        **{metric: evaluation[metric] for metric in METRICS},
        "commit": git(worktree, "rev-parse", "--short", "HEAD"),
    }
    if config.models[MODEL].head == "mixture":
        row[CELL_LOSS] = cell_loss(worktree, experiment_config(root, study, study.base).quantizer, config.seed)
    return row


def write_results(root: Path, study: Study, table: Sequence[Row]) -> None:
    """Write the table, and put it into the page between its markers; the text around it does not change."""
    write_csv(root / study.table, table)
    page = root / study.page
    before, rest = page.read_text().split(START)
    _, after = rest.split(END)
    atomic_write_text(page, f"{before}{START}\n{markdown_table(root, study, table)}\n{END}{after}")


def markdown_table(root: Path, study: Study, table: Sequence[Row]) -> str:
    """Return one line for each experiment, in the order of ``experiment_names``, with the values of all its seeds.

    A value that all seeds share is written once. Experiments that share seeds with the base have their difference to
    it as a further column.
    """
    names = experiment_names(root, study)
    of_name = {name: [row for row in table if row["experiment"] == name] for name in names}
    differences = {name: paired_difference(rows, of_name[study.base]) for name, rows in of_name.items()}
    last = [DIFFERENCE] if any(differences.values()) else []
    header = [study.name, "what is changed", *study.shown, *last]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for name, rows in of_name.items():
        if rows:
            values = [[_cell(row, *column) for row in rows] for column in study.shown.values()]
            cells = [" / ".join(each if len(set(each)) > 1 else each[:1]) for each in values]
            changed = _description(root / study.experiments / f"{name}.yaml")
            further = [differences[name]] if last else []
            lines.append(f"| {' | '.join([f'`{name}`', changed, *cells, *further])} |")
    return "\n".join(lines)


def paired_difference(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """Return the mean difference of the Fréchet distance to the base with the same seed, and its standard error.

    Empty for the base itself, and if fewer than two seeds are shared.
    """
    here, there = ({int(row["seed"]): float(row[METRICS[0]]) for row in each} for each in (rows, base))
    shared = [here[seed] - there[seed] for seed in here.keys() & there.keys()]
    if rows == base or len(shared) < 2:
        return ""
    return f"{mean(shared):+.2f} ± {stdev(shared) / math.sqrt(len(shared)):.2f}"


def _cell(row: Row, column: str, digits: int) -> str:
    value = row.get(column, "")  # not measured yet
    return f"{float(value):,.{digits}f}" if value != "" else ""


def _description(path: Path) -> str:
    """Return the first comment of the file that is not its package line."""
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    return comments[0].removeprefix("# ").rstrip(".")
