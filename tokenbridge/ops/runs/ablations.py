"""Ablations: the experiments of conf/experiment/ablation, one after the other, as rows of one table.

They run in a git worktree of the last commit, so your own files do not change. The worktree shares DVC's cache, so the
VAE and the moments are made once. A row that is already in the table is not run again, and a killed row resumes.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_write_text, read_json, write_csv
from tokenbridge.base.subprocesses import StageFailedError
from tokenbridge.config.params import load_params
from tokenbridge.infra.git import git
from tokenbridge.ops.runs.pipeline_run import run_in_worktree

logger = logging.getLogger(__name__)

EXPERIMENTS = Path("conf/experiment/ablation")
TABLE = Path("docs/ablations.csv")
PAGE = Path("docs/ablations.md")
WORKTREE = Path(".work/ablations")
MODEL = "tiny"
BASE = "base"
START, END = "<!-- table -->", "<!-- end of table -->"
METRICS = (  # columns from reports/evaluate; on the validation images, because settings are chosen by them
    "validation_fd_efficientnet_lite0_32px",
    "validation_kid_efficientnet_lite0_32px",
    "validation_precision_efficientnet_lite0_32px",
    "validation_recall_efficientnet_lite0_32px",
    "class_accuracy",
)
SHOWN = {  # column of the page -> column of the table, digits
    "seeds": ("seed", 0),
    "validation loss": ("validation_loss", 3),
    "Fréchet distance": (METRICS[0], 2),
    "class accuracy": ("class_accuracy", 3),
    "precision": (METRICS[2], 2),
    "recall": (METRICS[3], 2),
    "parameters": ("parameters", 0),
}
Row = dict[str, Any]


def ablation_names(root: Path) -> list[str]:
    """Return the name of every experiment in the folder, starting with the base that the others are compared with."""
    names = sorted(path.stem for path in (root / EXPERIMENTS).glob("*.yaml"))
    return sorted(names, key=lambda name: name != BASE)


def run_ablations(root: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Run the rows that the table lacks, one seed after the other, and write each row as soon as it is finished.

    Raises:
        UserError: if a name is not an experiment, or a row fails.
    """
    known = ablation_names(root)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no such ablation: {', '.join(unknown)}. Choose from {', '.join(known)}")
    wanted = [(name, seed) for seed in seeds for name in (names or known)]
    table = read_table(root)
    done = {(row["ablation"], int(row["seed"])) for row in table}
    missing = [row for row in wanted if row not in done]
    logger.info(f"ablations: {len(wanted) - len(missing)} of {len(wanted)} rows are in {TABLE}")
    for position, (name, seed) in enumerate(missing, 1):
        logger.info(f"\nablations: row {position} of {len(missing)}: {name}, seed {seed}")
        table.append(_run_row(root, name, seed))
        write_csv(root / TABLE, table)
        write_page(root, table)


def read_table(root: Path) -> list[Row]:
    path = root / TABLE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _run_row(root: Path, name: str, seed: int) -> Row:
    overrides = [f"experiment={EXPERIMENTS.name}/{name}", f"train.seed={seed}", f"model={MODEL}"]
    try:
        worktree = run_in_worktree(root, WORKTREE, overrides, logger.info)
    except StageFailedError as error:
        raise UserError(f"the ablation {name} stopped ({error}); fix it and run the same command again") from error
    return _read_row(worktree, name, seed)


def _read_row(worktree: Path, name: str, seed: int) -> Row:
    reports, config = worktree / "reports", load_params(worktree)
    evaluation, training = read_json(reports / f"evaluate/{MODEL}.json"), read_json(reports / f"train/{MODEL}.json")
    return {
        "ablation": name,
        "seed": seed,
        "data": config.data.name,
        "epochs": config.models[MODEL].train.epochs,
        "parameters": training["parameters"],
        "validation_loss": training["validation_loss"],
        "validation_psnr": read_json(reports / "reconstruct.json")["validation_quantized_psnr"],
        **{metric: evaluation[metric] for metric in METRICS},
        "commit": git(worktree, "rev-parse", "--short", "HEAD"),
    }


def write_page(root: Path, table: Sequence[Row]) -> None:
    """Put the table into the page between its markers; the text around it does not change."""
    page = root / PAGE
    before, rest = page.read_text().split(START)
    _, after = rest.split(END)
    atomic_write_text(page, f"{before}{START}\n{markdown_table(root, table)}\n{END}{after}")


def markdown_table(root: Path, table: Sequence[Row]) -> str:
    """Return one line for each ablation, in the order of ``ablation_names``, with the values of all its seeds."""
    lines = [f"| ablation | what is changed | {' | '.join(SHOWN)} |", "|" + "---|" * (len(SHOWN) + 2)]
    for name in ablation_names(root):
        rows = [row for row in table if row["ablation"] == name]
        cells = [" / ".join(f"{float(row[column]):,.{digits}f}" for row in rows) for column, digits in SHOWN.values()]
        if rows:
            changed = _description(root / EXPERIMENTS / f"{name}.yaml")
            lines.append(f"| {' | '.join([f'`{name}`', changed, *cells])} |")
    return "\n".join(lines)


def _description(path: Path) -> str:
    """Return the first comment of the file that is not its package line."""
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    return comments[0].removeprefix("# ").rstrip(".")
