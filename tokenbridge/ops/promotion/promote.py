"""``tokenbridge promote`` and ``tokenbridge rollback``: decide, move the aliases, and record why."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from tokenbridge.base.files import atomic_write_text
from tokenbridge.base.locks import locked
from tokenbridge.config.params import flatten, load_params
from tokenbridge.infra.tracking.live import LiveSync
from tokenbridge.infra.tracking.registry import CHAMPION, PREVIOUS, VETO, open_registry
from tokenbridge.infra.tracking.spool import Tracker
from tokenbridge.ops.promotion import PromotionError
from tokenbridge.ops.promotion.decision import PROMOTED, REFUSED, Decision
from tokenbridge.ops.promotion.gates import veto_gate
from tokenbridge.ops.promotion.measurement import settings_for_versions
from tokenbridge.ops.promotion.registration import registered_name
from tokenbridge.ops.promotion.trial import Trial
from tokenbridge.stages.runtime import WORK, only_pipeline

DECISION_TAG = "promotion"  # tag of a version: the decision about it as a candidate


def promote(
    root: Path, model: str, *, number: int | None = None, dry_run: bool = False, changes: Sequence[str] = ()
) -> Decision:
    """Measure a version of ``model`` against the champion, and make it the champion if it passes every gate.

    Args:
        model: its key in params.yaml.
        number: the version's number; None: the newest.
        dry_run: decide, and change nothing: no alias, no run.
        changes: settings for this once, such as ``promotion.max_slowdown=2``.

    Raises:
        UserError: with a message that says what to fix, before anything is measured.
    """
    config = settings_for_versions(root, model, changes)
    name = registered_name(config.data.name, model)
    with open_registry(root) as registry, only_pipeline(root), _alone(root):
        trial = Trial(root, config, registry, model, registry.version(name, number), registry.holder(name, CHAMPION))
        if dry_run or trial.is_champion:
            return replace(trial.decide(), dry_run=dry_run)
        with LiveSync(root), Tracker.open("promotion", str(trial.candidate), root) as tracker:
            decided = trial.decide()
            _record(tracker, decided, trial.folder)  # before the move, to keep the reasons if the registry fails
            decision = carry_out(trial, decided)
            if decision != decided:
                _record(tracker, decision, trial.folder)
            registry.tag(trial.candidate, {DECISION_TAG: decision.summary()})
        return decision


def carry_out(trial: Trial, decision: Decision) -> Decision:
    """Move the aliases if the candidate is promoted, unless something changed while it was measured.

    MLflow moves an alias in one transaction, but cannot make the move depend on a condition. So another machine could
    still promote between the check and the move. On this machine a lock prevents that.
    """
    if decision.outcome != PROMOTED:
        return decision
    registry, champion = trial.registry, trial.champion
    now = registry.holder(decision.model, CHAMPION)
    if (now.number if now else None) != decision.champion:
        holder = f"version {now.number}" if now else "no version"
        return replace(decision, outcome=REFUSED, reason=f"{holder} became the champion meanwhile: promote again.")
    veto = veto_gate(registry.version(decision.model, decision.candidate).tags.get(VETO))
    if not veto.passed:
        return replace(decision, outcome=REFUSED, reason=veto.reason, gates=[veto, *decision.gates[1:]])
    if champion is not None:
        registry.point(PREVIOUS, champion)  # first, so that there is a way back once the champion changes
    registry.point(CHAMPION, trial.candidate)
    return decision


def rollback(root: Path, model: str, veto: str | None = None) -> str:
    """Exchange ``champion`` and ``previous``, and return what was done, in words.

    Args:
        veto: who forbids to promote the replaced champion again, and why; None: it may be promoted again.

    Raises:
        PromotionError: if there is no way back.
    """
    name = registered_name(load_params(root).data.name, model)
    with open_registry(root) as registry, _alone(root):
        registry.version(name)  # raises if there is no such model
        champion, previous = (registry.holder(name, alias) for alias in (CHAMPION, PREVIOUS))
        if champion is None or previous is None or previous.number == champion.number:
            raise PromotionError(f"{name} has no champion before this one: nothing to go back to")
        if VETO in previous.tags:
            raise PromotionError(f"{previous} is vetoed ({previous.tags[VETO]}): remove its tag `{VETO}` first")
        done = f"{previous} is the champion again, version {champion.number} is `{PREVIOUS}`"
        with LiveSync(root), Tracker.open("rollback", str(champion), root, system_interval=0) as tracker:
            # before the moves: a failure between them leaves the replaced champion without an alias
            tracker.tags({"model": name, "outcome": done} | ({VETO: veto} if veto else {}))
            if veto is not None:
                registry.tag(champion, {VETO: veto})
            registry.point(CHAMPION, previous)
            registry.point(PREVIOUS, champion)
        return done


def _alone(root: Path) -> AbstractContextManager[None]:
    """Allow one promotion at a time: two would measure the same versions twice, and distort each other's timings."""
    folder = root / WORK / "promotion"
    return locked(folder / "lock", str(folder))


def _record(tracker: Tracker, decision: Decision, folder: Path) -> None:
    """Write the decision with its reasons to the run and to ``folder``."""
    against = "none" if decision.champion is None else str(decision.champion)
    versions = {"model": decision.model, "candidate": str(decision.candidate), "champion": against}
    tracker.tags(versions | {"outcome": decision.outcome, "reason": decision.reason})
    tracker.params(dict(decision.settings) | {"protocol": decision.protocols})
    measured = {
        "candidate": decision.candidate_metrics,
        "champion": decision.champion_metrics,
        "difference": decision.differences,
        "gate": {gate.name: gate.passed for gate in decision.gates},
    }
    tracker.metrics(flatten(measured))
    for name, text in {"decision.json": decision.as_json(), "report.md": decision.report()}.items():
        atomic_write_text(folder / name, text)
        tracker.artifact(folder / name)
    for picture in decision.pictures:
        tracker.artifact(picture)
