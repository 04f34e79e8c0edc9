"""The commands ``tokenbridge evaluate``, ``promote`` and ``rollback``."""

import argparse
import sys
from pathlib import Path


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands to the parser of ``tokenbridge``."""
    promote = commands.add_parser("promote", help="make a registered version the champion, if it is not worse")
    promote.add_argument("model", help="its key in params.yaml, such as tiny")
    promote.add_argument("--version", type=int, help="default: the newest")
    promote.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
    _add_changes(promote, "promotion.seconds=600")
    promote.set_defaults(command=_promote)

    evaluate = commands.add_parser("evaluate", help="measure a registered version, with any sampling settings")
    evaluate.add_argument("model", help="its key in params.yaml, such as tiny")
    evaluate.add_argument("--version", type=int, help="default: the newest")
    _add_changes(evaluate, "generate.guidance_scale=3")
    evaluate.set_defaults(command=_evaluate)

    rollback = commands.add_parser("rollback", help="bring the champion before this one back")
    rollback.add_argument("model", help="its key in params.yaml, such as tiny")
    rollback.add_argument("--veto", metavar="WHO_AND_WHY", help="tag the one that steps down, lest it comes back")
    rollback.set_defaults(command=_rollback)


def _add_changes(parser: argparse.ArgumentParser, example: str) -> None:
    told = f"for this once, such as {example}; repeat for more"
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="SETTING=VALUE", help=told)


def _evaluate(options: argparse.Namespace) -> None:
    from tokenbridge.ops.promotion.version_evaluation import evaluate_version

    found = evaluate_version(Path.cwd(), options.model, options.version, options.changes)
    print(f"\n{found.version}")
    for name, value in found.metrics.items():
        print(f"  {name}: {value:.5g}")
    print(f"picture: {found.picture}")


def _promote(options: argparse.Namespace) -> None:
    """Promote a version; exit with code 1 if it is refused."""
    from tokenbridge.ops.promotion.decision import REFUSED
    from tokenbridge.ops.promotion.promote import promote

    given = {"number": options.version, "dry_run": options.dry_run, "changes": options.changes}
    decision = promote(Path.cwd(), options.model, **given)
    print(f"\n{decision.report()}")
    for picture in decision.pictures:
        print(f"picture: {picture}")
    if decision.outcome == REFUSED:
        sys.exit(1)


def _rollback(options: argparse.Namespace) -> None:
    from tokenbridge.ops.promotion.promote import rollback

    print(rollback(Path.cwd(), options.model, options.veto))
    if options.veto is None:
        print("The next promotion may bring it back: `--veto WHO_AND_WHY` forbids that")
