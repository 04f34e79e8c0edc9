"""Checkpoints of a training: whole or absent, readable by any number of processes, without pickle.

``<folder>/step-00001234/`` holds the tensors as safetensors. torch.distributed.checkpoint writes them, and each process
writes its part. ``progress.json`` holds the values that are not tensors, the sizes and digests of the files, and a
digest of itself. A checkpoint is written aside and renamed when it is whole. It is read only if all digests are right.
A checkpoint that n processes wrote can be read by m processes.
"""

import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from tokenbridge.base.distributed import PATIENCE, SINGLE_PROCESS, Processes
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import DiskFullError, is_full, publish, read_json, sha256_file, sha256_json, write_json
from tokenbridge.base.straight_writer import StraightWriter

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
FAILURES = (Exception, CheckpointException)  # CheckpointException is a BaseException, not an Exception
PREFIX, UNFINISHED, DAMAGED = "step-", ".unfinished-", "damaged-"
DIGESTS, DIGEST = "sha256", "digest"  # in PROGRESS: of the files, and of the rest of PROGRESS; 0.1 wrote neither
LONGEST = 30 * 60.0  # the most seconds of training between checkpoints, unless Pace.least is more


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


class Stateful(Protocol):
    """An object whose named tensors are the state itself, such as a module: loading fills them in place."""

    def state_dict(self) -> dict[str, Any]: ...


