"""The team's stack without Docker: compose.yaml's services as processes of this machine (docs/stack.md).

    python docker/stack.py up | status | down [--wipe] | upgrade | backup FOLDER | restore FOLDER

Data, logs and secrets lie in .stack, or in the folder that STACK_HOME names.
"""

import argparse
import os
import sys
from pathlib import Path

from native import processes
from native.settings import CHECKOUT, Settings
from native.team import ENDED, HEALTHY, UNHEALTHY, Team

from tokenbridge.base.errors import UserError


def up(team: Team) -> None:
    team.up()
    team.write_client_env()
    settings = team.settings
    print(f"MLflow   {settings.url('MLFLOW_PORT')}/#/experiments?workflowType=machine_learning")
    print(f"         with the columns that matter: tokenbridge ui, after sourcing {settings.client_env}")
    print(f"Prefect  {settings.url('PREFECT_PORT')}")
    print(f"S3       {team.client_variables()['AWS_ENDPOINT_URL']}")
    print(f"In a shell that shall use them: source {settings.client_env}")


def status(team: Team) -> None:
    """Tell; the command fails unless everything is healthy."""
    states = team.states()
    for name, state in states.items():
        print(f"{name:10} {state}")
    for name, state in states.items():
        if state in (ENDED, UNHEALTHY):
            print(processes.tail(name, team.settings))
    sys.exit(set(states.values()) != {HEALTHY})


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stack", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start what does not run; wait until all is healthy")
    commands.add_parser("status", help="how each service is; 0 if all are healthy")
    down = commands.add_parser("down", help="stop everything")
    down.add_argument("--wipe", action="store_true", help="and delete all data, but not the secrets")
    commands.add_parser("upgrade", help="bring MLflow's tables to the installed version; the stack must be down")
    for name, text in (("backup", "write databases and buckets to FOLDER"), ("restore", "fill an empty stack from it")):
        commands.add_parser(name, help=text).add_argument("folder", type=Path)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, team: Team) -> None:
    if options.command == "status":
        return status(team)
    with team.alone():
        if options.command == "up":
            up(team)
        elif options.command == "down":
            team.down(wipe=options.wipe)
        elif options.command == "upgrade":
            team.upgrade()
        else:
            from native import backup

            {"backup": backup.save, "restore": backup.restore}[options.command](team, options.folder)
            print(f"{options.command}: done, {options.folder}")
    return None


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    home = Path(os.environ.get("STACK_HOME", CHECKOUT / ".stack")).resolve()
    try:
        run(options, Team(Settings.load(home)))
    except UserError as error:
        sys.exit(f"stack: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
