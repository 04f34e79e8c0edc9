"""Any number of processes writes the files of ``encode``, ``tokenize`` and ``evaluate`` with the same bytes."""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.evaluation.conftest import LABEL_NAMES, SIDE, draw_shapes
from tests.evaluation.shards import save_shards
from tests.support.checkout import CHECKOUT
from tests.support.parallel_runs import run_processes
from tests.support.shared_work import ROWS, WORK
from tests.support.small_data import write_moments
from tests.support.small_model import QUANTIZER
from tests.vae.test_autoencoder import CONFIG as VAE
from tokenbridge.base.files import SCRATCH, read_json, sha256_tree
from tokenbridge.classifier.network import ImageClassifier, save_classifier
from tokenbridge.config.params import PARAMS_FILE, compose_config
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.vae.training import build_vae

pytestmark = pytest.mark.pipeline

TRAIN, VALIDATION, TEST, SAMPLES = 44, 22, 28, 34  # images: none fills its last file
BATCH = 4  # images at once: more than one batch in a file, and the last one smaller
SETTINGS = [
    "experiment=smoke",
    "tokens=packed",
    "encode.flip=true",
    "tokenize.samples=2",
    f"generate.samples={SAMPLES}",
    "evaluate.kid_subset_size=10",
    f"launcher.batch_size={BATCH}",
    "launcher.threads=1",
    "launcher.log_seconds=1e-9",
]
LITE0 = "fd_efficientnet_lite0_32px"
# what processes share, by the folder and the name's beginning of its files: images in all, and what progress calls it
KINDS = {
    "encode/moments/shard": (TRAIN, "encode train"),
    "encode/validation_moments/shard": (VALIDATION, "encode validation"),
    "tokenize/tokens/shard": (TRAIN, "tokenize"),
    f"evaluate/{LITE0}/samples": (SAMPLES, "features of samples"),
    f"evaluate/{LITE0}/floor": (SAMPLES, "features of floor"),
    f"evaluate/{LITE0}/test": (TEST, "features of test"),
    f"evaluate/{LITE0}/train": (TRAIN, "features of train"),
    f"evaluate/{LITE0}/validation": (VALIDATION, "features of validation"),
    "evaluate/classes/": (SAMPLES, "classes"),
}


@dataclass(frozen=True)
class Outcome:
    """What so many processes wrote below ``out``, and what they printed."""

    out: Path
    printed: str

    @property
    def digest(self) -> str:
        return sha256_tree(self.out / WORK)

    @property
    def made(self) -> list[list[str]]:
        """Files that each process made, by rank."""
        return [read_json(path) for path in sorted(self.out.glob("made-*.json"))]

    @property
    def made_by_all(self) -> list[str]:
        return [name for made in self.made for name in made]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the stages read; weights are random."""
    root = tmp_path_factory.mktemp("shared")
    OmegaConf.save(compose_config(SETTINGS, CHECKOUT / "conf"), root / PARAMS_FILE)
    counts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    images = {split: draw_shapes(count, seed) for seed, (split, count) in enumerate(counts.items())}
    save_shards(root / "data/images", images, LABEL_NAMES)
    drawn = {"precision": "fp32", "batch_size": BATCH}
    save_shards(root / "data/samples/tiny", {"samples": draw_shapes(SAMPLES, 3)}, LABEL_NAMES, drawn)
    torch.manual_seed(0)
    build_vae(replace(VAE, dimensions=4), SIDE).save_pretrained(root / "models/vae")
    save_classifier(ImageClassifier(width=8, label_names=LABEL_NAMES), root / "models/classifier")
    latents = torch.randn(TRAIN, 4, 4, 4)
    write_moments(root / "data/moments", latents)
    fit_quantizer(latents, QUANTIZER).save_pretrained(root / "models/quantizer")
    return root


def run(root: Path, out: Path, processes: int) -> Outcome:
    out.mkdir(exist_ok=True)
    return Outcome(out, run_processes(processes, "tests.support.shared_work", str(root), str(out)))


@pytest.fixture(scope="module")
def outcomes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    """By the number of processes."""
    folder = tmp_path_factory.mktemp("outcomes")
    return {count: run(root, folder / str(count), count) for count in (1, 2, 3)}


def files_of(kind: str, names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(kind))


def shown(label: str, printed: str) -> list[tuple[int, int]]:
    """(done, of so many) in the lines of progress."""
    found = re.findall(rf"^{label}: (\d+)/(\d+) images ", printed, re.MULTILINE)
    return [(int(done), int(total)) for done, total in found]


@pytest.mark.parametrize("processes", [2, 3])
def test_all_that_is_written_has_the_bytes_of_one_process(outcomes: dict[int, Outcome], processes: int) -> None:
    assert outcomes[processes].digest == outcomes[1].digest


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_is_made_once_and_each_of_two_processes_makes_some(outcomes: dict[int, Outcome], kind: str) -> None:
    count = -(-KINDS[kind][0] // ROWS)
    first, second = (files_of(kind, made) for made in outcomes[2].made)
    assert first and second
    assert len(first + second) == len({*first, *second}) == count
    for outcome in outcomes.values():
        assert files_of(kind, outcome.made_by_all) == sorted(first + second)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_process_shows_the_progress_of_all(outcomes: dict[int, Outcome], kind: str, processes: int) -> None:
    total, label = KINDS[kind]
    progress = shown(label, outcomes[processes].printed)
    assert {of for _, of in progress} == {total}
    assert progress == sorted(progress)
    assert progress.count((total, total)) == 1


def test_a_rerun_makes_the_missing_files_only_and_clears_what_a_kill_left(
    root: Path, outcomes: dict[int, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    shutil.copytree(outcomes[2].out / WORK, out / WORK)
    removed = [files_of(kind, outcomes[2].made_by_all)[1] for kind in KINDS]
    for name in removed:
        path = out / WORK / name
        path.unlink()
        left = path.parent / f".{path.name}.killed{SCRATCH}"
        left.mkdir()
        (left / path.name).write_bytes(b"half")
    again = run(root, out, 2)
    assert sorted(again.made_by_all) == sorted(removed)
    assert not list(out.rglob(f"*{SCRATCH}"))
    assert again.digest == outcomes[1].digest
    for total, label in KINDS.values():
        assert f"{label}: resuming at {total - ROWS} of {total} images" in again.printed
