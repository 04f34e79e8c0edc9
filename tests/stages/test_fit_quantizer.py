"""Stage ``fit_quantizer``: moments become a quantizer, a report and pictures."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.stages.conftest import configure
from tests.support.small_data import write_moments
from tokenbridge.base.files import read_json
from tokenbridge.base.loading import load_whole
from tokenbridge.stages import fit_quantizer
from tokenbridge.tokenizer.quantizer import DimensionwiseQuantizer


@pytest.mark.parametrize("family", ["gaussian", "uniform", "lloyd_max"])
def test_the_stage_fits_reports_and_draws(family: str, repository: Path, vae_latents: torch.Tensor) -> None:
    settings = ["quantizer.levels=8", "quantizer.patch_size=2"]
    configure(repository, f"quantizer={family}", *settings)
    write_moments(repository / "data/moments", vae_latents)
    fit_quantizer.main()
    quantizer = load_whole(DimensionwiseQuantizer, repository / "models/quantizer")
    assert quantizer.levels.shape == (16, 8)
    report = read_json(repository / "reports/quantizer.json")
    assert set(report) == {"mse", "sqnr_db", "bits_above_bound", "saturation", "entropy_bits_per_token"}
    with (repository / "reports/quantizer/dimensions.csv").open() as file:
        assert [int(row["dimension"]) for row in csv.DictReader(file)] == list(range(16))
    for picture in ("levels.png", "order.png"):
        assert Image.open(repository / "reports/quantizer" / picture).width > 200


def test_too_few_values_for_the_levels_end_the_stage_with_a_remedy(
    repository: Path, vae_latents: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(repository, "quantizer=lloyd_max", "quantizer.fit_images=1")
    write_moments(repository / "data/moments", vae_latents)
    with pytest.raises(SystemExit):
        fit_quantizer.main()
    message = capsys.readouterr().err
    assert "dimensions [0, 1, 2, 3] have fewer finite, distinct latents than levels (64)" in message
    assert "raise quantizer.fit_images" in message
