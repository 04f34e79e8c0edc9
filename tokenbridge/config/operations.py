"""Settings of plans, of promotions and of the S3 store. They are never stage parameters."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from tokenbridge.config.types import Integer, Number, PartialShare, Positive, PositiveNumber, Settings, Share, refuse


class GpuConfig(Settings):
    """One GPU, with its maker's figures."""

    name: str
    memory: PositiveNumber  # GiB
    bf16_tflops: PositiveNumber  # peak of dense matrix products
    fp32_tflops: PositiveNumber  # the same peak for train.precision=fp32
    memory_bandwidth: PositiveNumber  # GB/s
    link: PositiveNumber  # GB/s, one way, to the other GPUs of its node
    price: PositiveNumber  # per hour, in plan.currency


class PlanConfig(Settings):
    """The assumptions of `tokenbridge plan`. No stage computes with them."""

    gpu: GpuConfig
    mfu: Annotated[Number, Field(gt=0, le=1)]  # share of the peak that a GPU reaches while it computes
    reserve: PartialShare  # share of a GPU's memory for CUDA, communication and fragments
    network: PositiveNumber  # GB/s, one way, of all network cards of a node together
    disk: PositiveNumber  # GB/s, of the disk that holds checkpoints and training data
    currency: str
    train_images: dict[str, Positive]  # data.name -> number of training images


class PromotionConfig(Settings):
    """The comparison with the champion, and the gates that a model must pass before it becomes the champion."""

    confidence: Annotated[Number, Field(ge=0.5, le=0.9999)]  # of the intervals, such as 0.95
    resamples: Integer  # the largest number of resamples
    min_resamples: Annotated[Integer, Field(ge=2)]  # made even if they take longer than `seconds`
    seconds: PositiveNumber  # resampling stops after this time
    max_fd_increase: Number  # limit for the interval's upper end of candidate minus champion; 0: must be surely better
    max_class_accuracy_decrease: Number  # limit for the interval's upper end of champion minus candidate
    min_class_accuracy: Share  # of the class accuracy of real images
    min_precision: Share
    min_recall: Share
    max_slowdown: PositiveNumber  # limit for the rounds' median of candidate / champion time per image
    timing_images: Positive  # drawn by each model in a round; few, so that both models meet the same load
    timing_rounds: Positive

    def __post_init__(self) -> None:
        least, most = self.min_resamples, self.resamples
        refuse({f"min_resamples is {least}: must be at most promotion.resamples ({most})": least > most})


class StorageConfig(Settings):
    """The location of the S3 store. A move must not fetch or retrain anything.

    null means to look in AWS's own places: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_PROFILE, ~/.aws/config.
    Credentials are not settings: they come from AWS's own variables, files and roles.
    """

    endpoint: str | None = None  # http(s)://host[:port] of a server that is not Amazon's
    region: str | None = None
    bucket: str | None = None  # of DVC's remote
    prefix: str | None = None  # of DVC's remote, inside the bucket
    profile: str | None = None  # a section of ~/.aws/config and ~/.aws/credentials

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint or "https://host")
        user = parts.username is not None  # such an address is not shown
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        refuse(
            {
                "endpoint holds a user name: credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY": user,
                f"endpoint is {self.endpoint!r}: write http://host:port or https://host": not valid and not user,
            }
        )
