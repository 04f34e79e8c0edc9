"""Which stages of dvc.lock belong together: first -> middle -> last, and beside from first."""

from dataclasses import replace

import pytest

from tokenbridge.infra.dvc import LockedStage
from tokenbridge.infra.lineage import belong_together, stages_behind

LOCK = {
    "first": LockedStage({}, {"tokenbridge/model": "x"}, {"data": "1"}),
    "middle": LockedStage({}, {"data": "1", "tokenbridge/model": "x"}, {"model": "2"}),
    "last": LockedStage({}, {"model": "2"}, {"report": "3"}),
    "beside": LockedStage({}, {"data": "1"}, {"study": "4"}),
}


def test_the_stages_behind_one() -> None:
    assert stages_behind(LOCK, "last") == ["first", "middle", "last"]
    assert stages_behind(LOCK, "last", origin="middle") == ["middle", "last"]


@pytest.mark.parametrize("stage", LOCK)
def test_after_a_whole_run_all_belong_together(stage: str) -> None:
    assert belong_together(LOCK, stage, "middle")


def test_what_was_made_of_an_earlier_model_does_not_belong() -> None:
    lock = LOCK | {"middle": replace(LOCK["middle"], outs={"model": "another"})}
    assert not belong_together(lock, "last", "middle")
    assert belong_together(lock, "beside", "middle")


def test_new_data_part_the_model_from_its_data_but_not_from_its_report() -> None:
    lock = LOCK | {"first": replace(LOCK["first"], outs={"data": "another"})}
    lock |= {"beside": replace(LOCK["beside"], deps={"data": "another"})}
    assert not belong_together(lock, "first", "middle")
    assert not belong_together(lock, "beside", "middle")
    assert belong_together(lock, "last", "middle")


def test_new_code_that_changed_no_out_parts_nothing() -> None:
    lock = LOCK | {"first": replace(LOCK["first"], deps={"tokenbridge/model": "another"})}
    assert belong_together(lock, "first", "middle")


def test_a_stage_that_never_ran_belongs_to_nothing() -> None:
    assert not belong_together(LOCK, "never", "middle")
