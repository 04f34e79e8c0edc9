"""Settings of what a plan is made for: GPUs, their network and disks, and the numbers of training images."""

from dataclasses import dataclass

from tokenbridge.base.checks import require, require_between, require_positive


@dataclass
class GpuConfig:
    """One GPU, with its maker's figures."""

    name: str
    memory: float  # GiB
    bf16_tflops: float  # peak of dense matrix products
    fp32_tflops: float  # the same peak for train.precision=fp32
    memory_bandwidth: float  # GB/s
    link: float  # GB/s, one way, to the other GPUs of its node
    price: float  # per hour, in plan.currency

    def __post_init__(self) -> None:
        require_positive("plan.gpu", **{name: value for name, value in vars(self).items() if name != "name"})


@dataclass
class PlanConfig:
    """The assumptions of `tokenbridge plan`. They are never stage parameters, because no stage computes with them."""

    gpu: GpuConfig
    mfu: float  # share of the peak that a GPU reaches while it computes
    reserve: float  # share of a GPU's memory for CUDA, communication and fragments
    network: float  # GB/s, one way, of all network cards of a node together
    disk: float  # GB/s, of the disk that holds checkpoints and training data
    currency: str
    train_images: dict[str, int]  # data.name -> number of training images

    def __post_init__(self) -> None:
        require_positive("plan", network=self.network, disk=self.disk, **self.train_images)
        require_between("plan", 0.0, 0.9, reserve=self.reserve)
        require(0 < self.mfu <= 1, f"plan.mfu is {self.mfu}: it must lie in (0, 1]")
