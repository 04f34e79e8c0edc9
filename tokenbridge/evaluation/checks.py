"""Cheap checks that an evaluation is possible, for use before samples are drawn."""

from collections.abc import Mapping

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation import EvaluationError
from tokenbridge.images import TEST, TRAIN, VALIDATION


def check_counts(config: EvaluateConfig, samples: int, images: Mapping[str, int]) -> None:
    """Check that the numbers of samples and of real images are enough for the evaluation.

    Args:
        samples: the number of samples.
        images: split -> number of its images.

    Raises:
        EvaluationError: if KID's subsets or the floor need more images than there are.
    """
    counts = {"samples (generate.samples)": samples} | {
        f"{split} images": images[split] for split in (VALIDATION, TEST)
    }
    for name, count in counts.items():
        if config.kid_subset_size > count:
            raise EvaluationError(
                f"evaluate.kid_subset_size is {config.kid_subset_size} but there are only {count} {name}: "
                f"set evaluate.kid_subset_size to at most {count}"
            )
    train = images[TRAIN]
    if samples > train:
        raise EvaluationError(
            f"generate.samples is {samples} but there are only {train} training images for the floor: "
            f"set generate.samples to at most {train}"
        )


def check_sample_count(found: int, asked: int) -> None:
    """Check that the number of samples is generate.samples.

    Raises:
        EvaluationError: if it is not.
    """
    if found != asked:
        raise EvaluationError(
            f"there are {found} samples but generate.samples is {asked}: the metrics' bias depends on "
            "the number, so generate them again with `dvc repro generate`"
        )
