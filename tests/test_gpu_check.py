"""`make gpu-check`: what it needs, and what it writes. Its tests are those of tests/gpu."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from tests.support.checkout import CHECKOUT
from tests.support.patience import PATIENCE

# what its page names, and what those packages bring themselves
NAMED = {"torch", "diffusers", "safetensors", "numpy", "hydra-core", "omegaconf", "pydantic", "pyyaml", "pytest"}
ALLOWED = NAMED | {"hydra", "yaml", "PIL", "pydantic_core"}
OURS = ("tokenbridge", "tests", "benchmarks")


def imports_of(file: Path) -> tuple[set[str], set[Path]]:
    """Packages of others that a file imports when it is imported itself, and the files of ours."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name for name in names if name.partition(".")[0] in OURS}
    parents = {".".join(name.split(".")[:end]) for name in ours for end in range(1, name.count(".") + 2)}
    places = [CHECKOUT / name.replace(".", "/") for name in parents]
    files = {path for place in places for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()}
    return {name.partition(".")[0] for name in names - ours}, files


def test_it_needs_only_the_packages_that_its_page_names() -> None:
    waiting = [*(CHECKOUT / "tests/gpu").glob("*.py"), Path(gpu_check.__file__)]
    seen: set[Path] = set()
    others: dict[str, Path] = {}
    while waiting:
        if (file := waiting.pop()) not in seen:
            seen.add(file)
            packages, files = imports_of(file)
            others |= dict.fromkeys(packages, file)
            waiting += files
    needed = {name: file for name, file in others.items() if name not in sys.stdlib_module_names}
    assert needed.keys() - ALLOWED == set(), needed
    page = gpu_check.PAGE.read_text().lower()
    assert {name for name in NAMED if name not in page} == set()
    assert set(gpu_check.NEEDED) == NAMED


@pytest.mark.parametrize("name", gpu_check.FILES)
def test_every_file_that_it_runs_exists(name: str) -> None:
    assert (CHECKOUT / f"tests/gpu/test_{name}.py").exists()
    assert len(gpu_check.FILES) == len(list((CHECKOUT / "tests/gpu").glob("test_*.py")))


def test_without_a_gpu_it_says_so_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = gpu_check.PAGE.read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 2
    assert "finds no CUDA GPU" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "TORCH", (99, 1))
    assert gpu_check.main() == 2
    assert "is too old: install torch 99.1 or newer" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no-such-package"))
    assert gpu_check.main() == 2
    assert "lacks no-such-package" in capsys.readouterr().out
    assert gpu_check.PAGE.read_text() == before


@pytest.mark.parametrize("files", [("quick", "hanging"), ("hanging",)], ids=["after others", "first"])
def test_what_hangs_is_ended_at_the_limit(files: tuple[str, ...], tmp_path: Path) -> None:
    """With the project's own settings of pytest, whose faulthandler has a limit too."""
    page, folder = tmp_path / "docs/gpu.md", tmp_path / "tests/gpu"
    page.parent.mkdir()
    page.write_text(f"{gpu_check.RESULTS}**passed** long ago")
    folder.mkdir(parents=True)
    shutil.copy2(CHECKOUT / "pyproject.toml", tmp_path)
    test = "import time, pytest\n\n@pytest.mark.gpu\ndef test_{name}():\n    time.sleep({seconds})\n"
    (folder / "test_quick.py").write_text(test.format(name="quick", seconds=0))
    (folder / "test_hanging.py").write_text(test.format(name="hanging", seconds=PATIENCE))
    program = f"""if True:
        from pathlib import Path
        from benchmarks import gpu_check
        gpu_check.PROJECT, gpu_check.LIMIT, gpu_check.FILES = Path({str(tmp_path)!r}), 30, {files}
        gpu_check.check({{}}, Path({str(page)!r}))
    """
    ended = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Timeout" in ended.stderr) == (1, True), ended.stdout + ended.stderr
    assert "**did not finish**" in page.read_text()
    assert "long ago" not in page.read_text()
    assert ("| quick | passed |" in page.read_text()) == ("quick" in files)


def test_the_page_keeps_its_text_and_gets_the_results_of_each_test(tmp_path: Path, pytester: pytest.Pytester) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(f"# How to\n\n{gpu_check.RESULTS}\nold\n")
    results = gpu_check.Results(lambda text: gpu_check.write(page, {"GPU": "a card"}, text))
    pytester.makepyfile(
        test_speed="""
        def test_fast_enough(record_property):
            record_property("rate", "3 images/s")
        def test_too_slow():
            assert 1 == 2, "a | b"
        """
    )
    pytester.inline_run(plugins=[results])
    assert "**did not finish**" in page.read_text()
    results.end(passed=False)
    text = page.read_text()
    assert text.startswith("# How to\n")
    assert "old" not in text
    assert "**FAILED**" in text
    assert "| fast enough | passed | 0 | rate: 3 images/s |" in text
    assert "| too slow | failed | 0 | AssertionError: a / b |" in text
    assert "| GPU | a card |" in text
