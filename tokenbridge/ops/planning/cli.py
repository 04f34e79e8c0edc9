"""The command ``tokenbridge plan``."""

import argparse

from tokenbridge.base.imports import quick_imports
from tokenbridge.config.project import here


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of ``tokenbridge``."""
    plan = commands.add_parser("plan", help="what a training needs: memory, hours, money, before anything runs")
    plan.add_argument("overrides", nargs="*", help="Hydra overrides, such as experiment=imagenet_h launcher=slurm")
    plan.add_argument("--json", type=here, metavar="FILE", help="write all numbers: bytes, seconds, operations")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> None:
    from tokenbridge.base.files import check_target, write_json
    from tokenbridge.config.params import compose_config, validate

    with quick_imports():
        from tokenbridge.ops.planning.plan import plan_model
        from tokenbridge.ops.planning.report import report

    if options.json is not None:
        check_target(options.json)
    config = validate(compose_config(options.overrides))
    plans = [plan_model(config, name) for name in config.models]
    print("\n\n".join(report(plan, config) for plan in plans))
    if options.json is not None:
        write_json(options.json, {plan.name: plan.as_dict() for plan in plans})
        print(f"{options.json} written")
