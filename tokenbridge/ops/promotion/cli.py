"""The commands ``tokenbridge evaluate``, ``promote`` and ``rollback``."""

import argparse
import sys

from tokenbridge.base.imports import quick_imports
from tokenbridge.config.project import find_project


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands to the parser of ``tokenbridge``."""
    promote = commands.add_parser("promote", help="make a registered version the champion, if it is not worse")
    evaluate = commands.add_parser("evaluate", help="measure a registered version, with any sampling settings")
    rollback = commands.add_parser("rollback", help="bring the champion before this one back")
    for parser, command in ((promote, _promote), (evaluate, _evaluate), (rollback, _rollback)):
        parser.add_argument("model", help="its key in params.yaml, such as tiny")
        parser.set_defaults(command=command)
    promote.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
    for parser, example in ((promote, "promotion.seconds=600"), (evaluate, "generate.guidance_scale=3")):
        parser.add_argument("--version", type=int, help="default: the newest")
        text = f"for this once, such as {example}; repeat for more"
        parser.add_argument("--set", dest="changes", action="append", default=[], metavar="SETTING=VALUE", help=text)
    rollback.add_argument("--veto", metavar="WHO_AND_WHY", help="tag the one that steps down, lest it comes back")


def _evaluate(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.promotion.version_evaluation import evaluate_version

    version, found = evaluate_version(find_project(), options.model, options.version, options.changes)
    print(f"\n{version}")
    for name, value in found.metrics.items():
        print(f"  {name}: {value:.5g}")
    print(f"picture: {found.picture}")


def _promote(options: argparse.Namespace) -> None:
    """Promote a version; exit with code 1 if it is refused."""
    from tokenbridge.ops.promotion.decision import REFUSED

    with quick_imports():
        from tokenbridge.ops.promotion.promote import promote

    given = {"number": options.version, "dry_run": options.dry_run, "changes": options.changes}
    decision = promote(find_project(), options.model, **given)
    print(f"\n{decision.report()}")
    for picture in decision.pictures:
        print(f"picture: {picture}")
    if decision.outcome == REFUSED:
        sys.exit(1)


def _rollback(options: argparse.Namespace) -> None:
    with quick_imports():
        from tokenbridge.ops.promotion.promote import rollback

    print(rollback(find_project(), options.model, options.veto))
    if options.veto is None:
        print("The next promotion may bring it back: `--veto WHO_AND_WHY` forbids that")
