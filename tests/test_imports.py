"""Which large packages a command or a stage imports: their imports are most of its start."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.small_pipeline import build_pipeline
from tokenbridge.model import TokenBridgeTransformer
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer

LARGE = {"torch", "diffusers", "timm", "torchvision", "scipy.stats", "pandas", "matplotlib", "hydra"}
SERVERS = {"mlflow", "prefect", "dvc"}
PARSER = "from tokenbridge.cli import build_parser; build_parser()"
REPRO = "import tokenbridge.ops.runs.pipeline_run"
STAGE = "from tokenbridge.stages import import_stage; import_stage({!r})"


def imported(code: str) -> set[str]:
    """Return the modules that Python has imported after ``code``."""
    code = f"{code}; import sys; print(*sys.modules, sep=',')"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split(","))


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        (PARSER, LARGE | SERVERS | {"numpy", "pyarrow"}),
        (REPRO, LARGE | {"mlflow", "prefect", "pyarrow"}),
        (STAGE.format("fetch"), LARGE | {"mlflow", "prefect"}),
    ],
    ids=["help", "repro", "fetch"],
)
def test_what_is_not_needed_is_not_imported(code: str, unneeded: set[str]) -> None:
    assert imported(code) & unneeded == set()


def test_the_first_image_needs_no_server(
    tmp_path: Path, model: TokenBridgeTransformer, quantizer: DimensionwiseQuantizer
) -> None:
    build_pipeline(model, quantizer).save_pretrained(tmp_path / "model")
    words = ["sample", "--model", str(tmp_path / "model"), "--count", "1", "--out", str(tmp_path / "image.png")]
    modules = imported(f"from tokenbridge.cli import main; main({words!r})")
    assert (tmp_path / "image.png").exists()
    assert modules & SERVERS == set()
