"""Checks of settings."""

from collections.abc import Sequence

from tokenbridge.base.errors import UserError

AUTO, BF16, FP32 = "auto", "bf16", "fp32"
PRECISIONS = (AUTO, BF16, FP32)  # auto: bf16 where the device computes it in hardware, else fp32
OPTIMIZERS = ("adamw", "muon")


class ConfigError(UserError):
    """A setting that cannot work; the message names it and says what to change."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, f"{name} is {value!r}: choose one of {', '.join(choices)}")


def require_positive(group: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{group}.{name} is {value}: it must be greater than 0")


def require_between(group: str, low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        require(low <= value <= high, f"{group}.{name} is {value}: it must lie in [{low}, {high}]")
