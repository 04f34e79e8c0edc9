"""The ``tokenbridge`` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenbridge.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; a mistake of the user ends with one line, not a traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except UserError as error:
        sys.exit(f"tokenbridge: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokenbridge", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    params = commands.add_parser("params", help="compose params.yaml from conf/")
    params.add_argument("overrides", nargs="*", help="Hydra overrides, such as experiment=smoke train.epochs=2")
    params.set_defaults(command=_params)

    repro = commands.add_parser("repro", help="run what changed (dvc repro) and record it in MLflow")
    repro.add_argument("overrides", nargs="*", help="Hydra overrides; none: params.yaml as it is")
    repro.set_defaults(command=_repro)

    sample = commands.add_parser("sample", help="generate a picture from a trained model")
    sample.add_argument("--model", type=Path, default=Path("models/tiny"), help="pipeline folder (%(default)s)")
    sample.add_argument("--class", dest="classes", action="append", help="name or index; repeat for more; none: all")
    sample.add_argument("--count", type=int, default=16, help="images of each class (%(default)s)")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="picture to write (%(default)s)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--steps", type=int, default=16)
    sample.add_argument("--guidance-scale", type=float, default=2.0, help="1: no guidance (%(default)s)")
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.set_defaults(command=_sample)

    ui = commands.add_parser("ui", help="open the MLflow pages on this machine")
    ui.set_defaults(command=_ui)
    return parser


def _params(options: argparse.Namespace) -> None:
    from tokenbridge.params import write_params

    write_params(options.overrides)
    print("params.yaml written; `dvc status` tells which stages it changes")


def _repro(options: argparse.Namespace) -> None:
    from tokenbridge.orchestrate import StageFailedError, reproduce

    try:
        reproduce(Path.cwd(), options.overrides)
    except StageFailedError:
        sys.exit("tokenbridge: the pipeline stopped at the stage above; mend what it says and run the same again")


def _sample(options: argparse.Namespace) -> None:
    from tokenbridge.draw import draw_grid

    draw_grid(
        options.model,
        options.classes,
        options.count,
        options.out,
        seed=options.seed,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        temperature=options.temperature,
    )


def _ui(_: argparse.Namespace) -> None:
    from tokenbridge.tracking.store import ui_command, ui_link

    root = Path.cwd()
    command = ui_command(root)
    print(f"MLflow: {ui_link(root)}  (stop with Ctrl-C)", flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
