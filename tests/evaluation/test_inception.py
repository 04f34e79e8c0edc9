"""The real FID: files are checked first; against statistics it equals FID against the images themselves.

The released weights cannot be had offline, so a file with random weights stands in for them: the network,
the file's format and every step are the real ones.
"""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from tests.evaluation.conftest import draw_shapes
from tests.evaluation.test_metrics import CONFIG
from tokenbridge.base.files import sha256_file
from tokenbridge.evaluation import EvaluationError
from tokenbridge.evaluation.features import ImageTensorDataset
from tokenbridge.evaluation.inception import (
    check_inception,
    check_inception_weights,
    inception_features,
    load_reference_statistics,
)
from tokenbridge.evaluation.metrics import distance, inception_score, statistics


class UnloadedInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network as constructed, before any weights are loaded."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        return


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    net = UnloadedInception("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.pipeline
def test_fid_against_statistics_equals_fid_against_images(random_weights: Path, tmp_path: Path) -> None:
    check_inception_weights(random_weights, expected_sha256=sha256_file(random_weights))
    generated, reference = (ImageTensorDataset(draw_shapes(12, seed)[0]) for seed in (1, 2))
    features = inception_features(generated, random_weights)
    computed = statistics(inception_features(reference, random_weights), "2048")
    archive = tmp_path / "reference.npz"
    np.savez(archive, mu=computed["mu"].astype(np.float64), sigma=computed["sigma"])
    expected = torch_fidelity.calculate_metrics(
        input1=generated,
        input2=reference,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_weights),
        isc=True,
        fid=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    loaded = load_reference_statistics(archive)
    assert all(np.array_equal(loaded[name], computed[name]) for name in ("mu", "sigma"))
    found = distance(statistics(features, "2048"), loaded), inception_score(features, "logits_unbiased")
    expected_metrics = expected["frechet_inception_distance"], expected["inception_score_mean"]
    assert found == pytest.approx(expected_metrics, rel=1e-6)


def test_nothing_is_needed_when_no_weights_are_named() -> None:
    check_inception(CONFIG)


def test_missing_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    config = replace(CONFIG, inception_weights=str(tmp_path / "none.pth"))
    with pytest.raises(EvaluationError, match=r"none\.pth\) does not exist: download https://"):
        check_inception(config)


def test_another_file_is_refused_by_its_digest(random_weights: Path) -> None:
    with pytest.raises(EvaluationError, match="not 6726825d"):
        check_inception_weights(random_weights)


def test_a_pickle_that_runs_code_is_refused_even_with_the_right_digest(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(EvaluationError, match="more than weights"):
        check_inception_weights(path, expected_sha256=sha256_file(path))


def test_statistics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    with pytest.raises(EvaluationError, match="contains NaN or infinity"):
        load_reference_statistics(tmp_path / "reference.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2048)}, "arrays mu and sigma"),
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "2048 features"),
        ({"mu": np.array([print]), "sigma": np.eye(2)}, "arrays mu and sigma"),
    ],
)
def test_other_npz_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(EvaluationError, match=message):
        load_reference_statistics(path)


def test_a_file_that_is_missing_or_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    with pytest.raises(EvaluationError, match=r"reference\.npz\) does not exist"):
        load_reference_statistics(path)
    path.write_text("not an archive")
    with pytest.raises(EvaluationError, match="not an npz"):
        load_reference_statistics(path)
