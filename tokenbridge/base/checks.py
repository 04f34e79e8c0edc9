"""Checks of settings."""

from typing import Final, Literal

from tokenbridge.base.errors import UserError

Precision = Literal["auto", "bf16", "fp32"]  # auto: bf16 where the device computes it in hardware, else fp32
AUTO: Final = "auto"
BF16: Final = "bf16"
FP32: Final = "fp32"


class ConfigError(UserError):
    """A setting that cannot work; the message names it and says what to change."""


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` with the message if the condition does not hold."""
    if not condition:
        raise ConfigError(message)
