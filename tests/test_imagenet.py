"""The whole pipeline on a small ImageNet: real photographs in the original archives, some broken, and stored tokens."""

import subprocess
from pathlib import Path

import pytest

from tests.pipeline.fixtures import copy_checkout
from tests.pipeline.project import STAGES, Project, outcomes
from tests.support.photographs import NAMES, WNIDS, photographs, write_tars
from tokenbridge.base.files import read_json
from tokenbridge.images.shards import image_counts
from tokenbridge.sampling.pipeline import TokenBridgePipeline

pytestmark = pytest.mark.pipeline


class SmallImageNet(Project):
    """32 px, and models of a few thousand weights."""

    overrides = (
        "experiment=smoke",
        "data=imagenet_tars",
        f"data.num_classes={len(WNIDS)}",
        "data.image_size=32",
        "data.max_broken=0.02",
        "data.max_train=null",
        "data.max_test=null",
        "encode.flip=true",
        "tokens=packed",
        "quantizer.fit_images=200",
        "generate.samples=96",
        "evaluate.kid_subset_size=20",
    )


def test_from_the_original_archives_by_stored_tokens_to_an_evaluated_model(tmp_path: Path) -> None:
    copy_checkout(tmp_path / "clone")
    project = SmallImageNet(tmp_path / "clone")
    subprocess.run(["git", "init", "--quiet"], cwd=project.root, check=True)
    md5 = write_tars(photographs(24, 12), tmp_path / "archives")
    digests = ",".join(f"{name}:{digest}" for name, digest in md5.items())
    archives = [f"data.root={tmp_path / 'archives'}", f"data.md5={{{digests}}}"]
    said = outcomes(project.repro(*archives))
    assert said == dict.fromkeys([*STAGES, "tokenize@tokens"], "ran")
    manifest = read_json(project.root / "data/images/manifest.json")
    assert manifest["label_names"] == NAMES
    counts = image_counts(manifest)
    assert (counts["train"] + counts["validation"], counts["test"]) == (24 * 12, 12 * 12)
    assert 20 <= counts["validation"] <= 24  # two of each class, unless they were broken
    assert sum(len(manifest["left_out"][split]) for split in ("train", "validation")) == 3
    stored = read_json(project.root / "reports/tokenize.json")
    assert (stored["samples"], stored["flips"]) == (4, 2)
    assert stored["sample_bytes"] == 16 * 8 * 4 / 8  # positions, dimensions, bits of 16 levels, bits of a byte
    assert stored["npz_ratio"] > stored["moments_ratio"] > 1
    report = read_json(project.root / "reports/evaluate/tiny.json")
    assert 0 <= report["class_accuracy"] <= 1
    drawn = TokenBridgePipeline.from_pretrained(project.root / "models/tiny")(["tabby", "daisy"], num_inference_steps=2)
    assert [image.size for image in drawn.images] == [(32, 32)] * 2
