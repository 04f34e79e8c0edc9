"""The outcome of a promotion with its reasons: as data, as JSON, and in words."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenbridge.ops.promotion.gates import Gate

PROMOTED, REFUSED, UNCHANGED = "promoted", "refused", "unchanged"


@dataclass(frozen=True)
class Decision:
    """The decision about a candidate.

    Attributes:
        model: the registered model's name.
        champion: the version it was measured against; None if there was none.
        outcome: promoted | refused | unchanged (it is the champion already). In a dry run, what it would be.
        candidate_metrics, champion_metrics: the metrics of each, including seconds per image.
        differences: kind -> observed, low, high; candidate minus champion.
        settings: the settings of the comparison, with the number of resamples made.
        pictures: files with samples and differences.
    """

    model: str
    candidate: int
    champion: int | None
    outcome: str
    reason: str
    dry_run: bool
    gates: list[Gate] = field(default_factory=list)
    candidate_metrics: Mapping[str, float] = field(default_factory=dict)
    champion_metrics: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the decision for JSON, with null for NaN and infinity."""
        content: dict[str, Any] = _finite(asdict(self) | {"pictures": [picture.name for picture in self.pictures]})
        return content

    def summary(self) -> str:
        """Return the outcome and its reason in one line."""
        would = "would be " if self.dry_run else ""
        return f"{self.model} version {self.candidate}: {would}{self.outcome}. {self.reason}"

    def report(self) -> str:
        """Return the decision as Markdown, for people."""
        against = f"version {self.champion}, the champion" if self.champion else "no champion"
        parts = [f"# {self.summary()}", f"Measured against {against}.", _gates(self.gates), self._metrics()]
        if self.differences:
            parts.append(_differences(self.differences))
        if self.settings:
            told = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            parts.append(f"Both were drawn and measured with: {told}.")
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metrics(self) -> str:
        if not self.candidate_metrics:
            return ""
        rows = [
            f"| `{name}` | {value:.5g} | {_number(self.champion_metrics.get(name))} |"
            for name, value in self.candidate_metrics.items()
        ]
        return "\n".join(["| metric | candidate | champion |", "|---|---|---|", *rows])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _gates(gates: list[Gate]) -> str:
    rows = [
        f"| {gate.name} | {_number(gate.value)} | {gate.limit:g} | {'yes' if gate.passed else '**no**'} | "
        f"{gate.reason} |"
        for gate in gates
    ]
    return "\n".join(["| gate | value | limit | passed | why |", "|---|---|---|---|---|", *rows]) if gates else ""


def _differences(differences: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        f"| {name} | {d['observed']:+.4g} | {d['low']:+.4g} | {d['high']:+.4g} |" for name, d in differences.items()
    ]
    head = [
        "Candidate minus champion, by a paired bootstrap:",
        "",
        "| of | observed | low | high |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
