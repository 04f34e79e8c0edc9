"""The team's stack without Docker: its servers as processes of this machine (docs/stack.md).

    python docker/stack.py up | status | down [--wipe [--yes]] | upgrade | backup FOLDER | restore FOLDER

Data, logs and secrets are in .stack, or in the folder that STACK_HOME names.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from native import backup, processes
from native.settings import CHECKOUT, Settings
from native.team import ENDED, HEALTHY, SERVICES, UNHEALTHY, Team

from tokenbridge.base.errors import UserError
from tokenbridge.base.program import program


def up(team: Team) -> None:
    team.up()
    team.settings.write_client_env()
    clients, file = team.settings.client_variables(), team.settings.client_env
    print(f"MLflow   {clients['MLFLOW_TRACKING_URI']}/#/experiments?workflowType=machine_learning")
    print(f"         with the columns that matter: tokenbridge ui, after sourcing {file}")
    print(
        f"Prefect  {clients['PREFECT_API_URL'].removesuffix('/api')}  (password: PREFECT_API_AUTH_STRING in client.env)"
    )
    print(f"S3       {clients['AWS_ENDPOINT_URL']}")
    print(f"In a shell that should use them: source {file}")


def status(team: Team) -> None:
    """Print the state of each service; the command fails unless all are healthy."""
    states = {name: team.state(name) for name in SERVICES}
    for name, state in states.items():
        print(f"{name:10} {state}")
    for name, state in states.items():
        if state in (ENDED, UNHEALTHY):
            print(processes.tail(name, team.settings))
    sys.exit(set(states.values()) != {HEALTHY})


def down(team: Team, wipe: bool, yes: bool) -> None:
    """Stop everything. With ``wipe``, delete all data of the stack too, after a question."""
    if wipe and not yes:
        print(f"This deletes all data of the stack in {team.settings.home}: {', '.join(team.claimed()) or 'nothing'}")
        agreed = ""
        with suppress(EOFError):
            agreed = input("Type yes to go on: ")
        if agreed != "yes":
            raise UserError("nothing was stopped or deleted: answer yes, or add --yes")
    team.down()
    if wipe:
        team.wipe()


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "up": (up, "start the services that are down; wait until all are healthy"),
    "status": (status, "the state of each service; 0 if all are healthy"),
    "down": (down, "stop everything"),
    "upgrade": (Team.upgrade, "bring MLflow's tables to the installed version; the stack must be down"),
    "backup": (backup.save, "write databases and buckets to FOLDER"),
    "restore": (backup.restore, "fill an empty stack from FOLDER"),
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="stack", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=text) for name, (_, text) in COMMANDS.items()}
    parsers["down"].add_argument("--wipe", action="store_true", help="delete all data too, but not the secrets")
    parsers["down"].add_argument("--yes", action="store_true", help="wipe without a question")
    for name in ("backup", "restore"):
        parsers[name].add_argument("folder", type=lambda text: Path(text).resolve())
    options = vars(parser.parse_args(arguments))
    function, _ = COMMANDS[options.pop("command")]
    with program("stack"):
        team = Team(Settings.load(Path(os.environ.get("STACK_HOME") or CHECKOUT / ".stack").resolve()))
        with nullcontext() if function is status else team.alone():
            function(team, **options)


if __name__ == "__main__":
    main(sys.argv[1:])
