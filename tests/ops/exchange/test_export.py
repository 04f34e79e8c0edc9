"""``tokenbridge export``: a trained model as a folder with its card, in a project whose dvc.lock DVC wrote."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from tests.ops.exchange.conftest import export, refused
from tests.support.checkout import CHECKOUT
from tests.support.dvc import init_dvc
from tests.support.small_model import QUANTIZER, random_model
from tests.support.small_pipeline import NAMES, build_pipeline
from tokenbridge.base.files import sha256_file, write_json
from tokenbridge.images.shards import write_manifest
from tokenbridge.infra.dvc import md5_as_dvc, read_stages
from tokenbridge.ops.exchange.export import model_facts
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.tokenizer.fitting import fit_quantizer

FIGURES = {
    "reports/evaluate/tiny.json": {"samples": 4, "fd_efficientnet_lite0_32px": 6.25},
    "reports/reconstruct.json": {"quantized_psnr": 26.5},
    "reports/train/tiny.json": {"validation_loss": 1.75, "parameters": 1000},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with this one's stages, whose outs are all there and recorded."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(CHECKOUT / name, root)
    shutil.copytree(CHECKOUT / "tokenbridge", root / "tokenbridge", ignore=shutil.ignore_patterns("__pycache__"))
    init_dvc(root)
    write_outs(root)
    run_dvc(root, "commit", "-f", "-q")
    return root


def run_dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True)


def write_outs(root: Path) -> None:
    quantizer = fit_quantizer(torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(0)), QUANTIZER)
    build_pipeline(random_model(), quantizer).save_pretrained(root / "models/tiny")
    (root / "data/images").mkdir(parents=True)
    splits: dict[str, list[dict[str, Any]]] = {
        split: [{"file": f"{split}.parquet", "count": count, "sha256": ""}]
        for split, count in (("train", 64), ("test", 16))
    }
    write_manifest(
        root / "data/images", name="shapes", image_size=8, label_names=NAMES, splits=splits, licence="MIT, the tests"
    )
    (root / "reports/samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "reports/samples/tiny.png")
    for path, figures in FIGURES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_json(root / path, figures)
    for out in (root / out for stage in read_stages(root).values() for out in stage.outs):
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            out.write_text(out.name)  # not looked into


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, which is the current folder."""
    root = tmp_path / "project"
    shutil.copytree(finished, root, ignore=shutil.ignore_patterns(".dvc", "tokenbridge"))
    monkeypatch.chdir(root)
    return root


@contextmanager
def edited_lock(project: Path) -> Iterator[dict[str, Any]]:
    """The stages of dvc.lock, to change."""
    path = project / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    yield lock["stages"]
    path.write_text(yaml.safe_dump(lock, sort_keys=False))


def make_anew(project: Path, out: str, maker: str) -> None:
    """As when the stage ``maker`` ran again and made another ``out``, and what comes after it did not."""
    path = project / out
    (path / "note" if path.is_dir() else path).write_text("another")
    with edited_lock(project) as stages:
        record = next(entry for entry in stages[maker]["outs"] if entry["path"] == out)
        record["md5"] = md5_as_dvc(path)


def test_the_folder_is_the_whole_pipeline_with_card_and_picture(project: Path) -> None:
    export()
    written = {path.relative_to("out/tiny") for path in Path("out/tiny").rglob("*")}
    copied = {path.relative_to("models/tiny") for path in Path("models/tiny").rglob("*")}
    assert written == copied | {Path("README.md"), Path("samples.png")}
    assert Path("out/tiny/samples.png").read_bytes() == Path("reports/samples/tiny.png").read_bytes()
    TokenBridgePipeline.from_pretrained("out/tiny")
    assert DiffusionPipeline.load_config("out/tiny")["label_names"] == NAMES


def test_the_cards_code_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", export(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir("out")
    exec(code[1], {})
    assert Image.open("image.png").size == (8, 8)


