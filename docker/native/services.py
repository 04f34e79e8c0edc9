"""compose.yaml's services, as far as they matter without containers."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from native.settings import DOCKER, VARIABLE, Settings, interpolate

COMPOSE = DOCKER / "compose.yaml"


@dataclass(frozen=True)
class Service:
    """One service with every variable filled in.

    Args:
        check: command that ends with 0 once the service is healthy.
        patience: seconds until it must be.
        after: services that must be healthy first.
        ports: setting -> port, for all that it listens on.
        stop_signal, grace: the signal that asks it to stop, and the seconds until it is killed.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    check: Sequence[str]
    patience: float
    after: Sequence[str]
    ports: Mapping[str, int]
    stop_signal: str
    grace: float


def read_compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


def load_services(settings: Settings) -> dict[str, Service]:
    """All services by name, those that others wait for first."""
    found = {name: load_service(name, raw, settings) for name, raw in read_compose()["services"].items()}
    return dict(sorted(found.items(), key=lambda item: depth(item[0], found)))


def depth(name: str, services: Mapping[str, Service]) -> int:
    return 1 + max((depth(other, services) for other in services[name].after), default=0)


def load_service(name: str, raw: Mapping[str, Any], settings: Settings) -> Service:
    def fill(text: str) -> str:
        return interpolate(text, settings.values)

    return Service(
        name=name,
        command=shlex.split(fill(raw["command"])),
        environment={key: fill(value) for key, value in raw["environment"].items()},
        check=[fill(word) for word in raw["healthcheck"]["test"][1:]],
        patience=seconds(raw["healthcheck"]["start_period"]),
        after=list(raw.get("depends_on", {})),
        ports={setting(text): int(fill(text)) for text in raw["expose"]},
        stop_signal=raw.get("stop_signal", "SIGTERM"),
        grace=seconds(raw["stop_grace_period"]),
    )


def setting(text: str) -> str:
    """Name of the one setting that ``text`` is made of."""
    found = VARIABLE.fullmatch(text)
    if found is None:
        raise ValueError(f"{COMPOSE}: expose must name a setting, not {text}")
    return found["name"]


def seconds(text: str) -> float:
    """Compose's durations, of which this file uses whole seconds."""
    found = re.fullmatch(r"(\d+)s", text)
    if found is None:
        raise ValueError(f"{COMPOSE}: {text} is not a duration such as 30s")
    return float(found[1])
