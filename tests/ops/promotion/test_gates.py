"""Each gate against its limit, with a reason that a person can act on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tokenbridge.config import ConfigError, PromotionConfig
from tokenbridge.ops.promotion.comparison import Difference
from tokenbridge.ops.promotion.decision import REFUSED, Decision
from tokenbridge.ops.promotion.gates import Gate, absolute_gates, finite_gate, relative_gates, veto_gate

CONFIG = PromotionConfig(
    confidence=0.95,
    resamples=100,
    min_resamples=10,
    seconds=1,
    max_fd_increase=0.5,
    max_class_accuracy_decrease=0.02,
    min_class_accuracy=0.8,
    min_precision=0.5,
    min_recall=0.5,
    max_slowdown=1.2,
    timing_images=1,
    timing_rounds=1,
)


def found(fd: tuple[float, float, float], accuracy: tuple[float, float, float]) -> dict[str, Difference]:
    fd_difference, accuracy_difference = (Difference(*values, np.zeros(1)) for values in (fd, accuracy))
    return {"fd": fd_difference, "class_accuracy": accuracy_difference}


def passed(gates: list[Gate]) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in gates}


def test_the_worse_end_of_each_interval_counts() -> None:
    seemingly_better = relative_gates(CONFIG, found((-0.1, -0.9, 0.6), (0, 0, 0)), slowdown=1.0)
    assert passed(seemingly_better) == {"fd_increase": False, "class_accuracy_decrease": True, "slowdown": True}
    gates = relative_gates(CONFIG, found((0.2, -0.1, 0.5), (-0.01, -0.03, 0.01)), slowdown=1.21)
    assert passed(gates) == {"fd_increase": True, "class_accuracy_decrease": False, "slowdown": False}
    assert "-0.01 (95% interval -0.03 to +0.01), so it may have fallen by 0.03: at most 0.02" in gates[1].reason


@pytest.mark.parametrize("low", ["class_accuracy", "precision", "recall"])
def test_each_floor_holds(low: str) -> None:
    figures = {"accuracy": 0.9, "real_accuracy": 0.9, "precision": 0.6, "recall": 0.6}
    figures[low.removeprefix("class_")] = 0.3
    assert [gate.name for gate in absolute_gates(CONFIG, **figures) if not gate.passed] == [low]


def test_the_floor_of_class_accuracy_is_a_share_of_what_the_classifier_reaches_on_real_images() -> None:
    good, bad = (absolute_gates(CONFIG, accuracy, 0.25, 0.6, 0.6)[0] for accuracy in (0.21, 0.19))
    assert (good.passed, bad.passed) == (True, False)
    assert bad.reason == "class accuracy on real images is 0.25, and on samples 0.19: at least 0.2 is asked for"


def test_nan_passes_no_gate() -> None:
    gates = absolute_gates(CONFIG, *[math.nan] * 4)
    gates += relative_gates(CONFIG, found((math.nan,) * 3, (math.nan,) * 3), math.nan)
    assert not any(gate.passed for gate in gates)
    named = finite_gate({"fd": math.nan, "kid": math.inf, "recall": 0.5})
    assert (named.passed, named.value, named.reason) == (False, 2.0, "not finite: fd, kid")


def test_a_veto_gives_its_reason() -> None:
    assert veto_gate(None).passed
    assert veto_gate("anna: sneakers have three laces").reason == "vetoed: anna: sneakers have three laces"


def test_a_decision_is_json_without_nan() -> None:
    gate = absolute_gates(CONFIG, math.nan, 0.9, 0.6, 0.6)[0]
    decision = Decision(
        "m", 2, 1, REFUSED, gate.reason, False, [gate], {"fd": math.nan}, {"fd": 1.0}, {"fd": {"observed": math.inf}}
    )
    written = json.loads(decision.as_json())
    assert written["gates"][0]["value"] is None
    assert (written["candidate_metrics"], written["differences"]) == ({"fd": None}, {"fd": {"observed": None}})
    assert "pictures" not in written


def test_a_report_tells_every_gate_and_why() -> None:
    gates = absolute_gates(CONFIG, 0.9, 0.9, 0.6, 0.2)
    intervals = {"fd": {"observed": 0.25, "low": -0.1, "high": 0.6}}
    decision = Decision(
        "m", 2, 1, REFUSED, gates[2].reason, True, gates, {"fd": 6.5}, {"fd": 6.25}, intervals, {"seed": 0}
    )
    report = decision.report()
    assert "# m version 2: would be refused. recall is 0.2: at least 0.5 is asked for" in report
    rows = [" ".join(line.replace("|", " ").split()) for line in report.splitlines()]
    assert f"recall 0.2 0.5 False {gates[2].reason}" in rows
    assert "fd 6.5 6.25" in rows
    assert "fd 0.25 -0.1 0.6" in rows
    assert "seed 0" in report


@pytest.mark.parametrize(
    ("setting", "value"), [("confidence", 1.0), ("min_resamples", 200), ("seconds", 0.0), ("min_recall", math.nan)]
)
def test_settings_that_cannot_work_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} is "):
        replace(CONFIG, **{setting: value})  # type: ignore[arg-type]
