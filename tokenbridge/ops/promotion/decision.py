"""The outcome of a promotion with its reasons: as data, as JSON, and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

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
        protocols: what else decides the metrics of each (docs/evaluation.md).
        pictures: files with samples and differences.
    """

    model: str
    candidate: int
    champion: int | None
    outcome: str
    reason: str
    dry_run: bool = False
    gates: list[Gate] = field(default_factory=list)
    candidate_metrics: Mapping[str, float] = field(default_factory=dict)
    champion_metrics: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def as_json(self) -> str:
        """Return the decision as JSON without its pictures, with null for NaN and infinity."""
        return TypeAdapter(Decision).dump_json(self, indent=2, exclude={"pictures"}).decode() + "\n"

    def summary(self) -> str:
        """Return the outcome and its reason in one line."""
        would = "would be " if self.dry_run else ""
        return f"{self.model} version {self.candidate}: {would}{self.outcome}. {self.reason}"

    def report(self) -> str:
        """Return the decision as Markdown, for people."""
        against = f"version {self.champion}, the champion" if self.champion else "no champion"
        metrics = {"candidate": self.candidate_metrics, "champion": self.champion_metrics}
        tables = {
            "Gates:": pd.DataFrame([asdict(gate) for gate in self.gates]),
            "Metrics:": pd.DataFrame({role: found for role, found in metrics.items() if found}).rename_axis("metric"),
            "Candidate minus champion, by a paired bootstrap:": pd.DataFrame(self.differences).T,
        }
        parts = [f"# {self.summary()}", f"Measured against {against}."]
        for title, table in tables.items():
            if not table.empty:
                parts += [title, str(table.to_markdown(index=title != "Gates:", floatfmt=".5g"))]
        if self.settings:
            settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            parts.append(f"Both were drawn and measured with: {settings}.")
        return "\n\n".join(parts) + "\n"
