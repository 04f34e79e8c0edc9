"""The stack's settings: stack.env, then the private file in the stack's folder, then the environment override it."""

import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path

DOCKER = Path(__file__).parents[1]
CHECKOUT = DOCKER.parent
LOOPBACK = "127.0.0.1"
SECRETS = ".env"  # in the stack's folder; it holds the secrets, and settings that override stack.env


def read_env(path: Path) -> dict[str, str]:
    """Return the lines NAME=value of a file; comments and empty lines are left out."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    wrong = [line for line in lines if "=" not in line]
    if wrong:
        raise UserError(f"{path} has a line that is not NAME=value: {wrong[0].split()[0]} ...")
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@dataclass(frozen=True)
class Settings:
    """Settings and secrets by name, and the folder ``home`` that holds all data of the stack."""

    home: Path
    values: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def client_env(self) -> Path:
        return self.home / "client.env"

    def ports(self, prefix: str) -> dict[str, str]:
        """Return the settings of ports whose names start with ``prefix``."""
        return {
            name: value for name, value in self.values.items() if name.startswith(prefix) and name.endswith("_PORT")
        }

    @classmethod
    def load(cls, home: Path) -> "Settings":
        """Read the settings. Missing secrets are made and kept in ``home``.

        Raises:
            UserError: for an unknown name, a port that is none, or a secret with a quote.
        """
        ours = read_env(DOCKER / "stack.env")
        if not home.exists():
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o711)  # PostgreSQL's user must be able to enter it, whatever the umask is
        kept = make_secrets(home / SECRETS)
        unknown = kept.keys() - ours.keys() - secret_names()
        if unknown:
            raise UserError(f"{home / SECRETS} sets {', '.join(sorted(unknown))}, which docker/stack.env does not know")
        settings = cls(home, {name: os.environ.get(name, value) for name, value in (ours | kept).items()})
        for name, value in settings.ports("").items():
            if not value.isdecimal() or not 0 < int(value) < 65536:
                raise UserError(f"{name} is {value!r}: it must be a port, 1 to 65535")
        for name in secret_names():
            if set("\"'") & set(settings[name]):
                raise UserError(f"{name} has a quotation mark, which supervisor cannot pass on: set another secret")
        return settings

    def client_variables(self) -> dict[str, str]:
        """Return what a client of the stack needs in its environment."""
        host = f"http://{self['PUBLIC_HOST']}"
        return {
            "DO_NOT_TRACK": "true",  # libraries of clients send usage data otherwise
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"{host}:{self['MLFLOW_PORT']}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self["MLFLOW_ADMIN_PASSWORD"],
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": self["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"],
            "PREFECT_API_URL": f"{host}:{self['PREFECT_PORT']}/api",
            "PREFECT_API_AUTH_STRING": f"admin:{self['PREFECT_PASSWORD']}",
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self['S3_PORT']}",
            "AWS_DEFAULT_REGION": self["S3_REGION"],
            "AWS_ACCESS_KEY_ID": self["S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": self["S3_SECRET_KEY"],
        }

    def write_client_env(self) -> None:
        """Write the file for a shell to source."""
        quoted = {name: shlex.quote(value) for name, value in self.client_variables().items()}
        write_private(self.client_env, quoted, prefix="export ")


def secret_names() -> set[str]:
    return set(read_env(DOCKER / ".env.example"))


def make_secrets(path: Path) -> dict[str, str]:
    """Return the file's content; random values are added to the file for the secrets that it lacks."""
    kept = read_env(path) if path.exists() else {}
    missing = sorted(name for name in secret_names() if not kept.get(name))
    if missing:
        kept |= {name: secrets.token_hex(24) for name in missing}
        write_private(path, kept)
    return kept


def write_private(path: Path, values: Mapping[str, str], prefix: str = "") -> None:
    """Write lines NAME=value to a file that only its owner can read, even while it is written."""
    with atomic_path(path, private=True) as target:
        target.write_text("".join(f"{prefix}{name}={value}\n" for name, value in values.items()), encoding="utf-8")
