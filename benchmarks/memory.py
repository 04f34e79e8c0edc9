"""Peak memory of the stages that read every training image, with 1x and 10x the images.

    python benchmarks/memory.py --images 400

Each stage runs as DVC runs it, in a process of its own, on a folder of 64-px JPEGs; `train` takes as many steps either
way. An image is 12 kB of pixels and 16 kB of moments, so that a stage that held either of all images would show it.
What is measured is the peak of anonymous memory (RssAnon of /proc/<pid>/status): pages of memory-mapped shards count in
a process's RSS as well, but are the kernel's cache, which it gives up when memory is short.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from tokenbridge.config.params import PARAMS_FILE, compose_config, load_params
from tokenbridge.stages.runtime import PARENT_VARIABLE
from tokenbridge.vae.training import build_vae

PROJECT = Path(__file__).parents[1]
CLASSES, SIZE = 10, 64
DIMENSIONS = 16
STEPS, BATCH = 10, 4
POLL = 0.005  # seconds
# freed memory goes back to the system: otherwise it hangs on chance how much the allocator keeps, up to 14 MiB
ALLOCATOR = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
STAGES = ["fetch", "encode", "fit_quantizer", "train@tiny"]
SETTINGS = [
    "experiment=smoke",
    "data=imagefolder",
    f"data.num_classes={CLASSES}",
    f"data.image_size={SIZE}",
    "data.root=source",
    "data.max_train=null",
    "data.max_test=null",
    f"data.validation_images={CLASSES}",  # as many of every set: the loss on them needs memory for a batch
    "vae.block_widths=[8,8,8]",  # halves the sides twice
    f"vae.dimensions={DIMENSIONS}",
    "generate.samples=10",
    "evaluate.kid_subset_size=10",
    f"train.batch_size={BATCH}",
    "train.warmup_epochs=0",
    "launcher.batch_size=50",
]


def write_images(folder: Path, images: int) -> None:
    """So many different JPEGs in class folders."""
    rng = np.random.default_rng(0)
    for index in range(images):
        path = folder / f"class{index % CLASSES}" / f"{index:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(buffer, "JPEG", quality=95)
        path.write_bytes(buffer.getvalue())


def prepare(root: Path, images: int) -> None:
    """A folder in which the stages can run, with a VAE of random weights."""
    shutil.copy(PROJECT / "dvc.yaml", root)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, check=True)
    write_images(root / "source", images)
    epochs = STEPS * BATCH / (images * 0.9 - CLASSES)  # the rest is for test and validation
    OmegaConf.save(compose_config([*SETTINGS, f"train.epochs={epochs}"], PROJECT / "conf"), root / PARAMS_FILE)
    torch.manual_seed(0)
    build_vae(load_params(root).vae, SIZE).save_pretrained(root / "models/vae")


def peak_memory(root: Path, stage: str) -> int:
    """Bytes of anonymous memory at the stage's peak."""
    command = [sys.executable, "-m", "tokenbridge.stages", stage]
    environment = os.environ | ALLOCATOR | {PARENT_VARIABLE: "benchmark"}
    peak = 0
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(POLL)
    if process.returncode != 0:
        raise RuntimeError(f"{stage} failed with code {process.returncode}")
    return peak


def anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # gone meanwhile
        return 0
    found = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def measure(root: Path, images: int) -> dict[str, int]:
    """Peak of each stage, in bytes."""
    prepare(root, images)
    return {stage: peak_memory(root, stage) for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="of the smaller set")
    options = parser.parse_args()
    sizes, peaks = (options.images, 10 * options.images), []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            peaks.append(measure(Path(scratch), size))
    print(f"| stage | {sizes[0]:,} images | {sizes[1]:,} images | more, per image |\n|---|---|---|---|")
    for stage, few in peaks[0].items():
        many = peaks[1][stage]
        growth = (many - few) / (sizes[1] - sizes[0])
        print(f"| `{stage}` | {few / 2**20:.1f} MiB | {many / 2**20:.1f} MiB | {growth:,.0f} bytes |")


if __name__ == "__main__":
    main()
