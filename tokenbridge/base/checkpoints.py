"""Checkpoints of a training: whole or absent, the same for any number of processes, free of pickle.

``<folder>/step-00001234/`` holds the tensors as safetensors, written by torch.distributed.checkpoint, each process
its part; and ``progress.json`` with all that is no tensor and the sizes of the files. A checkpoint is written aside and
renamed when it is whole. What n processes wrote, m can read.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from tokenbridge.base.distributed import PATIENCE, SINGLE_PROCESS, Processes
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import DiskFullError, is_full, read_json, write_json
from tokenbridge.base.straight_writer import StraightWriter

PROGRESS = "progress.json"
FAILURES = (Exception, CheckpointException)  # torch's own is no Exception
PREFIX, UNFINISHED = "step-", ".unfinished-"
LONGEST = 30 * 60.0  # seconds between two, whatever one costs, unless more are set
# that one process is alone, which torch is told; checkpoints are written in a thread, so for all of the process
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


class Stateful(Protocol):
    """Named tensors that are the state itself, such as a module's: loading fills them in place."""

    def state_dict(self) -> dict[str, Any]: ...


State = Mapping[str, Stateful | torch.optim.Optimizer]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer keeps, as ``<parameter>/<slot>``; its groups must know the parameters' names."""
    named = _named_parameters(optimizer)
    return {
        f"{name}/{slot}": value
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def make_room(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give a fresh optimizer the tensors that it will load, by their names and what was noted of them."""
    named = _named_parameters(optimizer)
    for key, tensor in saved.items():
        assert isinstance(tensor, TensorStorageMetadata)
        name, slot = key.rsplit("/", 1)
        parameter = named[name]
        like_it = tensor.size == parameter.shape
        blank = torch.zeros_like(parameter) if like_it else torch.zeros(tensor.size, dtype=tensor.properties.dtype)
        optimizer.state[parameter][slot] = blank.detach()


def _named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    return {name: each for group in groups for name, each in zip(group["param_names"], group["params"], strict=True)}


def live_tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a training's state, the very tensors, as ``<part>/<name>``."""
    return {
        f"{part}/{name}": tensor
        for part, each in state.items()
        for name, tensor in (
            optimizer_tensors(each) if isinstance(each, torch.optim.Optimizer) else each.state_dict()
        ).items()
    }


class Pace:
    """When the next checkpoint is due, by how long the last one made the training stand still.

    Args:
        least: seconds of training between two, at least.
        share: of the time, that standing still may take: the training runs 1 / ``share`` times as long between.
    """

    def __init__(self, least: float, share: float, now: Callable[[], float] = time.monotonic) -> None:
        self.least, self.share, self.now = least, share, now
        self.stood = 0.0  # for the last one: while it was copied, then while it was let count
        self.running_since = now()  # later by what it stood still since then

    @property
    def due(self) -> bool:
        gap = max(self.least, min(self.stood / self.share, LONGEST))
        return self.now() - self.running_since >= gap

    @contextmanager
    def standing_still(self, *, saving: bool) -> Iterator[None]:
        """Time what the training waits for: the beginning of a checkpoint, or the rest of the last one."""
        began = self.now()
        yield
        ended = self.now()
        self.stood = ended - began + (0.0 if saving else self.stood)
        self.running_since = ended if saving else self.running_since + ended - began


class Checkpoints:
    """The checkpoints of one training.

    Args:
        keep: the newest so many stay.
        keep_every: and the first one of every so many steps; 0: none.
    """

    def __init__(
        self, folder: Path, processes: Processes = SINGLE_PROCESS, *, keep: int = 2, keep_every: int = 0
    ) -> None:
        self.folder, self.processes, self.keep, self.keep_every = folder, processes, keep, keep_every
        # its collectives run beside those of the training, in a thread of their own
        self._group: dist.ProcessGroup | None = None
        if processes.world > 1:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._saving: Future[Any] | None = None
        self._unpublished: tuple[Path, dict[str, Any]] | None = None

    def load(self, state: State) -> dict[str, Any] | None:
        """Fill ``state`` from the newest whole checkpoint; its progress, or None if there is no checkpoint.

        Raises:
            CheckpointError: if it does not hold just this state.
        """
        newest = self.processes.broadcast(self.newest())
        if newest is None:
            return None
        reader = HuggingFaceStorageReader(str(newest))
        saved = reader.read_metadata().state_dict_metadata
        for part, each in state.items():
            if isinstance(each, torch.optim.Optimizer):
                here = [key for key in saved if key.startswith(f"{part}/")]
                make_room(each, {key.removeprefix(f"{part}/"): saved[key] for key in here})
        tensors = live_tensors(state)
        if unlike := tensors.keys() ^ saved.keys():
            raise CheckpointError(f"{newest} does not fit this training ({sorted(unlike)[0]}): delete {self.folder}")
        load(tensors, storage_reader=reader, no_dist=self.processes.world == 1)
        return dict(read_json(newest / PROGRESS)["progress"])

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Copy the state, and write it as a checkpoint while the training goes on.

        Raises:
            CheckpointError, DiskFullError: if this one, or the one before, cannot be written; earlier ones stay whole.
        """
        self.finish()
        aside = self.folder / f"{UNFINISHED}{step:08d}"
        if self.processes.first:
            for left in self.folder.glob(f"{UNFINISHED}*"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        self._unpublished = aside, json.loads(json.dumps(progress))  # as it is now; written later, it may have moved on
        tensors = self._own(live_tensors(state))
        try:
            alone = self._group is None
            saving = async_save(tensors, storage_writer=StraightWriter(aside), process_group=self._group, no_dist=alone)
            assert isinstance(saving, Future)
            self._saving = saving
        except FAILURES as error:
            raise self._failure(error) from error

    @property
    def writing(self) -> bool:
        """Whether this process is writing one, which the next would have to wait for."""
        return self._saving is not None and not self._saving.done()

    def publish_finished(self) -> None:
        """Let a checkpoint count as soon as it is written; called now and then, by any process."""
        if not self.writing:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
            if self.processes.first:
                self._publish()
        except FAILURES as error:
            raise self._failure(error) from error

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole."""
        return next((path for path in map(self._path, reversed(self.steps())) if _is_whole(path)), None)

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, oldest first."""
        return sorted(int(path.name.removeprefix(PREFIX)) for path in self.folder.glob(f"{PREFIX}*"))

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process writes: its shards, and its share of what all have alike, contiguous for safetensors."""
        chosen = {
            name: tensor
            for number, (name, tensor) in enumerate(tensors.items())
            if isinstance(tensor, DTensor) or number % self.processes.world == self.processes.rank
        }
        return {name: tensor.contiguous() for name, tensor in chosen.items()}

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def _publish(self) -> None:
        assert self._unpublished is not None
        aside, progress = self._unpublished
        files = {path.name: path.stat().st_size for path in aside.iterdir()}
        write_json(aside / PROGRESS, {"progress": progress, "files": files})
        target = self.folder / aside.name.replace(UNFINISHED, PREFIX)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        aside.rename(target)
        steps = self.steps()
        for step in set(steps) - self._kept(steps):
            shutil.rmtree(self._path(step))

    def _kept(self, steps: list[int]) -> set[int]:
        landmarks: dict[int, int] = {}
        if self.keep_every:
            for step in steps:
                landmarks.setdefault(step // self.keep_every, step)
        return {*steps[-self.keep :], *landmarks.values()}

    def _failure(self, error: BaseException) -> UserError:
        if isinstance(error, CheckpointException):  # of some processes; one will do
            error = next(iter(error.failures.values()))[0]
        full = is_full(self.folder, error)
        if self._unpublished is not None:
            shutil.rmtree(self._unpublished[0], ignore_errors=True)
        if full:
            return DiskFullError(self.folder)
        kept = ", ".join(f"{step:,}" for step in self.steps()) or "none"
        return CheckpointError(
            f"a checkpoint could not be written to {self.folder} ({type(error).__name__}: {error}). Those of these "
            f"steps are whole: {kept}. See that the folder can be written, and repeat: the work goes on from there"
        )


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill ``tensors`` from the checkpoint at ``path``, which may hold more of them; its progress.

    Raises:
        CheckpointError: if it lacks one of them, or a training removed it meanwhile.
    """
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
        return dict(read_json(path / PROGRESS)["progress"])
    except FAILURES as error:
        if not path.exists():
            raise CheckpointError(f"{path} was removed while it was read, for a newer one: repeat") from error
        raise CheckpointError(f"{path} cannot be read as this model ({type(error).__name__}: {error})") from error


def _is_whole(path: Path) -> bool:
    try:
        files: dict[str, int] = read_json(path / PROGRESS)["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False
