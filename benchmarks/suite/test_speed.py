"""Time, memory and operations of each case; plain and ours take turns, and must give the same."""

import statistics
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.arithmetic import count_flops, matrix_rate
from benchmarks.suite.cases import CASES, check
from tokenbridge.ops.planning.steps import HeldBytes

ROUNDS = 5


@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark: BenchmarkFixture, name: str) -> None:
    case, info = CASES[name](), benchmark.extra_info
    sides = {"ours": case.ours} | ({"plain": case.plain} if case.plain else {})
    info["images"] = case.images
    results = {}
    for side, call in sides.items():
        with HeldBytes() as held:
            flops, results[side] = count_flops(call)
        info |= {f"{side}_bytes": held.most, f"{side}_flops": flops}
    if case.plain:
        check(results["ours"], results["plain"])
    taken = []

    def time_plain() -> None:
        if case.plain:
            began = time.perf_counter()
            case.plain()
            taken.append(time.perf_counter() - began)

    benchmark.pedantic(case.ours, setup=time_plain, rounds=ROUNDS)
    if taken:
        info["plain_seconds"] = statistics.median(taken)
    info["matrix_rate"] = matrix_rate(torch.float32)
