"""Inception's features, for the real FID. The user provides the files; they are checked before work starts."""

import logging
import pickle
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenbridge.base.files import atomic_path, sha256_file
from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation import EvaluationError

if TYPE_CHECKING:  # the stages before `evaluate` only check the files, without torch
    from tokenbridge.evaluation.features import Features, Images

logger = logging.getLogger(__name__)

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048

Statistics = dict[str, NDArray[np.floating]]
"""Statistics of the features of a set of images, as in torch-fidelity: ``mu`` float32 [2048], ``sigma`` float64
[2048, 2048]."""


def check_inception(config: EvaluateConfig) -> None:
    """Check that the files that the settings name can be used. If the settings name no file, do nothing.

    Raises:
        EvaluationError: if a file cannot be used; the message names the setting and the remedy.
    """
    if config.inception_weights is not None:
        check_inception_weights(find_inception_weights(config.inception_weights))
    if config.inception_reference is not None:
        load_reference_statistics(Path(config.inception_reference).expanduser())


def find_inception_weights(setting: str) -> Path:
    """Return the file that evaluate.inception_weights names. ``download`` fetches torch-fidelity's file, once.

    Raises:
        EvaluationError: if the file cannot be downloaded.
    """
    if setting != "download":
        return Path(setting).expanduser()
    path = Path("pretrained") / WEIGHTS_URL.rsplit("/", 1)[-1]
    if not path.exists():
        logger.info(f"downloading {WEIGHTS_URL} (96 MB)")
        try:
            with urllib.request.urlopen(WEIGHTS_URL, timeout=20) as reply, atomic_path(path) as target:
                target.write_bytes(reply.read())
        except OSError as error:
            raise EvaluationError(
                f"{WEIGHTS_URL} cannot be reached ({error}): download it in another way and set "
                "evaluate.inception_weights=/path/to/it, or set it to null"
            ) from error
    return path


def check_inception_weights(path: Path, expected_sha256: str = WEIGHTS_SHA256) -> None:
    """Check that ``path`` is torch-fidelity's Inception file.

    torch-fidelity unpickles the file without restrictions, so it is first loaded here with ``weights_only``.

    Raises:
        EvaluationError: if the file is missing, is another file, or holds more than weights.
    """
    setting, remedy = f"evaluate.inception_weights ({path})", f"download {WEIGHTS_URL}, or set it to null"
    if not path.is_file():
        raise EvaluationError(f"{setting} does not exist: {remedy}")
    digest = sha256_file(path)
    if digest != expected_sha256:
        raise EvaluationError(f"{setting} has SHA-256 {digest}, not {expected_sha256}: {remedy}")
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise EvaluationError(f"{setting} holds more than weights: {remedy}") from error


def load_reference_statistics(path: Path) -> Statistics:
    """Read ``mu`` and ``sigma`` from an npz such as ADM's.

    Raises:
        EvaluationError: if the file is missing, or holds no statistics of Inception's features.
    """
    setting = f"evaluate.inception_reference ({path})"
    if not path.is_file():
        raise EvaluationError(f"{setting} does not exist: give an npz with mu and sigma, or set it to null")
    try:
        with np.load(path, allow_pickle=False) as archive:
            statistics = {"mu": archive["mu"].astype(np.float32), "sigma": archive["sigma"].astype(np.float64)}
    except (KeyError, ValueError, AttributeError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise EvaluationError(
            f"{setting} is not an npz with the arrays mu and sigma ({error}): give such a file, or set it to null"
        ) from error
    shapes = {name: array.shape for name, array in statistics.items()}
    if shapes != {"mu": (FEATURES,), "sigma": (FEATURES, FEATURES)}:
        raise EvaluationError(f"{setting} has the shapes {shapes}: give statistics of Inception's {FEATURES} features")
    if not all(np.isfinite(array).all() for array in statistics.values()):
        raise EvaluationError(f"{setting} contains NaN or infinity: compute it again, or set it to null")
    return statistics


def inception_features(images: "Images", weights: Path) -> "Features":
    """Return Inception's ``2048`` and ``logits_unbiased`` of uint8 images [3, H, W].

    It takes one second for about 7 images on 2 cores. ``weights`` must have passed ``check_inception_weights``, because
    torch-fidelity unpickles it.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from tokenbridge.evaluation.features import extract_with

    layers = ["2048", "logits_unbiased"]
    net = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(weights))
    return extract_with(net, lambda batch: net.convert_features_tuple_to_dict(net(batch)), images)
