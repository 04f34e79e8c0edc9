"""supervisord, which runs the stack's services: its environment, its start, its end."""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport  # type: ignore[import-untyped]

from native import postgres
from native.settings import CHECKOUT, SECRETS, Settings
from tokenbridge.base.errors import UserError

CONFIG = Path(__file__).with_name("supervisord.conf")
TAIL = 15  # lines of a log that a message shows
FLOWS_END = 20  # seconds for flows to stop their stages and tell the server
ALL_END = 150  # seconds; more than all stopwaitsecs of supervisord.conf together
# programs read these, and the user's own may point to other servers
NOT_INHERITED = ("AWS_", "MLFLOW_", "PG", "POSTGRES_", "PREFECT_")


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables of supervisord.conf, and those of this process that do not concern the services."""
    os.umask(umask := os.umask(0))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)},
        **settings.values,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), postgres.search_path()]),
        "STACK_HOME": str(settings.home),
        "STACK_CHECKOUT": str(CHECKOUT),
        "STACK_POSTGRES_USER": str(postgres.account().get("user", os.geteuid())),
        "STACK_UMASK": f"{umask:o}",
    }


def supervisor(settings: Settings) -> Any:
    """Return supervisord's XML-RPC interface. Its calls raise an OSError while supervisord does not run."""
    address = f"unix://{settings.home}/running/socket"
    return ServerProxy("http://localhost", SupervisorTransport(serverurl=address)).supervisor


def processes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what supervisord reports of each service; nothing if supervisord does not run."""
    with suppress(OSError, Fault):  # a Fault while it shuts down
        return {info["name"]: info for info in supervisor(settings).getAllProcessInfo()}
    return {}


def start_supervisor(settings: Settings) -> None:
    """Start supervisord, which outlives this command. It starts no service by itself."""
    for name in ("logs", "running"):
        (settings.home / name).mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONFIG)]
    started = subprocess.run(
        command, env=environment(settings), umask=0o077, capture_output=True, text=True, check=False
    )
    if started.returncode:
        raise UserError(
            f"supervisord does not start: {started.stderr.strip()}. If the path of its socket is too long, "
            f"set STACK_HOME to a shorter path than {settings.home}"
        )


def start(name: str, settings: Settings) -> None:
    """Tell supervisord to start a service that does not run. Its state tells whether it ended at once."""
    with suppress(Fault):
        supervisor(settings).stopProcess(name)  # a service that waits for its next try
    try:
        supervisor(settings).startProcess(name, False)
    except Fault as fault:
        if fault.faultCode != Faults.SPAWN_ERROR:  # which says that it ended before supervisord answered
            raise


def end_supervisor(settings: Settings, worker: int) -> None:
    """End all services, in the reverse order of their priority, and supervisord. Services that do not end are killed.

    Args:
        worker: the process of the worker, or 0. Its flows end first: later, no one would report their end to Prefect.
    """
    with suppress(psutil.NoSuchProcess):
        flows = psutil.Process(worker).children() if worker else []
        family = [process for flow in flows for process in [flow, *flow.children(recursive=True)]]
        for flow in flows:
            flow.terminate()
        for process in psutil.wait_procs(family, FLOWS_END)[1]:
            process.kill()
    daemon = psutil.Process(supervisor(settings).getPID())
    supervisor(settings).shutdown()
    if psutil.wait_procs([daemon], ALL_END)[1]:
        raise UserError(f"services do not end, not even killed: see {settings.home / 'logs/supervisord.log'}")


def require_same_ports(settings: Settings) -> None:
    """Raise a UserError if supervisord runs with other ports than are set now."""
    theirs = psutil.Process(supervisor(settings).getPID()).environ()
    for name, port in settings.ports("").items():
        if theirs[name] != port:
            raise UserError(f"the stack runs with {name}={theirs[name]}, and {port} is set now: make stack-down first")


def require_free_ports(name: str, settings: Settings) -> None:
    """Raise a UserError that names the setting of a service's port that another program has."""
    for setting, port in taken_ports(settings.ports({"seaweedfs": "S3_"}.get(name, f"{name.upper()}_"))).items():
        raise UserError(
            f"{name} cannot have port {port}, which is in use: end the program that has it, "
            f"or set {setting} to another port, permanently in {settings.home / SECRETS}"
        )


def taken_ports(ports: Mapping[str, str]) -> dict[str, str]:
    """Return those of the settings of ports on which a program listens."""
    taken = {link.laddr.port for link in psutil.net_connections("tcp") if link.status == psutil.CONN_LISTEN}
    return {setting: port for setting, port in ports.items() if int(port) in taken}


def tail(name: str, settings: Settings) -> str:
    """Return the path of a service's log, and its last lines."""
    path = settings.home / "logs" / f"{name}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return "\n    ".join([f"The last lines of {path}:", *lines])
