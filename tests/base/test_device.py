"""Where and how tensors are computed."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tests.support.small_model import LAUNCHER, Silent
from tokenbridge.base.checks import AUTO, BF16, FP32
from tokenbridge.base.device import autocast, best_device, emulation_cost, has_bf16, pick_device, resolve_precision
from tokenbridge.base.errors import UserError
from tokenbridge.config.params import compose_config, validate
from tokenbridge.infra.dvc import read_stages
from tokenbridge.ops.runs.precision_check import check_precision, precision_settings, setting_of
from tokenbridge.stages.context import StageContext
from tokenbridge.stages.runtime import PRECISION, WORK

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ANSWER = "import torch; from tokenbridge.base.device import has_bf16; print(has_bf16(torch.device('cpu')))"


class Tags(Silent):
    """A metric sink that keeps tags."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, str] = {}

    def tags(self, values: dict[str, str]) -> None:
        self.kept |= values


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU before Ampere: torch says that it has bfloat16 if emulation counts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


def capabilities(monkeypatch: pytest.MonkeyPatch, architecture: str, *names: str, limit: str = "AVX512") -> None:
    """A processor that has these instructions, with torch limited to an instruction set."""
    found = {"architecture": architecture} | dict.fromkeys(names, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: limit)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)


@pytest.mark.parametrize(
    ("architecture", "names", "limit", "expected"),
    [
        ("x86_64", ("avx2",), "AVX2", False),
        ("x86_64", ("avx2", "avx512_f"), "AVX512", False),  # AVX-512 alone only emulates it
        ("x86_64", ("avx512_f", "avx512_bf16"), "AVX512", True),
        ("x86_64", ("amx_tile", "amx_bf16"), "AVX512", True),
        ("x86_64", ("avx512_f", "avx512_bf16"), "AVX2", False),  # ATEN_CPU_CAPABILITY=avx2
        ("arm64", ("neon",), "DEFAULT", False),
        ("arm64", ("neon", "bf16"), "DEFAULT", True),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_its_instructions(
    monkeypatch: pytest.MonkeyPatch, architecture: str, names: tuple[str, ...], limit: str, expected: bool
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    capabilities(monkeypatch, architecture, *names, limit=limit)
    assert has_bf16(CPU) is expected
    assert resolve_precision(AUTO, CPU) == (BF16 if expected else FP32)


@pytest.mark.parametrize("value", ["AVX512_CORE", "avx512_core_vnni"])
def test_onednn_can_be_limited_below_bfloat16(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    capabilities(monkeypatch, "x86_64", "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    assert not has_bf16(CPU)


@pytest.mark.parametrize("limit", [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}], ids=str)
def test_a_processor_limited_to_avx2_has_none(limit: dict[str, str]) -> None:
    answer = subprocess.run([sys.executable, "-c", ANSWER], env=os.environ | limit, capture_output=True, check=True)
    assert answer.stdout.decode().strip() == "False"


@pytest.mark.usefixtures("old_gpu")
def test_emulation_on_a_gpu_is_not_hardware() -> None:
    assert not has_bf16(CUDA)
    assert resolve_precision(AUTO, CUDA) == FP32
    assert resolve_precision(BF16, CUDA) == BF16  # who asks for it gets it
    assert "vae.precision is bf16, which Tesla V100 only emulates" in emulation_cost("vae.precision", CUDA)


@pytest.mark.parametrize(("precision", "dtype"), [(BF16, torch.bfloat16), (FP32, torch.float32)])
def test_products_are_computed_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def context_in(work: Path, tracker: Tags | None = None) -> StageContext:
    config = validate(compose_config(["experiment=smoke"], CHECKOUT / "conf"))
    return StageContext("train@tiny", config, work, work, tracker or Tags(), CPU)


@pytest.mark.parametrize("here", [True, False])
def test_a_stage_says_and_notes_what_auto_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: bool
) -> None:
    monkeypatch.setattr("tokenbridge.base.device.has_bf16", lambda _: here)
    monkeypatch.setattr("tokenbridge.stages.context.has_bf16", lambda _: here)
    expected, tracker = BF16 if here else FP32, Tags()
    assert context_in(tmp_path, tracker).precision(AUTO) == expected
    assert f"train@tiny: computing in {expected} on " in capsys.readouterr().out
    assert tracker.kept == {"numeric_precision": expected}
    assert (tmp_path / PRECISION).read_text() == expected


def test_a_resumed_stage_keeps_the_precision_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenbridge.base.device.has_bf16", lambda _: True)
    (tmp_path / PRECISION).write_text(FP32)
    assert context_in(tmp_path).precision(AUTO) == FP32


def test_a_stage_begun_in_bfloat16_is_not_resumed_where_that_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tokenbridge.stages.context.has_bf16", lambda _: False)
    (tmp_path / PRECISION).write_text(BF16)
    with pytest.raises(UserError, match="resume on a machine that has bf16 in hardware, or delete that folder"):
        context_in(tmp_path).precision(AUTO)
    assert context_in(tmp_path).precision(BF16) == BF16
    assert "precision is bf16, which" in capsys.readouterr().out


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that only emulates bfloat16."""
    for module in ("base.device", "stages.context"):
        monkeypatch.setattr(f"tokenbridge.{module}.has_bf16", lambda _: False)


@pytest.mark.usefixtures("emulating")
def test_the_cost_of_emulation_is_said_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    check_precision(CHECKOUT, validate(compose_config(["vae.precision=bf16"], CHECKOUT / "conf")), [])
    assert capsys.readouterr().out.count("note: vae.precision is bf16, which") == 1


@pytest.mark.usefixtures("emulating")
def test_what_cannot_be_resumed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    init_dvc(tmp_path)
    stages = read_stages(tmp_path).values()
    work = tmp_path / WORK / "vae" / next(stage.key for stage in stages if stage.name == "vae")
    work.mkdir(parents=True)
    (work / PRECISION).write_text(BF16)
    config = validate(compose_config([], CHECKOUT / "conf"))
    with pytest.raises(UserError, match="was begun in bf16"):
        check_precision(tmp_path, config, stages)


def test_every_stage_that_computes_in_a_precision_has_a_setting_for_it() -> None:
    settings = precision_settings(validate(compose_config([], CHECKOUT / "conf")))
    computing = {"classifier", "vae", "encode", "reconstruct", "train@tiny", "generate@tiny", "evaluate@tiny"}
    assert {setting_of(stage) for stage in computing} == set(settings)
    assert {name for name, value in settings.items() if value != AUTO} == {"evaluate.precision"}


def test_nothing_else_names_bfloat16() -> None:
    named = [p for p in (CHECKOUT / "tokenbridge").rglob("*.py") if "torch.bfloat16" in p.read_text()]
    assert {path.name for path in named} == {"device.py", "pipeline.py"}  # the pipeline's docstring


@pytest.mark.parametrize("wanted", [False, True])
def test_a_stage_is_deterministic_on_gpus_if_the_launcher_says_so(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    asked: list[bool] = []
    environment: dict[str, str] = {}
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(os, "environ", environment)
    pick_device(replace(LAUNCHER, deterministic=wanted))
    assert asked == [True] * wanted
    assert ("CUBLAS_WORKSPACE_CONFIG" in environment) == wanted


@pytest.mark.parametrize("ask", [best_device, lambda: pick_device(LAUNCHER)], ids=["commands", "stages"])
def test_float32_is_not_tf32_on_gpus(ask: Callable[[], torch.device]) -> None:
    torch.backends.cudnn.allow_tf32 = True
    ask()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
