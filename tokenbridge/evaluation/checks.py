"""Whether an evaluation can be made, cheap to ask before samples are drawn."""

from tokenbridge.config import EvaluateConfig
from tokenbridge.evaluation import EvaluationError


def check_counts(config: EvaluateConfig, samples: int, train: int, test: int) -> None:
    """Whether so many samples can be evaluated; cheap, to be asked before they are drawn.

    Raises:
        EvaluationError: KID's subsets or the floor need more images than there are.
    """
    for name, count in (("samples (generate.samples)", samples), ("test images", test)):
        if config.kid_subset_size > count:
            raise EvaluationError(
                f"evaluate.kid_subset_size is {config.kid_subset_size} but there are only {count} {name}: "
                f"set evaluate.kid_subset_size to at most {count}"
            )
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
