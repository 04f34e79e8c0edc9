"""Work in chunks, shared among processes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.small_model import LAUNCHER
from tokenbridge.base.chunks import THREADS, Advance, Chunk, cut, make_chunks
from tokenbridge.base.distributed import SINGLE_PROCESS, Processes


@given(count=st.integers(1, 50), size=st.integers(1, 20))
def test_chunks_hold_every_image_once(count: int, size: int) -> None:
    chunks = cut(count, size, lambda index: Path(str(index)))
    assert [image for chunk in chunks for image in chunk.span] == list(range(count))
    assert all(len(chunk.span) == size for chunk in chunks[:-1])


@given(count=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_of_a_batch_add_up_to_it_and_are_alike(count: int, world: int) -> None:
    shares = [list(range(count))[Processes(rank, world).share(count)] for rank in range(world)]
    assert [image for share in shares for image in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_what_is_missing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chunks = cut(10, 4, lambda index: tmp_path / f"chunk-{index}")
    chunks[1].path.write_text("here")
    made = []

    def make(chunk: Chunk, advance: Advance) -> None:
        made.append(chunk.index)
        chunk.path.write_text("made")
        advance(len(chunk.span))

    make_chunks("test", chunks, make, processes=SINGLE_PROCESS, launcher=LAUNCHER)
    assert made == [0, 2]
    assert chunks[1].path.read_text() == "here"
    shown = capsys.readouterr().out
    assert "test: resuming at 4 of 10 images" in shown
    assert "test: 10/10 images" in shown


def test_a_kill_leaves_nothing_among_the_files(tmp_path: Path) -> None:
    chunks = cut(10, 4, lambda index: tmp_path / "chunks" / f"chunk-{index}")
    killed = """
import os, pathlib, sys
from tokenbridge.base.files import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as target:
    target.write_text("half")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", killed, str(chunks[1].path)], check=False)
    assert len(list((tmp_path / "chunks").iterdir())) == 1, "what was written aside"

    def make(chunk: Chunk, _advance: Advance) -> None:
        chunk.path.write_text("made")

    make_chunks("test", chunks, make, processes=SINGLE_PROCESS, launcher=LAUNCHER)
    assert sorted(path.name for path in (tmp_path / "chunks").iterdir()) == ["chunk-0", "chunk-1", "chunk-2"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_process_is_not_awaited_in_a_collective_which_would_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    chunks = cut(8, 4, lambda index: tmp_path / f"chunk-{index}")
    waits = []
    monkeypatch.setattr("tokenbridge.base.chunks.LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Processes, "broadcast", lambda _, value: value)
    monkeypatch.setattr(Processes, "wait", lambda _: waits.append(all(chunk.path.exists() for chunk in chunks)))
    Timer(0.1, chunks[1 - rank].path.touch).start()  # the other process
    make_chunks("test", chunks, lambda chunk, _: chunk.path.touch(), processes=Processes(rank, 2), launcher=LAUNCHER)
    assert waits == [True]


@pytest.mark.parametrize(("threads", "used"), [(0, THREADS), (1, 1)])
def test_the_number_of_threads_does_not_hang_on_the_machine(threads: int, used: int) -> None:
    torch.set_num_threads(3)
    make_chunks("test", [], lambda *_: None, processes=SINGLE_PROCESS, launcher=replace(LAUNCHER, threads=threads))
    assert torch.get_num_threads() == used
