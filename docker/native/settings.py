"""What the stack is set to: stack.env, what lies beside the secrets, and the environment, in rising order."""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenbridge.base.errors import UserError
from tokenbridge.base.files import atomic_path

DOCKER = Path(__file__).parents[1]
CHECKOUT = DOCKER.parent
LOOPBACK = "127.0.0.1"
PRIVATE = 0o600
SECRETS = ".env"  # in the home; its other lines go before stack.env's
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:-|-|:\?)(?P<rest>[^}]*))?\}")


def read_env(path: Path) -> dict[str, str]:
    """Lines NAME=value; comments and empty lines are left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    wrong = [line for line in lines if "=" not in line]
    if wrong:
        raise UserError(f"{path} has a line that is not NAME=value: {wrong[0].split()[0]} ...")
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Compose's ${NAME}, ${NAME:-default}, ${NAME-default} and ${NAME:?message}.

    Raises:
        UserError: for a name without a value.
    """

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found["name"], found["kind"], found["rest"]
        value = values.get(name)
        if value is None and kind in (":-", "-"):
            return rest
        if value == "" and kind == ":-":
            return rest
        if value is None or (value == "" and kind == ":?"):
            raise UserError(f"{name} is not set: docker/stack.env and docker/.env.example list what the stack needs")
        return value

    return VARIABLE.sub(fill, text)


@dataclass(frozen=True)
class Settings:
    """Settings and secrets by name, and the folder ``home`` that holds all data of the stack."""

    home: Path
    values: Mapping[str, str]

    @property
    def client_env(self) -> Path:
        return self.home / "client.env"

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def url(self, port: str) -> str:
        """Address, as this machine's people know it, of the service on the port that the setting ``port`` names."""
        return f"http://{self['PUBLIC_HOST']}:{self[port]}"

    @classmethod
    def load(cls, home: Path) -> "Settings":
        """Read the settings; the secrets that are missing are made, and kept in ``home``."""
        ours = read_env(DOCKER / "stack.env")
        home.mkdir(mode=0o711, parents=True, exist_ok=True)  # PostgreSQL's user must get through
        kept = make_secrets(home / SECRETS)
        unknown = kept.keys() - ours.keys() - secret_names()
        if unknown:
            raise UserError(f"{home / SECRETS} sets {', '.join(sorted(unknown))}, which docker/stack.env does not know")
        said = {name: os.environ[name] for name in ours | kept if name in os.environ}
        values = ours | kept | said
        for name in (name for name in values if name.endswith("_PORT")):
            if not values[name].isdecimal() or not 0 < int(values[name]) < 65536:
                raise UserError(f"{name} is {values[name]!r}: it must be a port, 1 to 65535")
        return cls(home, values | places(home, values))


def places(home: Path, values: Mapping[str, str]) -> dict[str, str]:
    """What compose.yaml leaves to its own defaults, and is different here."""
    return {
        "STACK_HOST": LOOPBACK,  # PostgreSQL and S3: for this machine's services alone
        "STACK_LISTEN": values["BIND_ADDRESS"],
        "STACK_FOLDER": str(home),
        "STACK_SOCKETS": "",
        "STACK_CHECKOUT": str(CHECKOUT),
    }


def secret_names() -> set[str]:
    return set(read_env(DOCKER / ".env.example"))


def make_secrets(path: Path) -> dict[str, str]:
    """The file's content, completed by random values for the secrets that it lacks."""
    kept = read_env(path) if path.exists() else {}
    missing = sorted(name for name in secret_names() if not kept.get(name))
    if missing:
        kept |= {name: secrets.token_hex(24) for name in missing}
        write_private(path, kept)
    return kept


def write_private(path: Path, values: Mapping[str, str], prefix: str = "") -> None:
    """Lines NAME=value in a file that nobody else may read, not even while it is written."""
    with atomic_path(path) as target:
        target.touch(PRIVATE)
        target.write_text("".join(f"{prefix}{name}={value}\n" for name, value in values.items()), encoding="utf-8")
