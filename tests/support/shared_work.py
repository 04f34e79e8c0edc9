"""Stages whose work is cut into files, shared by several processes or not.

``python -m tests.support.shared_work ROOT OUT``

ROOT has what the stages read. Each writes into OUT/work/<stage>; the files that a process made there, in their order,
are noted in OUT/made-<rank>.json.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from tests.support.small_model import Silent
from tokenbridge.base import arrays, chunks
from tokenbridge.base.console import log_to_console
from tokenbridge.base.distributed import SINGLE_PROCESS, joined
from tokenbridge.base.files import atomic_path, write_json
from tokenbridge.classifier import network
from tokenbridge.config import EvaluateConfig
from tokenbridge.config.params import load_params
from tokenbridge.evaluation import features
from tokenbridge.evaluation.features import Features
from tokenbridge.stages import encode, evaluate, tokenize
from tokenbridge.stages.context import StageContext

ROWS = 10  # of a file, so that small sets make several
WORK = "work"
STAGES = {"encode": encode.work, "tokenize@tokens": tokenize.work, "evaluate@tiny": evaluate.work}


def mean_distance(generated: Features, reference: Features, _config: EvaluateConfig) -> dict[str, float]:
    """Replace the metrics by a number that depends on the features of every image."""
    return {layer: float((generated[layer].mean(0) - reference[layer].mean(0)).norm()) for layer in generated}


def main(root: Path, out: Path) -> None:
    log_to_console()
    arrays.SHARD_ROWS = features.CHUNK = network.CHUNK = ROWS
    chunks.LOOK_SECONDS = 0.1
    made: list[str] = []

    @contextmanager
    def noted(path: Path) -> Iterator[Path]:
        with atomic_path(path) as target:
            yield target
        made.append(path.relative_to(out / WORK).as_posix())

    with ExitStack() as stack:
        # rank 0 alone computes the real metrics, and they take seconds
        stack.enter_context(patch.object(evaluate, "sample_metrics", mean_distance))
        for module in (arrays, features, network):  # what these modules write is what processes share
            stack.enter_context(patch.object(module, "atomic_path", noted))
        processes = stack.enter_context(joined() if "RANK" in os.environ else nullcontext(SINGLE_PROCESS))
        for stage, work in STAGES.items():
            folder = out / WORK / stage.partition("@")[0]
            work(StageContext(stage, load_params(root), root, folder, Silent(), torch.device("cpu"), processes))
        write_json(out / f"made-{processes.rank}.json", made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
