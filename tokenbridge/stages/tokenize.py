"""Stage ``tokenize@<out>``: moments + quantizer -> packed tokens, shard by shard; a rerun makes the missing ones."""

import io
import sys

import numpy as np

from tokenbridge.device import pick_device
from tokenbridge.files import write_json
from tokenbridge.loading import load_whole
from tokenbridge.moments import Moments
from tokenbridge.quantizer import DimensionwiseQuantizer
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokens import write_tokens


def main() -> None:
    out = sys.argv[1]
    with stage_run(f"tokenize@{out}") as run:
        moments = Moments(run.root / "data/moments")
        source = run.root / "models/quantizer"
        folder = run.work / "tokens"
        folder.mkdir(exist_ok=True)
        stored = write_tokens(
            folder,
            moments,
            load_whole(DimensionwiseQuantizer, source).to(pick_device(run.config.launcher)),
            run.config.tokenize,
            quantizer_folder=source,
            seed=run.config.seed,
            launcher=run.config.launcher,
        )
        report = size_report((2 * moments.dimensions, moments.height, moments.width), stored)
        kept = {"samples": run.config.tokenize.samples, "flips": moments.flips}
        write_json(run.work / "report.json", report | kept)
        run.publish(run.work / "report.json", "reports/tokenize.json")
        run.publish(folder, f"data/{out}")


def size_report(moments_shape: tuple[int, ...], stored: int) -> dict[str, float]:
    """Bytes of one image, not mirrored: one sample of its tokens (``stored``), and moments here and elsewhere.

    The released code keeps float32 moments, in one npz file per image, so that its headers count.
    """
    here = int(np.prod(moments_shape)) * np.dtype(np.float16).itemsize
    released = npz_bytes(moments_shape)
    return {
        "sample_bytes": stored,
        "moments_bytes": here,
        "npz_bytes": released,
        "moments_ratio": here / stored,
        "npz_ratio": released / stored,
    }


def npz_bytes(shape: tuple[int, ...]) -> int:
    """Size of an npz file of one float32 array, found by writing it."""
    file = io.BytesIO()
    np.savez(file, moments=np.zeros(shape, np.float32))
    return file.tell()


if __name__ == "__main__":
    main()
