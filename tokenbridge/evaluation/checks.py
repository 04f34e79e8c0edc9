"""Whether an evaluation can be made, cheap to ask before samples are drawn."""

from collections.abc import Mapping

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation import EvaluationError
from tokenbridge.images import TEST, TRAIN, VALIDATION


def check_counts(config: EvaluateConfig, samples: int, images: Mapping[str, int]) -> None:
    """Check that so many ``samples`` can be evaluated with as many ``images`` as each split has, before they are drawn.

    Raises:
        EvaluationError: KID's subsets or the floor need more images than there are.
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
            f"generate.samples is {samples} but there are only {train} train images to compute the floor with: "
            f"set generate.samples to at most {train}"
        )


def check_sample_count(found: int, asked: int) -> None:
    """Raise EvaluationError unless there are exactly as many samples as generate.samples asks for."""
    if found != asked:
        raise EvaluationError(
            f"there are {found} samples but generate.samples is {asked}: the metrics' bias depends on "
            "the number, so generate them again with `dvc repro generate`"
        )
