"""Seconds, hours and bytes on their way."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.planning.conftest import composed
from tokenbridge.base.checks import BF16
from tokenbridge.ops.planning.cluster import Cluster
from tokenbridge.ops.planning.flops import Flops
from tokenbridge.ops.planning.schedule import Work, exchanged_bytes, step_of

CONFIG = composed("experiment=imagenet_l", "launcher=slurm")
RECIPE, PLAN = CONFIG.models["large"].train, CONFIG.plan
WORK = Work(needed=Flops(0.1e12, 0.4e12, 1.5e12), recomputed=Flops(0.03e12, 0.13e12, 0.5e12), parameters=10**9)
ONE = Cluster(nodes=1, gpus_per_node=1, sharded=False, accumulation=1, checkpointed=False)


def test_one_gpu_computes_and_exchanges_nothing() -> None:
    step = step_of(WORK, RECIPE, ONE, PLAN, BF16)
    assert step.compute == pytest.approx(RECIPE.batch_size * 2e12 / (312e12 * PLAN.mfu))
    assert step.exchanged == step.waiting == 0


def test_what_is_computed_again_takes_its_time() -> None:
    plain, again = (step_of(WORK, RECIPE, replace(ONE, checkpointed=flag), PLAN, BF16) for flag in (False, True))
    assert again.compute == pytest.approx(plain.compute * 2.66 / 2)


@pytest.mark.parametrize(("sharded", "passes"), [(False, 8), (True, 2 * 2 + 4)])
def test_gradients_travel_as_rings_do(sharded: bool, passes: int) -> None:
    cluster = Cluster(nodes=2, gpus_per_node=4, sharded=sharded, accumulation=1, checkpointed=False)
    assert exchanged_bytes(cluster, 1000, BF16) == pytest.approx(1000 * passes * 7 / 8)


@settings(deadline=None)
@given(nodes=st.sampled_from([1, 2, 8, 64]), network=st.floats(1, 400), sharded=st.booleans())
def test_a_step_waits_below_the_bandwidth_that_hides_the_exchange(nodes: int, network: float, sharded: bool) -> None:
    cluster = Cluster(nodes=nodes, gpus_per_node=8, sharded=sharded, accumulation=1, checkpointed=False)
    step = step_of(WORK, RECIPE, cluster, replace(PLAN, network=network), BF16)
    used = PLAN.gpu.link if nodes == 1 else min(PLAN.gpu.link, network)
    assert (step.waiting > 0) == (used < step.bandwidth)
    assert step.total >= step.compute + step.update
