"""Checkpoints of a training."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenbridge.base.checkpoints import (
    LONGEST,
    PREFIX,
    PROGRESS,
    CheckpointError,
    Checkpoints,
    Pace,
    State,
    live_tensors,
)
from tokenbridge.base.files import read_json, write_json
from tokenbridge.engine.ema import Ema
from tokenbridge.engine.optim import build_optimizers, update_weights


def training(seed: int, steps: int, width: int = 3) -> State:
    """The state of a small model after so many steps with both optimizers, one kernel channels-last."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(), nn.Linear(width, 1)).to(
        memory_format=torch.channels_last
    )
    optimizers = build_optimizers(
        model,
        kind="muon",
        learning_rate=0.1,
        muon_learning_rate=0.02,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        is_matrix=lambda name, parameter: parameter.ndim == 4,
    )
    ema = Ema(model, 0.5, warmup=True)
    for step in range(steps):
        loss = model(torch.randn(4, 2, 3, 3)).square().mean()
        loss.backward()
        update_weights(loss, model, list(optimizers.values()), factor=1.0, clip_norm=1.0, step=step)
        ema.update(model)
    return {"model": model, "ema": ema, **optimizers}


def save(checkpoints: Checkpoints, step: int, state: State, /, **progress: object) -> None:
    """To the end."""
    checkpoints.save(step, state, progress)
    checkpoints.finish()


def test_a_fresh_training_takes_up_all_of_another(tmp_path: Path) -> None:
    trained, fresh = training(0, steps=3), training(1, steps=0)
    save(Checkpoints(tmp_path), 3, trained, step=3, loss=0.1 + 0.2)
    assert Checkpoints(tmp_path).load(fresh) == {"step": 3, "loss": 0.1 + 0.2}
    ours, theirs = live_tensors(fresh), live_tensors(trained)
    assert ours.keys() == theirs.keys()
    assert {"adamw/2.weight/exp_avg", "adamw/2.weight/step", "muon/0.weight/momentum", "ema/updates"} < ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_optimizer_that_has_not_begun_stays_so(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 0, training(0, steps=0))
    fresh = training(1, steps=0)
    Checkpoints(tmp_path).load(fresh)
    assert not [name for name in live_tensors(fresh) if name.startswith(("adamw", "muon"))]


def test_where_there_is_none_nothing_is_loaded(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load(training(0, 0)) is None


def test_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1, training(0, steps=1))
    assert {path.suffix for path in tmp_path.glob(f"{PREFIX}*/*")} == {".safetensors", ".json"}


def test_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save(checkpoints, step, training(0, steps=step), step=step)
    newest = tmp_path / f"{PREFIX}{2:08d}"
    damaged = next(newest.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert Checkpoints(tmp_path).load(training(1, 0)) == {"step": 1}
    save(checkpoints, 2, training(0, steps=2), step=2)  # and made again
    assert Checkpoints(tmp_path).load(training(1, 0)) == {"step": 2}


def test_what_is_saved_is_the_state_of_that_moment_whatever_comes_while_it_is_written(tmp_path: Path) -> None:
    checkpoints, model = Checkpoints(tmp_path), nn.Linear(300, 300)
    before = model.weight.detach().clone()
    progress = {"losses": [1.0]}
    checkpoints.save(1, {"model": model}, progress)
    with torch.no_grad():
        model.weight.zero_()
    progress["losses"].append(2.0)
    checkpoints.finish()
    fresh = nn.Linear(300, 300)
    assert Checkpoints(tmp_path).load({"model": fresh}) == {"losses": [1.0]}
    assert torch.equal(fresh.weight, before)


def test_another_models_is_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1, {"model": nn.Linear(1, 1)})
    with pytest.raises(CheckpointError, match="does not fit this training"):
        Checkpoints(tmp_path).load({"model": nn.Linear(1, 1), "ema": Ema(nn.Linear(1, 1), 0.5, warmup=True)})


def test_one_that_cannot_be_written_leaves_the_others_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, training(0, steps=1), step=1)
    (tmp_path / f".unfinished-{2:08d}").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"could not be written to .* Those of these steps are whole: 1\."):
        save(checkpoints, 2, training(0, steps=2), step=2)
    assert Checkpoints(tmp_path).load(training(1, 0)) == {"step": 1}


