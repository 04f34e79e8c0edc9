"""The stack as a whole: start all services in their order, report their state, stop them."""

import shutil
import subprocess
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from http.client import HTTPException
from urllib.request import urlopen

from native import postgres, processes
from native.settings import DOCKER, Settings
from tokenbridge.base.at_end import at_end
from tokenbridge.base.errors import UserError
from tokenbridge.base.files import read_json, write_json
from tokenbridge.base.locks import locked
from tokenbridge.base.progress import clock

POLL = 0.3  # seconds between two looks at a starting service
PATIENCE = 180  # seconds until a started service must be healthy
OLD_TABLES = "out-of-date database schema"  # MLflow's words
UPGRADE = "To upgrade: python docker/stack.py backup FOLDER; make stack-down; python docker/stack.py upgrade"
HEALTHY, UNHEALTHY, ENDED, STOPPED = "healthy", "not healthy", "ended by itself", "stopped"
# the services of a wave start together, when those of the wave before are healthy
WAVES = (("postgres", "seaweedfs"), ("mlflow", "prefect"), ("worker",))
SERVICES = [name for wave in WAVES for name in wave]
FOLDERS = ("logs", "postgres", "prefect", "running", "seaweedfs", "worker")  # of data, in STACK_HOME
CLAIMED = "folders.json"  # in STACK_HOME: which of these folders the stack made
ADDRESSES = {  # they answer when the service is healthy; SeaweedFS makes the last bucket last
    "postgres": [],
    "seaweedfs": ["http://127.0.0.1:{S3_PORT}/healthz", "http://127.0.0.1:{S3_FILER_PORT}/buckets/{DATA_BUCKET}/"],
    "mlflow": ["http://{BIND_ADDRESS}:{MLFLOW_PORT}/health"],
    "prefect": ["http://{BIND_ADDRESS}:{PREFECT_PORT}/api/health"],
    "worker": ["http://127.0.0.1:{WORKER_HEALTH_PORT}/health"],
}


class Team:
    """All services under one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def alone(self) -> AbstractContextManager[None]:
        """Let only one command at a time change what runs; raise a UserError for a second one."""
        return locked(self.settings.home / "lock", str(self.settings.home), wait=False)

    def up(self, names: Collection[str] = SERVICES) -> None:
        """Start those of these services that do not run; wait until they are healthy.

        Raises:
            UserError: for a taken port, a service that ended (with its last log lines), or one that is not healthy in
                time.
        """
        running = processes.processes(self.settings)
        down = [name for name in names if not running.get(name, {}).get("pid")]
        for name in down:
            processes.require_free_ports(name, self.settings)
        self.claim()
        postgres.make_cluster(self.settings)
        if running:
            processes.require_same_ports(self.settings)
        else:
            processes.start_supervisor(self.settings)
        for wave in WAVES:
            for name in [name for name in wave if name in down]:
                print(f"{name}: starting", flush=True)
                processes.start(name, self.settings)
            for name in [name for name in wave if name in names]:
                self.wait_until_healthy(name)

    def wait_until_healthy(self, name: str) -> None:
        began = time.monotonic()
        while (state := self.state(name)) != HEALTHY:
            waited = time.monotonic() - began
            if state != UNHEALTHY or waited > PATIENCE:
                tail = processes.tail(name, self.settings)
                remedy = f"\n{UPGRADE}" if OLD_TABLES in tail else ""
                raise UserError(f"{name}: {state} after {clock(waited)}\n{tail}{remedy}")
            time.sleep(POLL)
        if name == "postgres":
            postgres.run(self.settings, "sh", str(DOCKER / "databases.sh"))  # makes those that are missing
        print(f"{name}: healthy after {time.monotonic() - began:.0f} s", flush=True)

    def down(self) -> None:
        """Stop everything. Data stay."""
        if running := processes.processes(self.settings):
            processes.end_supervisor(self.settings, running["worker"]["pid"])
            print("all services: stopped", flush=True)

    def claim(self) -> None:
        """Note which folders of data this stack will make: those that do not exist yet. ``wipe`` deletes only these."""
        new = [path.name for path in map(self.settings.home.joinpath, FOLDERS) if not path.exists()]
        write_json(self.settings.home / CLAIMED, sorted({*new, *self.claimed()}))

    def claimed(self) -> list[str]:
        """Return the names of the folders of data that this stack made."""
        record = self.settings.home / CLAIMED
        return [name for name in FOLDERS if record.exists() and name in read_json(record)]

    def wipe(self) -> None:
        """Delete all data that this stack made, but not the secrets.

        Raises:
            UserError: before anything is deleted, if a service may still be running.
        """
        self.require_down()
        taken = processes.taken_ports(self.settings.ports(""))
        if taken:
            raise UserError(
                f"port {' and '.join(taken.values())} still answers ({', '.join(taken)}): end the program that has it, "
                "which may be a service that uses the data"
            )
        ours = self.claimed()
        for path in map(self.settings.home.joinpath, FOLDERS):
            if path.exists() and path.name in ours:
                shutil.rmtree(path)
            elif path.exists():
                print(f"{path} was not made by this stack, and stays", flush=True)
        (self.settings.home / CLAIMED).unlink(missing_ok=True)

    def upgrade(self) -> None:
        """Bring MLflow's tables to the installed version. Prefect's server does that by itself when it starts.

        Raises:
            UserError: if the stack is not down, or MLflow's command fails.
        """
        self.require_down()
        store = f"postgresql+psycopg2:///{self.settings['MLFLOW_DATABASE']}"
        environment = processes.environment(self.settings) | postgres.connection(self.settings)
        with at_end(self.down):
            self.up(["postgres"])
            if subprocess.run(["mlflow", "db", "upgrade", store], env=environment, check=False).returncode:
                raise UserError("mlflow db upgrade failed, see above: restore the backup that you made before")

    def require_down(self) -> None:
        if processes.processes(self.settings):
            raise UserError("the stack must be down for this: make stack-down first")

    def state(self, name: str) -> str:
        """Return one of HEALTHY, UNHEALTHY, ENDED and STOPPED."""
        info = processes.processes(self.settings).get(name, {"statename": "STOPPED"})
        if info["statename"] == "STOPPED":
            return STOPPED
        if not info["pid"]:
            return ENDED
        return HEALTHY if self.answers(name) else UNHEALTHY

    def answers(self, name: str) -> bool:
        with suppress(OSError, HTTPException, UserError):
            for address in ADDRESSES[name]:
                urlopen(address.format_map(self.settings.values), timeout=5).close()
            if name == "postgres":
                postgres.run(self.settings, "pg_isready", "-d", "postgres")
            return True
        return False
