"""Stage ``tokenize@<out>``: moments + quantizer -> packed tokens, shard by shard.

A rerun makes only the missing shards.
"""

import io

import numpy as np

from tokenbridge.base.files import write_json
from tokenbridge.stages.context import StageContext, compute
from tokenbridge.stages.runtime import stage_run
from tokenbridge.tokenizer.fitting import load_quantizer
from tokenbridge.tokenizer.moments import Moments
from tokenbridge.tokenizer.tokens import complete_tokens, write_shards

QUANTIZER = "models/quantizer"
TOKENS = "tokens"  # folder of the shards in the work folder


def main(out: str) -> None:
    with stage_run(f"tokenize@{out}") as run:
        compute(run, work)
        moments, config = Moments(run.root / "data/moments"), run.config.tokenize
        source = run.root / QUANTIZER
        stored = complete_tokens(run.work / TOKENS, moments, load_quantizer(source), config, source)
        report = size_report((2 * moments.dimensions, moments.height, moments.width), stored)
        write_json(run.work / "report.json", report | {"samples": config.samples, "flips": moments.flips})
        run.publish(run.work / "report.json", "reports/tokenize.json")
        run.publish(run.work / TOKENS, f"data/{out}")


def work(context: StageContext) -> None:
    """Write every shard."""
    write_shards(
        context.work / TOKENS,
        Moments(context.root / "data/moments"),
        load_quantizer(context.root / QUANTIZER).to(context.device),
        context.config.tokenize,
        seed=context.config.seed,
        launcher=context.config.launcher,
        processes=context.processes,
    )


def size_report(moments_shape: tuple[int, ...], stored: int) -> dict[str, float]:
    """Return the bytes of one image, not mirrored: a sample of its tokens, its moments here, and in the released code.

    The released code keeps float32 moments in one npz file per image, so the headers of npz are included.

    Args:
        stored: bytes of one sample of the tokens.
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
    """Return the size, in bytes, of an npz file of one float32 array, by writing it to memory."""
    file = io.BytesIO()
    np.savez(file, moments=np.zeros(shape, np.float32))
    return file.tell()
