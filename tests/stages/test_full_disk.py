"""The disk gets full at a checkpoint: what was saved is whole, the message says what to do, and a repeat goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.services import SmallDisk
from tests.support.small_project import write_inputs
from tokenbridge.base.files import sha256_tree
from tokenbridge.stages import train
from tokenbridge.stages.runtime import MISTAKE_CODE, WORK
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

OFTEN = ["launcher.checkpoint_seconds=0.01", "launcher.checkpoint_share=1"]
SETTINGS = ["train.epochs=30", "train.warmup_epochs=1", *OFTEN]


@pytest.fixture
def project(
    repository: Path,
    small_disk: SmallDisk,
    vae_latents: torch.Tensor,
    quantizer: DimensionwiseQuantizer,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A repository with all that `train` needs; .work is a link to a small disk."""
    write_inputs(repository, vae_latents, quantizer, SETTINGS)
    (repository / WORK).symlink_to(small_disk.folder)
    return repository


@contextmanager
def filling(disk: SmallDisk) -> Iterator[None]:
    """Take what is free from the first whole checkpoint on, until the block ends."""
    over = threading.Event()

    def fill() -> None:
        while not over.wait(0.001):
            if next(disk.folder.glob("*/*/checkpoints/step-*"), None):
                disk.fill()

    filler = threading.Thread(target=fill)
    filler.start()
    yield
    over.set()
    filler.join()


@pytest.mark.pipeline
def test_training_ends_with_what_to_do_and_a_repeat_gives_the_same_weights(
    project: Path, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    with filling(small_disk), pytest.raises(SystemExit) as stop:
        train.main("tiny")
    assert stop.value.code == MISTAKE_CODE
    message = capsys.readouterr().err
    assert f"train@tiny: no space is left on the disk of {project / WORK}" in message
    assert "free some space, or move the folder to a larger disk and leave a link in its place" in message
    small_disk.free()

    train.main("tiny")
    assert "train: resuming at" in capsys.readouterr().out
    continued = sha256_tree(project / "models/tiny/transformer")
    train.main("tiny")
    assert "resuming" not in capsys.readouterr().out
    assert sha256_tree(project / "models/tiny/transformer") == continued
