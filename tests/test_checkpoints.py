"""Checkpoints of a training."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tokenbridge.checkpoints import PREFIX, PROGRESS, CheckpointError, Checkpoints, State, live_tensors
from tokenbridge.ema import Ema
from tokenbridge.files import read_json
from tokenbridge.optim import build_optimizers, update_weights


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
    save(checkpoints, 2, training(0, steps=2), step=2)  # and made anew
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
