"""The number of processes, and how they share a model, change neither what is learnt nor what is kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.distributed_training import BATCH, HALF, PLAIN, STEPS
from tests.support.parallel_runs import run_processes
from tests.support.small_data import write_moments
from tests.support.small_model import PRECISIONS, QUANTIZER
from tests.support.systems import CONTINUOUS
from tokenbridge.base.checkpoints import PROGRESS, Checkpoints, read_tensors
from tokenbridge.base.checks import BF16
from tokenbridge.base.distributed import Processes
from tokenbridge.base.files import read_json
from tokenbridge.base.seeding import EpochOrder
from tokenbridge.tokenizer.fitting import fit_quantizer
from tokenbridge.training.trainer import CHECKPOINTS

pytestmark = pytest.mark.pipeline

PROGRAM = "tests.support.distributed_training"
CASES = {
    2: [
        *("ddp", "fsdp", "accumulated", "fsdp_accumulated", "fsdp_checkpointed", "compiled", "fsdp_grouped"),
        *("fsdp_checkpointed_compiled", "flow", "fsdp_flow"),
        *("fsdp_elements", "fsdp_elements_interrupted", "fsdp_elements_interrupted<2"),
        *("dropout", "bad", "dropout_interrupted", "dropout_interrupted<2"),
        *("ddp_interrupted", "fsdp_interrupted", "fsdp_interrupted<2"),
    ],
    1: [
        *("ddp", "accumulated", "checkpointed", "grouped", "flow", "elements", "ddp_interrupted", "fsdp_interrupted"),
        *("ddp_interrupted<2", "fsdp_interrupted<2"),
    ],
    4: ["ddp", "fsdp", "ddp_interrupted<2", "fsdp_interrupted<2", "ddp_interrupted<1", "fsdp_interrupted<1"],
}
if BF16 in PRECISIONS:
    CASES[1].append("bf16")
    CASES[2] += ["bf16", "fsdp_bf16"]
SAME_MATHS = ["ddp/2", "ddp/4", "fsdp/2", "fsdp/4", "accumulated/1", "accumulated/2", "fsdp_accumulated/2"]
SAME_MATHS += ["checkpointed/1", "fsdp_checkpointed/2", "compiled/2", "fsdp_checkpointed_compiled/2", "fsdp_grouped/2"]
SAME_MATHS += ["flow/2", "fsdp_flow/2", "fsdp_elements/2"]
RESUMED = [f"{case}_interrupted/{way}" for case in ("ddp", "fsdp") for way in ("2-1", "2-4", "1-4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each case gave to two processes, to one, and to four; some go on with what others left."""
    folder = tmp_path_factory.mktemp("distributed")
    latents = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    write_moments(folder / "moments", latents)
    for name, config in (("quantizer", QUANTIZER), ("continuous", CONTINUOUS)):
        fit_quantizer(latents, config).save_pretrained(folder / name)
    for count, cases in CASES.items():
        run_processes(count, PROGRAM, str(folder), *cases)
    return folder


def tensors(folder: Path, run: str, name: str) -> dict[str, Tensor]:
    return load_file(folder / run / f"{name}.safetensors")


def losses(folder: Path, run: str) -> Tensor:
    return torch.tensor(json.loads((folder / run / "losses.json").read_text()))


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The relative distance of all tensors together."""
    assert ours.keys() == theirs.keys()
    ours_flat, theirs_flat = (torch.cat([each[name].flatten().double() for name in ours]) for each in (ours, theirs))
    return ((ours_flat - theirs_flat).norm() / theirs_flat.norm()).item()


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def check_evaluations(folder: Path, run: str, expected: str = "ddp/1") -> None:
    """Compare the validation losses of two runs."""
    ours, theirs = (json.loads((folder / each / "evaluations.json").read_text()) for each in (run, expected))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    values = (torch.tensor([row["validation_loss"] for row in rows]) for rows in (ours, theirs))
    torch.testing.assert_close(*values, rtol=1e-4, atol=0)


@pytest.mark.parametrize("run", SAME_MATHS)
def test_gradients_and_losses_are_those_of_one_process(folder: Path, run: str) -> None:
    alone = next((f"{part}/1" for part in ("grouped", "flow", "elements") if part in run), "ddp/1")
    assert distance(tensors(folder, run, "gradients"), tensors(folder, alone, "gradients")) < 1e-5
    assert len(losses(folder, run)) == STEPS
    torch.testing.assert_close(losses(folder, run), losses(folder, alone), rtol=1e-4, atol=0)
    check_evaluations(folder, run, alone)


@pytest.mark.skipif(BF16 not in PRECISIONS, reason="this processor emulates bfloat16")
@pytest.mark.parametrize("run", ["bf16/2", "fsdp_bf16/2"])
def test_in_bf16_they_are_those_of_one_process_as_far_as_bf16_goes(folder: Path, run: str) -> None:
    torch.testing.assert_close(losses(folder, run), losses(folder, "bf16/1"), rtol=1e-2, atol=0)


def test_one_process_reads_the_averages_of_any_checkpoint(folder: Path) -> None:
    for run in ("ddp_interrupted/2", "fsdp_interrupted/2"):
        saved = {key: each for key, each in tensors(folder, run, "saved").items() if key.startswith("ema/average/")}
        newest = Checkpoints(folder / run / CHECKPOINTS).newest()
        assert newest is not None
        assert read_json(newest / PROGRESS)["sha256"].keys() == {file.name for file in newest.glob("*.safetensors")}
        read = {key: torch.zeros_like(each) for key, each in saved.items()}
        assert read_tensors(newest, read)["step"] == HALF
        assert equal(read, saved)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_with_one_message(folder: Path) -> None:
    messages = [(folder / "bad/2" / f"message-{rank}").read_text() for rank in range(2)]
    order = EpochOrder(64, BATCH, PLAIN.train.seed).indices(0)
    images = ", ".join(map(str, order[Processes(1, 2).share(BATCH)].tolist()))
    assert messages[0] == messages[1]
    assert "loss is nan at step 0: the weights were not changed" in messages[0]
    assert f"rank 1 has loss nan on images {images}. Batch and weights are in" in messages[0]
    assert "rank 0" not in messages[0]
    assert len(list((folder / "bad/2/bad-step").glob("rank-*.safetensors"))) == 2


@pytest.mark.parametrize("case", ["fsdp", "fsdp_elements", "dropout"])
def test_continued_by_the_same_number_a_training_ends_with_the_same_bits(folder: Path, case: str) -> None:
    resumed, whole = f"{case}_interrupted/2-2", f"{case}/2"
    assert equal(tensors(folder, resumed, "weights"), tensors(folder, whole, "weights"))
    assert torch.equal(losses(folder, resumed), losses(folder, whole))
    check_evaluations(folder, resumed, whole)


@pytest.mark.parametrize("run", RESUMED)
def test_any_other_number_continues_from_the_same_state(folder: Path, run: str) -> None:
    loaded = tensors(folder, run, "loaded")
    assert equal(loaded, tensors(folder, run.partition("-")[0], "saved"))
    assert {name.partition("/")[0] for name in loaded} == {"model", "ema", "watch", "adamw"}
    alone = run.endswith("/1-4")  # nothing is sharded there, nor summed
    whole = losses(folder, "ddp/1" if alone else run.partition("_")[0] + "/2")
    assert torch.equal(losses(folder, run)[:HALF], whole[:HALF])
    torch.testing.assert_close(losses(folder, run), whole, rtol=1e-4, atol=0)
    check_evaluations(folder, run)