State = Mapping[str, Stateful | torch.optim.Optimizer]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as ``<parameter>/<slot>``; its groups must hold the parameters' names."""
    named = _named_parameters(optimizer)
    return {
        f"{name}/{slot}": value
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def make_room(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give a fresh optimizer blank tensors to load into; ``saved`` is name -> metadata of the saved tensors."""
    named = _named_parameters(optimizer)
    for key, tensor in saved.items():
        assert isinstance(tensor, TensorStorageMetadata)
        name, slot = key.rsplit("/", 1)
        parameter = named[name]
        like_it = tensor.size == parameter.shape
        # a fused optimizer counts its steps on the parameter's device, any other on the CPU
        place = parameter.device if optimizer.defaults.get("fused") else None
        kind = tensor.properties.dtype
        blank = torch.zeros_like(parameter) if like_it else torch.zeros(tensor.size, dtype=kind, device=place)
        optimizer.state[parameter][slot] = blank.detach()


def _named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    return {name: each for group in groups for name, each in zip(group["param_names"], group["params"], strict=True)}


def live_tensors(state: State) -> dict[str, Tensor]:
    """Return every tensor of a training's state as ``<part>/<name>``: the tensors themselves, not copies."""
    return {
        f"{part}/{name}": tensor
        for part, each in state.items()
        for name, tensor in (
            optimizer_tensors(each) if isinstance(each, torch.optim.Optimizer) else each.state_dict()
        ).items()
    }


class Pace:
    """The time of the next checkpoint, from how long the last one made the training stand still.

    Args:
        least: the least seconds of training between two checkpoints.
        share: the share of the time that the training may stand still. After it stood still for a checkpoint, it runs
            1 / ``share`` times as long.
    """

    def __init__(self, least: float, share: float, now: Callable[[], float] = time.monotonic) -> None:
        self.least, self.share, self.now = least, share, now
        self.stood = 0.0  # seconds for the last checkpoint: while it was copied, then while it was published
        self.running_since = now()  # moved on by the time that the training stood still since then

    @property
    def due(self) -> bool:
        gap = max(self.least, min(self.stood / self.share, LONGEST))
        return self.now() - self.running_since >= gap

    @contextmanager
    def standing_still(self, *, saving: bool) -> Iterator[None]:
        """Time how long the training waits for the start of a checkpoint, or for the end of the last one."""
        began = self.now()
        yield
        ended = self.now()
        self.stood = ended - began + (0.0 if saving else self.stood)
        self.running_since = ended if saving else self.running_since + ended - began


class Checkpoints:
    """The checkpoints of one training.

    Args:
        keep: the number of newest checkpoints that stay.
        keep_every: the first checkpoint in every ``keep_every`` steps stays too; 0: none.
    """

    def __init__(
        self, folder: Path, processes: Processes = SINGLE_PROCESS, *, keep: int = 2, keep_every: int = 0
    ) -> None:
        self.folder, self.processes, self.keep, self.keep_every = folder, processes, keep, keep_every
        # torch warns that it assumes a single process, even if no_dist says so. Checkpoints are written in a thread,
        # so that warnings.catch_warnings is not safe: the filter is for the whole process, from here on.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        # its collectives run in a thread of their own, at the same time as those of the training
        group = dist.new_group(backend="gloo", timeout=PATIENCE) if processes.world > 1 else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._saving: tuple[Future[Any], StraightWriter, dict[str, Any]] | None = None  # of the newest checkpoint

    def load(self, state: State) -> dict[str, Any] | None:
        """Fill ``state`` from the newest whole checkpoint. Return its progress, or None if there is no checkpoint.

        Damaged checkpoints that are newer are set aside: otherwise they would count as the newest, which are kept.

        Raises:
            CheckpointError: if the checkpoint does not hold exactly this state.
        """
        newest = self.processes.broadcast(self._set_damaged_aside() if self.processes.first else None)
        if newest is None:
            return None
        try:
            return self._load(newest, state)
        except FAILURES as error:
            raise CheckpointError(
                f"{newest} does not fit this training ({_named(error)}): delete {self.folder}"
            ) from error

    def _load(self, path: Path, state: State) -> dict[str, Any]:
        reader = HuggingFaceStorageReader(str(path))
        saved = reader.read_metadata().state_dict_metadata
        for part, each in state.items():
            if isinstance(each, torch.optim.Optimizer):
                here = [key for key in saved if key.startswith(f"{part}/")]
                make_room(each, {key.removeprefix(f"{part}/"): saved[key] for key in here})
        tensors = live_tensors(state)
        if unlike := tensors.keys() ^ saved.keys():
            raise KeyError(sorted(unlike)[0])
        load(tensors, storage_reader=reader, no_dist=self.processes.world == 1)
        return dict(read_json(path / PROGRESS)["progress"])

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Copy the state, and write the copy as a checkpoint while the training goes on.

        Raises:
            CheckpointError, DiskFullError: if this checkpoint or the last cannot be written; earlier ones stay whole.
        """
        self.finish()
        writer = StraightWriter(self.folder / f"{UNFINISHED}{step:08d}")
        if self.processes.first:
            for left in self.folder.glob(f"{UNFINISHED}*"):  # left by a killed process
                shutil.rmtree(left, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        tensors, alone = self._own(live_tensors(state)), self._group is None
        try:
            saving = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=alone)
        except FAILURES as error:
            raise self._failure(error, writer.folder) from error
        copied = json.loads(json.dumps(progress))  # it may change before it is written
        self._saving = cast(Future[Any], saving), writer, copied

    @property
    def writing(self) -> bool:
        """Whether this process is still writing a checkpoint. The next checkpoint would have to wait for it."""
        return self._saving is not None and not self._saving[0].done()

    def publish_finished(self) -> None:
        """Publish the checkpoint if it is written. Every process may call this at any time."""
        if not self.writing:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and publish it."""
        if self._saving is None:
            return
        (saving, writer, progress), self._saving = self._saving, None
        try:
            saving.result()
            if self.processes.first:
                self._publish(writer, progress)
        except FAILURES as error:
            raise self._failure(error, writer.folder) from error

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole."""
        return next((path for path in map(self._path, reversed(self.steps())) if _is_whole(path)), None)

    def _set_damaged_aside(self) -> Path | None:
        """Rename the damaged checkpoints that are newer than the newest whole one, which is returned."""
        newest = self.newest()
        for path in map(self._path, reversed(self.steps())):
            if path == newest:
                break
            aside = path.with_name(f"{DAMAGED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.info(f"{path} is damaged and now called {aside.name}: continuing from {newest or 'the beginning'}")
        return newest

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that exist, oldest first."""
        found = (re.fullmatch(rf"{PREFIX}([0-9]{{8}}|[1-9][0-9]{{8,17}})", path.name) for path in self.folder.glob("*"))
        return sorted(int(match[1]) for match in found if match)

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what this process writes: its shards, and its share of the tensors that all processes hold alike.

        The tensors are contiguous, as safetensors requires.
        """
        return {
            name: tensor.contiguous()
            for number, (name, tensor) in enumerate(tensors.items())
            if isinstance(tensor, DTensor) or number % self.processes.world == self.processes.rank
        }

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def _publish(self, writer: StraightWriter, progress: dict[str, Any]) -> None:
        aside = writer.folder
        files = {path.name: path.stat().st_size for path in aside.iterdir()}
        content = {"progress": progress, "files": files, DIGESTS: writer.digests}
        write_json(aside / PROGRESS, content | {DIGEST: sha256_json(content)})
        target = self.folder / aside.name.replace(UNFINISHED, PREFIX)
        shutil.rmtree(target, ignore_errors=True)  # a damaged checkpoint of the same step
        publish(aside, target)
        steps = self.steps()
        for step in set(steps) - self._kept(steps):
            shutil.rmtree(self._path(step))

    def _kept(self, steps: list[int]) -> set[int]:
        landmarks: dict[int, int] = {}
        if self.keep_every:
            for step in steps:
                landmarks.setdefault(step // self.keep_every, step)
        return {*steps[-self.keep :], *landmarks.values()}

    def _failure(self, error: BaseException, aside: Path) -> UserError:
        full = is_full(self.folder, _cause(error))
        shutil.rmtree(aside, ignore_errors=True)
        if full:
            return DiskFullError(self.folder)
        kept = ", ".join(f"{step:,}" for step in self.steps()) or "none"
        return CheckpointError(
            f"a checkpoint could not be written to {self.folder} ({_named(error)}). Those of these "
            f"steps are whole: {kept}. See that the folder can be written, and repeat: the work goes on from there"
        )


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill ``tensors`` from the checkpoint at ``path``, which may hold more tensors. Return its progress.

    Raises:
        CheckpointError: if the checkpoint lacks one of the tensors, or if a training removed it meanwhile.
    """
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
        return dict(read_json(path / PROGRESS)["progress"])
    except FAILURES as error:
        if not path.exists():
            raise CheckpointError(f"{path} was removed while it was read, for a newer one: repeat") from error
        raise CheckpointError(f"{path} cannot be read as this model ({_named(error)})") from error


def _cause(error: BaseException) -> BaseException:
    """Return one error of those that the processes had, if torch gathered them."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _named(error: BaseException) -> str:
    cause = _cause(error)
    return f"{type(cause).__name__}: {cause}"


def _is_whole(path: Path) -> bool:
    """Return whether a checkpoint is what was written. One of version 0.1, without digests, must have whole files."""

    def is_right(name: str) -> bool:
        with safe_open(path / name, "pt"):  # raises if the header does not fit the file
            pass
        return (path / name).stat().st_size == files[name] and digests.get(name) in (None, sha256_file(path / name))

    try:
        content = read_json(path / PROGRESS)
        digest, files, digests = content.pop(DIGEST, None), content["files"], content.get(DIGESTS, {})
        signed = digest == sha256_json(content) if digests or digest else isinstance(content["progress"], dict)
        with ThreadPoolExecutor() as pool:
            return bool(signed and files) and all(pool.map(is_right, files))
    except Exception:  # whatever damage raises
        return False
