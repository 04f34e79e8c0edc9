"""The trial of a candidate against the champion: both are measured, and the gates decide."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tokenbridge.base.files import atomic_path
from tokenbridge.base.finite import NotFiniteError
from tokenbridge.config import Config
from tokenbridge.config.params import flatten
from tokenbridge.evaluation.features import POOLED
from tokenbridge.infra.tracking.registry import VETO, Registry, Version
from tokenbridge.ops.promotion.comparison import Difference, compare
from tokenbridge.ops.promotion.decision import PROMOTED, REFUSED, UNCHANGED, Decision
from tokenbridge.ops.promotion.figures import differences_figure, side_by_side
from tokenbridge.ops.promotion.gates import Gate, absolute_gates, finite_gate, relative_gates, veto_gate, weights_gate
from tokenbridge.ops.promotion.measurement import ACCURACY, Bench, Measurement
from tokenbridge.sampling.pipeline import TokenBridgePipeline
from tokenbridge.stages.runtime import WORK

logger = logging.getLogger(__name__)

SECONDS = "seconds_per_image"


@dataclass(frozen=True)
class Trial:
    """A candidate, the champion if there is one, and what is needed to measure them.

    Attributes:
        model: its key in params.yaml.
    """

    root: Path
    config: Config
    registry: Registry
    model: str
    candidate: Version
    champion: Version | None

    @property
    def is_champion(self) -> bool:
        return self.champion is not None and self.champion.number == self.candidate.number

    @property
    def folder(self) -> Path:
        """The folder for the decision's files."""
        against = f"-against-{self.champion.number}" if self.champion else ""
        return self.root / WORK / "promotion" / f"{self.candidate.name}-{self.candidate.number}{against}"

    def decide(self) -> Decision:
        """Decide about the candidate; measure it only if it passes the gates that need no measurement."""
        if self.is_champion:
            return self._decision([], UNCHANGED, "It is the champion already.")
        gates = [veto_gate(self.candidate.tags.get(VETO))]
        if not gates[0].passed:
            return self._decision(gates)
        bench = Bench(self.root, self.config, self.registry, self.model)
        try:
            pipeline = bench.load(self.candidate)
        except NotFiniteError as error:
            return self._decision([*gates, weights_gate(str(error))])
        return self._measure(bench, pipeline, [*gates, weights_gate()])

    def _measure(self, bench: Bench, pipeline: TokenBridgePipeline, gates: list[Gate]) -> Decision:
        versions = [version for version in (self.candidate, self.champion) if version is not None]
        pipelines = [pipeline, *(bench.load(version) for version in versions[1:])]
        measured = [bench.measure(version) for version in versions]
        limits = self.config.promotion
        found: dict[str, Difference] = {}
        if self.champion:
            least, most = limits.min_resamples, limits.resamples
            logger.info(f"promotion: resampling for {limits.seconds:g} s, {least} times at least, {most} at most")
            found = compare(measured[0].compared, measured[1].compared, bench.reference[POOLED], limits)
        seconds = bench.seconds_per_image(pipelines)
        figures = [m.metrics | {SECONDS: median(taken)} for m, taken in zip(measured, seconds, strict=True)]
        differences = {kind: difference.interval() for kind, difference in found.items()}
        candidate = measured[0]
        floors = [candidate.metrics[ACCURACY], bench.real_accuracy]
        floors += [candidate.figure("precision"), candidate.figure("recall")]
        gates = [*gates, finite_gate(figures[0] | flatten(differences)), *absolute_gates(limits, *floors)]
        settings = bench.settings_record()
        if found:
            slowdown = median(new / old for new, old in zip(*seconds, strict=True))
            gates += relative_gates(limits, found, slowdown)
            settings["resamples"] = len(found["fd"].resampled)
        return self._decision(
            gates,
            candidate_metrics=figures[0],
            champion_metrics=figures[1] if found else {},
            differences=differences,
            settings=settings,
            protocols=dict(zip(("candidate", "champion"), (m.protocol for m in measured), strict=False)),
            pictures=self._pictures(measured, found),
        )

    def _decision(self, gates: list[Gate], outcome: str = "", reason: str = "", **measured: Any) -> Decision:
        """Build the decision. Unless ``outcome`` is given, it is PROMOTED if every gate is passed, else REFUSED."""
        failed = "; ".join(gate.reason for gate in gates if not gate.passed)
        passed = "It passes every gate." if self.champion else "There was no champion, and it passes every gate."
        return Decision(
            self.candidate.name,
            self.candidate.number,
            self.champion.number if self.champion else None,
            outcome or (REFUSED if failed else PROMOTED),
            reason or failed or passed,
            gates=gates,
            **measured,
        )

    def _pictures(self, measured: Sequence[Measurement], found: Mapping[str, Difference]) -> list[Path]:
        versions = zip(("candidate", "champion"), (self.candidate, self.champion), measured, strict=False)
        shown = {f"{role}: {version}": each.picture for role, version, each in versions}
        pictures = [self.folder / "samples.png"]
        with atomic_path(pictures[0]) as target:
            side_by_side(shown).save(target, "PNG")
        if found:
            pictures.append(self.folder / "differences.png")
            with atomic_path(pictures[-1]) as target:
                differences_figure(found).savefig(target)
        return pictures
