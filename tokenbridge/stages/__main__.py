"""``python -m tokenbridge.stages train@tiny``: run one stage, as dvc.yaml does."""

import signal
import sys

from tokenbridge.stages import import_stage


def main(stage: str) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports has nothing to undo, and no traceback
    _, *item = stage.split("@")
    import_stage(stage).main(*item)


if __name__ == "__main__":
    main(*sys.argv[1:])