@settings(max_examples=20, derandomize=True)
@given(
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=12, unique=True).map(sorted),
    keep=st.integers(1, 4),
    every=st.integers(0, 50),
)
def test_the_newest_and_the_landmarks_stay(
    steps: list[int], keep: int, every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("kept"), keep=keep, keep_every=every)
    state: State = {"model": nn.Linear(1, 1)}
    for step in steps:
        save(checkpoints, step, state, step=step)
    landmarks = {min(step for step in steps if step // every == other // every) for other in steps if every}
    assert set(checkpoints.steps()) == landmarks | set(steps[-keep:])


def test_its_manifest_tells_the_sizes_of_its_files(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 7, training(0, steps=1))
    folder = tmp_path / f"{PREFIX}{7:08d}"
    files = read_json(folder / PROGRESS)["files"]
    assert files == {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


class Clock:
    """Stands still unless it is moved on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def until_due(self, pace: Pace) -> float:
        """Let it go on until a checkpoint is due; the seconds that it took."""
        began = self.seconds
        while not pace.due:
            self.seconds += 1
        return self.seconds - began

    def stand_still(self, pace: Pace, seconds: float, *, saving: bool = True) -> None:
        with pace.standing_still(saving=saving):
            self.seconds += seconds


def damaged_in_every_way(folder: Path) -> None:
    """Leave newer checkpoints than the whole one of step 1 in ``folder``: copies of it, each damaged in another way."""
    whole = folder / f"{PREFIX}{1:08d}"
    weights = next(whole.glob("*.safetensors")).name
    flipped = bytearray((whole / weights).read_bytes())
    flipped[-1] ^= 1
    progress = (whole / PROGRESS).read_text()
    damages = [
        (weights, bytes(flipped)),
        (weights, bytes(len(flipped))),
        (weights, b"\xff" * 8 + bytes(flipped[8:])),
        (weights, b""),
        (PROGRESS, progress.replace('"step": 1', '"step": 7').encode()),
        *[(PROGRESS, damage) for damage in (b"", b"[]", b"null", b"{}", b'{"files": {}}', b"[" * 100_000, b"\xff\xfe")],
    ]
    for step, (name, content) in enumerate(damages, 2):
        newer = shutil.copytree(whole, folder / f"{PREFIX}{step:08d}")
        (newer / name).write_bytes(content)
    (folder / f"{PREFIX}{90:08d}").touch()  # a file
    for name in (
        "step-abc",
        "step-",
        "step-5",
        "step-00000077.old",
        "step-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661",
    ):
        (folder / name).mkdir()


def test_whatever_is_damaged_is_set_aside_and_never_pushes_out_a_whole_one(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1, training(0, steps=1), step=1)
    damaged_in_every_way(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() == tmp_path / f"{PREFIX}{1:08d}"
    fresh = training(1, 0)
    assert checkpoints.load(fresh) == {"step": 1}
    save(checkpoints, 2, fresh, step=2)
    assert checkpoints.steps() == [1, 2]
    assert (tmp_path / "damaged-step-00000002").is_dir()


@settings(max_examples=40, derandomize=True)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    save(Checkpoints(folder), 1, {"model": nn.Linear(2, 2)}, step=1, losses=[0.1 + 0.2])
    path = data.draw(st.sampled_from(sorted(folder.glob("*/*"))))
    before, content = read_json(next(folder.glob(f"*/{PROGRESS}"))), bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = Checkpoints(folder).newest()
    assert found is None or (path.name == PROGRESS and read_json(path) == before)  # such as a space for a line's end


@pytest.mark.parametrize("damage", [b"", bytes(2_000), None])
def test_one_of_version_0_1_has_no_digests_and_is_read_if_its_files_are_whole(
    tmp_path: Path, damage: bytes | None
) -> None:
    save(Checkpoints(tmp_path), 3, training(0, steps=3), step=3)
    folder = tmp_path / f"{PREFIX}{3:08d}"
    if damage is not None:
        next(folder.glob("*.safetensors")).write_bytes(damage)
    files = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    write_json(folder / PROGRESS, {"progress": {"step": 3}, "files": files})
    assert Checkpoints(tmp_path).load(training(1, 0)) == ({"step": 3} if damage is None else None)


@pytest.mark.parametrize(
    ("stood", "apart"),
    [
        (0.0, 20),  # costs nothing: the least
        (0.25, 20),
        (2.0, 100),  # 50 times as long
        (12.0, 600),
        (100.0, LONGEST),  # so much is lost at most by a kill
    ],
)
def test_the_next_one_is_due_after_50_times_what_the_last_one_cost(stood: float, apart: float) -> None:
    clock = Clock()
    pace = Pace(20, 0.02, clock)
    assert clock.until_due(pace) == 20
    clock.stand_still(pace, stood)
    assert clock.until_due(pace) == apart


def test_what_stands_still_after_it_is_counted_and_is_no_training() -> None:
    clock = Clock()
    pace = Pace(20, 0.02, clock)
    clock.stand_still(pace, 1)
    clock.seconds += 10
    clock.stand_still(pace, 3, saving=False)
    assert clock.until_due(pace) == (1 + 3) * 50 - 10


def test_only_the_last_one_counts() -> None:
    clock = Clock()
    pace = Pace(20, 0.02, clock)
    clock.stand_still(pace, 30)
    clock.stand_still(pace, 1)
    assert clock.until_due(pace) == 50


def test_more_seconds_apart_than_half_an_hour_are_kept() -> None:
    clock = Clock()
    assert clock.until_due(Pace(2 * LONGEST, 0.02, clock)) == 2 * LONGEST


@given(costs=st.lists(st.floats(0.01, 36), min_size=1, max_size=20))
def test_no_more_than_its_share_of_the_time_is_lost(costs: list[float]) -> None:
    """As long as one takes less than 2 % of half an hour."""
    clock = Clock()
    pace = Pace(20, 0.02, clock)
    for cost in costs:
        clock.stand_still(pace, cost)
        clock.until_due(pace)
    assert sum(costs) <= 0.02 * clock.seconds


def test_a_large_state_costs_little(tmp_path: Path) -> None:
    """Of 300 MB, the copy and the wait for its publication; the clock of the training jumps instead of training."""
    state = {"model": nn.ModuleList([nn.Linear(1024, 1024) for _ in range(72)])}
    checkpoints, jumped = Checkpoints(tmp_path), 0.0
    pace = Pace(0.01, 0.02, lambda: time.monotonic() + jumped)
    stood = 0.0
    for step in range(1, 4):
        began = time.monotonic()
        with pace.standing_still(saving=True):
            checkpoints.save(step, state, {})
        stood += time.monotonic() - began
        while checkpoints.writing:
            time.sleep(0.001)  # the training would go on
        began = time.monotonic()
        with pace.standing_still(saving=False):
            checkpoints.publish_finished()
        stood += time.monotonic() - began
        while not pace.due:
            jumped += 0.01
    assert checkpoints.steps() == [2, 3]
    assert stood <= 0.03 * (jumped + stood)
