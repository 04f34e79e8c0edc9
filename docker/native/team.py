"""The stack as a whole: bring all services up in their order, tell how they are, take them down."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from filelock import FileLock, Timeout

from native import postgres, processes
from native.services import Service, load_services
from native.settings import LOOPBACK, Settings, write_private
from tokenbridge.base.errors import UserError
from tokenbridge.base.progress import clock

POLL = 0.3  # seconds between two looks at a starting service
OLD_TABLES = "out-of-date database schema"  # MLflow's words
UPGRADE = "Remedy: python docker/stack.py backup FOLDER; make stack-down; python docker/stack.py upgrade"
HEALTHY, UNHEALTHY, ENDED, STOPPED = "healthy", "not healthy", "ended by itself", "stopped"


class Team:
    """All services under one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.services = load_services(settings)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One command at a time may change what runs."""
        lock = FileLock(self.settings.home / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"another command is at work on {self.settings.home}: wait until it is done") from error
        try:
            yield
        finally:
            lock.release()

    def up(self, names: Sequence[str] | None = None) -> None:
        """Start what does not run of these services, or of all; wait until they are healthy.

        Raises:
            UserError: for a taken port, a service that ended (with its last words), or one that never got healthy.
        """
        waiting = {name: service for name, service in self.services.items() if names is None or name in names}
        for service in waiting.values():
            self.require_startable(service)
        starting: dict[str, float] = {}
        while waiting or starting:
            unready = waiting.keys() | starting.keys()
            for name in [name for name, service in waiting.items() if unready.isdisjoint(service.after)]:
                self.start(waiting.pop(name))
                starting[name] = time.monotonic()
            for name in [name for name, since in starting.items() if self.ready(self.services[name], since)]:
                del starting[name]
            time.sleep(POLL if starting else 0)

    def require_startable(self, service: Service) -> None:
        found = processes.running(service.name, self.settings)
        if found is None:
            processes.require_free_ports(service, self.settings)
        elif found.ports != service.ports:
            raise UserError(
                f"{service.name} runs on other ports ({found.ports}) than are set now: make stack-down first"
            )

    def start(self, service: Service) -> None:
        if processes.running(service.name, self.settings):
            return
        print(f"{service.name}: starting", flush=True)
        if service.name == postgres.SERVICE:
            postgres.make_cluster(service.environment)
        processes.start(service, self.settings)

    def ready(self, service: Service, since: float) -> bool:
        waited = time.monotonic() - since
        state = self.state(service)
        if state == ENDED or (state == UNHEALTHY and waited > service.patience):
            tail = processes.tail(service.name, self.settings)
            remedy = f"\n{UPGRADE}" if OLD_TABLES in tail else ""
            raise UserError(f"{service.name}: {state} after {clock(waited)}\n{tail}{remedy}")
        if state == UNHEALTHY:
            return False
        if service.name == postgres.SERVICE:
            postgres.make_databases(service.environment)
        print(f"{service.name}: healthy after {waited:.0f} s", flush=True)
        return True

    def down(self, wipe: bool = False) -> None:
        """Stop everything; ``wipe``: and delete all but the secrets."""
        for service in reversed(self.services.values()):
            if processes.stop(service, self.settings):
                print(f"{service.name}: stopped", flush=True)
        for path in self.settings.home.iterdir() if wipe else ():
            if path.is_dir():
                shutil.rmtree(path)

    def upgrade(self) -> None:
        """Bring MLflow's tables to the installed version. Prefect's server does that by itself when it starts.

        Raises:
            UserError: with MLflow's last words when it fails.
        """
        self.require_down()
        mlflow = self.services["mlflow"]
        store = mlflow.command[mlflow.command.index("--backend-store-uri") + 1]
        try:
            self.up([postgres.SERVICE])
            command = ["mlflow", "db", "upgrade", store]
            if subprocess.run(command, env=processes.environment(mlflow), check=False).returncode:
                raise UserError("mlflow db upgrade failed, as it says above: restore the backup made before")
        finally:
            self.down()

    def require_down(self) -> None:
        if set(self.states().values()) != {STOPPED}:
            raise UserError("the stack must be down for this: make stack-down first")

    def states(self) -> dict[str, str]:
        return {name: self.state(service) for name, service in self.services.items()}

    def state(self, service: Service) -> str:
        """One of HEALTHY, UNHEALTHY, ENDED and STOPPED."""
        if processes.running(service.name, self.settings):
            return HEALTHY if processes.healthy(service) else UNHEALTHY
        return ENDED if processes.note_path(service.name, self.settings).exists() else STOPPED

    def client_variables(self) -> dict[str, str]:
        """What a client of the stack needs in its environment."""
        settings = self.settings
        return {
            "DO_NOT_TRACK": "true",  # the libraries phone home otherwise
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": settings.url("MLFLOW_PORT"),
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": settings["MLFLOW_ADMIN_PASSWORD"],
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # through the server, which alone knows the way to S3
            "PREFECT_API_URL": settings.url("PREFECT_PORT") + "/api",
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{settings['S3_PORT']}",
            "AWS_DEFAULT_REGION": settings["S3_REGION"],
            "AWS_ACCESS_KEY_ID": settings["S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": settings["S3_SECRET_KEY"],
        }

    def write_client_env(self) -> None:
        write_private(self.settings.client_env, self.client_variables(), prefix="export ")
