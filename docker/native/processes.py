"""Services as processes: started with a log, found again by a later command, stopped with all that they started."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from native import postgres
from native.services import Service
from native.settings import CHECKOUT, SECRETS, Settings
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json

TAIL = 15  # lines of a log that a message shows
POLL = 0.1  # seconds
RUNS_FLOWS = "worker"
LAST_WORDS = 20  # seconds for flows to stop their stages and tell the server
BURIED_WITHIN = 10  # seconds until what was killed must be gone
# programs read these, and the user's own may point elsewhere
NOT_INHERITED = ("AWS_", "MLFLOW_", "PG", "POSTGRES_", "PREFECT_")


@dataclass(frozen=True)
class Running:
    """A service's process, and the ports that it was started with."""

    process: psutil.Process
    ports: Mapping[str, int]


def environment(service: Service) -> dict[str, str]:
    """The service's variables over those of this process that do not concern it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    path = [str(Path(sys.executable).parent), str(postgres.program_folder()), os.environ["PATH"]]
    return {**inherited, "PATH": os.pathsep.join(path), **service.environment}


def log_path(name: str, settings: Settings) -> Path:
    return settings.home / "logs" / f"{name}.log"


def note_path(name: str, settings: Settings) -> Path:
    return settings.home / "running" / f"{name}.json"


def tail(name: str, settings: Settings) -> str:
    """Where the log is, and its last lines."""
    path = log_path(name, settings)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"{path} ends so:", *(f"    {line}" for line in lines)])


def require_free_ports(service: Service, settings: Settings) -> None:
    """Raise a UserError that names the setting of a port that another program has."""
    for name, port in service.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no reason
            try:
                probe.bind(("", port))
            except OSError as error:
                raise UserError(
                    f"{service.name} cannot have port {port} ({error.strerror}): end the program that has it, "
                    f"or set {name} to another, for good in {settings.home / SECRETS}"
                ) from error


def start(service: Service, settings: Settings) -> Running:
    """Start the service, which outlives this command; it is not healthy yet."""
    log = log_path(service.name, settings)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            service.command,
            env=environment(service),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **(postgres.account() if service.name == postgres.SERVICE else {}),
        )
    found = psutil.Process(process.pid)
    note = {"pid": found.pid, "created": found.create_time(), "ports": dict(service.ports)}
    write_json(note_path(service.name, settings), note)
    return Running(found, service.ports)


def running(name: str, settings: Settings) -> Running | None:
    """What an earlier ``start`` made of the service, if it lives."""
    path = note_path(name, settings)
    if not path.exists():
        return None
    note = read_json(path)
    try:
        process = psutil.Process(note["pid"])
        same = process.create_time() == note["created"]  # else the number is another's by now
    except psutil.NoSuchProcess:
        return None
    return Running(process, note["ports"]) if same and lives(process) else None


def lives(process: psutil.Process) -> bool:
    """Not ended: a zombie has, though nobody has asked yet what became of it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def healthy(service: Service) -> bool:
    checked = subprocess.run(service.check, env=environment(service), capture_output=True, check=False)
    return not checked.returncode


def stop(service: Service, settings: Settings) -> bool:
    """End the service and all that it started, if need be by killing. False if it did not run."""
    found = running(service.name, settings)
    if found is not None:
        main = found.process
        if service.name == RUNS_FLOWS:  # flows end well only while the worker takes their last words
            flows = set(main.children())
            send(flows, signal.SIGTERM)
            wait_for_end(with_children(flows), LAST_WORDS)
        family = with_children({main})
        send({main}, signal.Signals[service.stop_signal])
        left = with_children(wait_for_end(family, service.grace))
        send(left, signal.SIGKILL)
        if wait_for_end(left, BURIED_WITHIN):
            raise UserError(f"{service.name} (process {main.pid}) does not end, not even killed")
    note_path(service.name, settings).unlink(missing_ok=True)
    return found is not None


def with_children(family: Set[psutil.Process]) -> set[psutil.Process]:
    found = set(family)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def send(family: Set[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def wait_for_end(family: Set[psutil.Process], patience: float) -> set[psutil.Process]:
    """Those who still live after so many seconds."""
    deadline = time.monotonic() + patience
    while (left := set(filter(lives, family))) and time.monotonic() < deadline:
        time.sleep(POLL)
    return left
