"""``tokenbridge plan``, as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.ops.planning.conftest import composed
from tests.support.checkout import CHECKOUT
from tokenbridge.cli import main
from tokenbridge.config import ConfigError
from tokenbridge.ops.planning.plan import memory_limit, memory_model, plan_model
from tokenbridge.ops.planning.report import report
from tokenbridge.stages.tokenize import size_report

pytestmark = pytest.mark.pipeline  # for their time alone

RELEASED = ("experiment=imagenet_l", "launcher=slurm", "launcher.nodes=4", "launcher.checkpoint_activations=true")


def test_the_released_training_within_a_quarter_of_its_published_hours() -> None:
    """About 6,000 A100-hours for L, with checkpointing (its authors); docs/scaling.md explains the difference."""
    found = plan_model(composed(*RELEASED), "large")
    assert found.parameters.total == 486_889_472
    assert found.at_once == 64
    assert found.schedule.gpu_hours == pytest.approx(6000, rel=0.25)


def test_the_report_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    main(["plan", "experiment=imagenet_h", "launcher=slurm", "launcher.nodes=4", "plan=a100_40"])
    said = capsys.readouterr().out
    assert "910,040,576" in said
    assert "does not fit: " in said
    assert "launcher.checkpoint_activations=true" in said


@pytest.mark.parametrize(
    ("system", "an_image"),
    [
        ("bar_like", "16 predictions of 8 numbers"),
        ("cubid_like", "128 predictions of 1 x 64 classes"),
        ("e8_masked", "16 predictions of 9 x "),
        ("flow_like", "16 predictions of 8 numbers"),
        ("givt_causal", "16 predictions of 8 numbers"),
    ],
)
def test_every_kind_of_model_can_be_planned(system: str, an_image: str) -> None:
    config = composed(f"experiment=compare/{system}", "model=tiny")
    assert an_image in report(plan_model(config, "tiny"), config)


def test_its_advice_helps() -> None:
    overrides = ("experiment=imagenet_h", "launcher=slurm", "launcher.nodes=4", "plan=a100_40")
    (warning,) = (text for text in plan_model(composed(*overrides), "huge").warnings if "does not fit" in text)
    for advice in warning.split("say ")[1].split(", or "):
        config = composed(*overrides, *advice.split())
        memory = memory_model(config, "huge")
        at_once = memory.cluster.images_at_once(config.models["huge"].train.batch_size)
        assert memory.at(at_once).total <= memory_limit(config.plan), advice


@pytest.mark.parametrize(
    ("nodes", "message"), [(512, "divide it into 4096 parts"), (5, "40 processes do not divide the 32 groups")]
)
def test_processes_that_the_training_would_refuse_are_refused(nodes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_model(composed("experiment=imagenet_l", "launcher=slurm", f"launcher.nodes={nodes}"), "large")


def test_numbers_go_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CHECKOUT)
    main(["plan", "model=[tiny,base]", "--json", str(tmp_path / "plan.json")])
    written = json.loads((tmp_path / "plan.json").read_text())
    assert list(written) == ["tiny", "base"]
    assert written["tiny"]["parameters"]["total"] == 2_327_776
    assert written["tiny"]["volumes"]["images"] == 58_000
    assert capsys.readouterr().out.count(" in 16 steps: ") == 2  # what is not set, the trunks decide


def test_sampling_is_planned_in_the_precision_of_generate() -> None:
    """The peaks of an A100 are 312 and 19.5 TFLOP/s. The precision of the training does not matter."""
    bf16, auto, fp32 = (
        plan_model(composed(f"generate.precision={drawing}", f"train.precision={training}"), "tiny").sample_gpu_hours
        for drawing, training in (("bf16", "fp32"), ("auto", "bf16"), ("fp32", "bf16"))
    )
    assert auto == bf16
    assert fp32 == pytest.approx(16 * bf16)


def test_an_unknown_data_set_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    with pytest.raises(SystemExit, match=r"\+plan\.train_images\.mine="):
        main(["plan", "data.name=mine"])


def test_bytes_are_those_that_the_stages_write() -> None:
    found = plan_model(composed("tokens=packed"), "tiny").volumes
    stored = int(np.prod((4, 4, 8))) * 6 // 8
    written = size_report((2 * 8, 4, 4), stored)
    assert found.tokens == 58_000 * 4 * stored
    assert found.of_image == stored
    assert found.moments == 58_000 * written["moments_bytes"]
