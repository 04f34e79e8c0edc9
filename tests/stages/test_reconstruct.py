"""Stage ``reconstruct``: the studies, their table, and the stage on a small VAE."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.evaluation.conftest import Shapes, draw_shapes
from tests.evaluation.shards import save_shards
from tests.stages.conftest import configure
from tests.support.small_data import write_moments
from tests.support.small_model import QUANTIZER
from tests.vae.test_autoencoder import CONFIG as VAE
from tokenbridge.base.files import read_json
from tokenbridge.config import ReconstructConfig
from tokenbridge.evaluation.features import Features, Images
from tokenbridge.evaluation.networks import Network
from tokenbridge.stages import reconstruct
from tokenbridge.stages.reconstruct import study_table, study_variants, title
from tokenbridge.vae.training import build_vae

STUDY = ReconstructConfig(
    levels=[16, 4], ranges=[3.0, 5.0], families=["lloyd_max", "gaussian"], images=10, precision="fp32"
)


def test_each_study_changes_one_setting_that_is_used_and_holds_the_configured_quantizer() -> None:
    studies = study_variants(QUANTIZER, STUDY)
    assert {name: [getattr(variant, name) for variant in variants] for name, variants in studies.items()} == {
        "levels": [4, 8, 16],
        "range": [3.0, 5.0],
        "family": ["gaussian", "lloyd_max"],
    }
    assert all(QUANTIZER in variants for variants in studies.values())
    without_range = replace(QUANTIZER, family="lloyd_max")
    assert set(study_variants(without_range, STUDY)) == {"levels", "family"}
    assert title(without_range) == title(replace(without_range, range=2.0)) == "lloyd_max, 8 levels"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("codebook", "1 x 16 codewords"),
        ("residual", "residual, 1 x 16 codewords"),
        ("entropy_coded", "entropy_coded, distortion 0.1, +-5"),
        ("e8", "e8, distortion 0.1, +-5"),
    ],
)
def test_families_without_a_given_number_of_levels_are_compared_with_others_alone(family: str, name: str) -> None:
    config = replace(QUANTIZER, family=family)
    studies = study_variants(config, STUDY)
    assert {study: [each.family for each in variants] for study, variants in studies.items()} == {
        "family": sorted([family, "lloyd_max", "gaussian"])
    }
    assert title(config) == title(replace(config, levels=4)) == name


def test_the_table_has_each_variant_once() -> None:
    studies = study_variants(QUANTIZER, STUDY)
    variants = [variant for each in studies.values() for variant in each]
    metrics = {name: {"psnr": float(i)} for i, name in enumerate(["continuous", *map(title, variants)])}
    rows = study_table(studies, metrics)
    assert [row["quantizer"] for row in rows] == [
        "continuous",
        "gaussian, 4 levels, +-5",
        "gaussian, 8 levels, +-5",
        "gaussian, 16 levels, +-5",
        "gaussian, 8 levels, +-3",
        "lloyd_max, 8 levels",
    ]
    assert [(row["family"], row["levels"], row["range"]) for row in rows[-2:]] == [
        ("gaussian", 8, 3.0),
        ("lloyd_max", 8, None),
    ]


def mean_colours(images: Images) -> Features:
    """Features of a network that stands for Inception."""
    return {"colour": torch.stack([torch.as_tensor(image).float().mean((1, 2)) for image in images])}


def by_class(shapes: Shapes) -> Shapes:
    """A split that is sorted by class, so that its first images are of one class."""
    order = shapes[1].argsort(kind="stable")
    return shapes[0][order], shapes[1][order]


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_stage_measures_continuous_and_quantized_reconstructions(
    repository: Path, patch_size: int, monkeypatch: pytest.MonkeyPatch, autocasts: set[str]
) -> None:
    inception = Network("fid_inception", "colour", mean_colours, weights="none")
    monkeypatch.setattr(reconstruct, "given_networks", lambda _config: [inception])
    changes = [f"quantizer.patch_size={patch_size}", "quantizer.levels=8", "quantizer.fit_images=64"]
    changes += ["reconstruct.levels=[2]", "reconstruct.ranges=[5]", "reconstruct.families=[gaussian,lloyd_max]"]
    configure(repository, *changes, "reconstruct.images=7", "reconstruct.precision=bf16")
    save_shards(
        repository / "data/images",
        {"train": draw_shapes(12), "validation": by_class(draw_shapes(20, 2)), "test": by_class(draw_shapes(24, 1))},
        ["a", "b", "c"],
    )
    torch.manual_seed(0)
    build_vae(replace(VAE, dimensions=4), 32).save_pretrained(repository / "models/vae")
    write_moments(repository / "data/moments", torch.randn(64, 4, 16, 16))
    reconstruct.main()

    report = read_json(repository / "reports/reconstruct.json")
    metrics = {"psnr", "ssim", "fd_efficientnet_lite0_32px", "fid_inception"}
    kinds = [f"{split}{kind}" for split in ("", "validation_") for kind in ("continuous", "quantized")]
    assert set(report) == {f"{kind}_{name}" for kind in kinds for name in metrics} | {"numeric_precision", "protocol"}
    about = report["protocol"]
    assert (about["images"], about["fewest_of_a_class"], about["most_of_a_class"]) == (7, 2, 3)
    assert about["validation"] == {"images": 7, "fewest_of_a_class": 2, "most_of_a_class": 3}
    assert {split: each["images"] for split, each in about["references"].items()} == {"test": 24, "validation": 20}
    with (repository / "reports/reconstruct/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["quantizer", "family", "levels", "range"]
    assert set(rows[0]) == {*list(rows[0])[:4], *metrics}
    assert set(about["extractors"]) == {"fd_efficientnet_lite0_32px", "fid_inception"}
    assert [row["quantizer"] for row in rows[1:]] == [
        "gaussian, 2 levels, +-5",
        "gaussian, 8 levels, +-5",
        "lloyd_max, 8 levels",
    ]
    assert float(rows[2]["psnr"]) == report["validation_quantized_psnr"]
    assert report["numeric_precision"] == "bf16"
    assert autocasts == {"bf16"}
    for picture in ("images.png", "study.png"):
        assert Image.open(repository / "reports/reconstruct" / picture).width > 200