def test_the_card_shows_reports_data_settings_and_digests(project: Path) -> None:
    card = export()
    for expected in (
        "| `fd_efficientnet_lite0_32px` | 6.25 |",
        "| `quantized_psnr` | 26.5 |",
        "| `validation_loss` | 1.75 |",
        "64 in `train`, 16 in `test`",
        "licence: MIT, the tests",
        "0 Sneaker, 1 Bag, 2 Ankle boot",
        "`train.epochs` ",
        "`quantizer.family`",
        "guidance_scale=4.0",
        sha256_file(project / "dvc.lock"),
    ):
        assert expected in card
    assert "left out" not in card


def test_parameters_are_counted(project: Path) -> None:
    pipeline = TokenBridgePipeline.from_pretrained("models/tiny")
    assert model_facts(project, "tiny").parameters == {
        "transformer": sum(p.numel() for p in pipeline.transformer.parameters()),
        "vae": sum(p.numel() for p in pipeline.vae.parameters()),
        "quantizer": 0,
    }


def test_a_file_that_is_missing_or_was_edited_is_left_out(project: Path) -> None:
    (project / "reports/train/tiny.json").unlink()
    (project / "reports/samples/tiny.png").unlink()
    write_json(project / "reports/evaluate/tiny.json", {"fd_efficientnet_lite0_32px": 0.0})
    card = export()
    assert "`reports/train/tiny.json` was missing" in card
    assert "`reports/samples/tiny.png` was missing" in card
    assert not Path("out/tiny/samples.png").exists()
    assert "`reports/evaluate/tiny.json` is left out: it is not the file" in card
    assert "| `fd_efficientnet" not in card
    assert "| `quantized_psnr` | 26.5 |" in card


def test_samples_of_an_earlier_model_are_left_out(project: Path) -> None:
    make_anew(project, "models/tiny", "train@tiny")
    card = export()
    for path in ("reports/evaluate/tiny.json", "reports/samples/tiny.png"):
        assert f"`{path}` is left out: by `dvc.lock` it was not made from this model" in card
    assert "- `generate@tiny`: unknown, because" in card
    assert "guidance_scale=" not in card
    assert "| `quantized_psnr` | 26.5 |" in card


def test_a_vae_trained_anew_is_not_this_models(project: Path) -> None:
    make_anew(project, "models/vae", "vae")
    card = export()
    assert "`reports/reconstruct.json` is left out" in card
    assert "- `vae`: unknown, because" in card
    assert "license: other" in card
    assert "| `fd_efficientnet_lite0_32px` | 6.25 |" in card


def test_reconstructions_by_another_quantizer_are_left_out(project: Path) -> None:
    with edited_lock(project) as stages:
        stages["reconstruct"]["params"]["params.yaml"]["quantizer"]["levels"] = 4
    assert "`reports/reconstruct.json` is left out" in export()


@pytest.mark.parametrize("path", ["models/tiny/transformer/config.json", "data/images/manifest.json"])
def test_what_dvc_did_not_record_is_refused(project: Path, path: str) -> None:
    with (project / path).open("a") as file:
        file.write(" ")
    assert "is not what train@tiny had" in refused()
    assert not Path("out/tiny").exists()


def test_a_missing_model_is_refused(project: Path) -> None:
    shutil.rmtree(project / "models/tiny")
    assert "models/tiny is missing: `dvc checkout`" in refused()


def test_only_models_of_the_stages_are_exported(project: Path) -> None:
    assert "no stage trained a model 'imported'" in refused(model="imported")
    with edited_lock(project) as stages:
        stages["train@tiny"]["params"]["params.yaml"]["models.tiny"]["pretrained"] = "elsewhere"
    assert "was not trained here but taken from elsewhere" in refused()


def test_an_existing_folder_stays_as_it_is(project: Path) -> None:
    Path("out/tiny").mkdir(parents=True)
    assert "is there already" in refused()
    assert "own folder" in refused(out="models/tiny/export")
