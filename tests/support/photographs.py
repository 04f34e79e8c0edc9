"""A small ImageNet of real photographs: pieces of pictures that Python packages carry, in every layout there is.

Twelve classes, each with the WordNet id that fits its picture best. Sizes vary; some files are CMYK, grey, turned by
EXIF, or PNG with the suffix .JPEG; three are broken.
"""

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

PICTURES = {  # wnid: the package that carries the picture, and where
    "n02123045": ("skimage", "data/chelsea.png"),  # tabby
    "n03763968": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # military uniform
    "n03773504": ("skimage", "data/rocket.jpg"),  # missile
    "n03785016": ("skimage", "data/motorcycle_left.png"),  # moped
    "n03877845": ("sklearn", "datasets/images/china.jpg"),  # palace
    "n03920288": ("skimage", "data/ihc.png"),  # Petri dish
    "n04326547": ("skimage", "data/brick.png"),  # stone wall
    "n04485082": ("skimage", "data/camera.png"),  # tripod
    "n04548280": ("skimage", "data/clock_motion.png"),  # wall clock
    "n07802026": ("skimage", "data/grass.png"),  # hay
    "n07920052": ("skimage", "data/coffee.png"),  # espresso
    "n11939491": ("sklearn", "datasets/images/flower.jpg"),  # daisy
}
WNIDS = list(PICTURES)
NAMES = ["tabby", "military uniform", "missile", "moped", "palace", "Petri dish"]
NAMES += ["stone wall", "tripod", "wall clock", "hay", "espresso", "daisy"]
ORIENTATION = 0x0112
TURNED = 6  # the camera was turned: rotate by 90 degrees clockwise to look at it
BROKEN = 3


@cache
def picture(wnid: str) -> Image.Image:
    package, path = PICTURES[wnid]
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / path)


def piece(wnid: str, rng: np.random.Generator) -> Image.Image:
    """A rectangle of the class's picture, 40 to 220 pixels wide and high."""
    whole = picture(wnid)
    width, height = rng.integers(40, 220, 2)
    left, top = rng.integers(0, whole.width - width), rng.integers(0, whole.height - height)
    return whole.crop((left, top, left + width, top + height))


def encoded(image: Image.Image, number: int) -> bytes:
    """A JPEG as cameras and web sites make them: the first of a class are of the odd kinds."""
    buffer, exif = io.BytesIO(), Image.Exif()
    if number == 0:
        image = image.convert("RGB").convert("CMYK")
    if number == 1:
        image = image.convert("L")
    if number == 2:
        exif[ORIENTATION] = TURNED
    image.save(buffer, "PNG" if number == 3 else "JPEG", exif=exif)
    return buffer.getvalue()


@dataclass(frozen=True)
class Photographs:
    """Files of both splits.

    Attributes:
        train: wnid: name: content.
        validation: wnid and content, in the order of their numbers.
        broken: names of the files among them that are no images.
    """

    train: dict[str, dict[str, bytes]]
    validation: list[tuple[str, bytes]]
    broken: list[str]


def photographs(train: int, validation: int, broken: bool = True) -> Photographs:
    """So many of each class; with ``broken``, three more: a truncated JPEG, an empty file and a text."""
    rng = np.random.default_rng(0)
    files = {wnid: {f"{wnid}_{n}.JPEG": encoded(piece(wnid, rng), n) for n in range(train)} for wnid in WNIDS}
    held_out = [(wnid, encoded(piece(wnid, rng), n)) for n in range(validation) for wnid in reversed(WNIDS)]
    bad = []
    if broken:
        whole = files[WNIDS[0]][f"{WNIDS[0]}_4.JPEG"]
        for wnid, content in zip(WNIDS, [whole[: len(whole) // 2], b"", b"404 Not Found"], strict=False):
            bad.append(f"{wnid}_broken.JPEG")
            files[wnid][bad[-1]] = content
    return Photographs(files, held_out, bad)


def write_folder(photos: Photographs, root: Path) -> None:
    """root/train/<wnid>/*.JPEG and root/test/<wnid>/*.JPEG."""
    for wnid, files in photos.train.items():
        (root / "train" / wnid).mkdir(parents=True)
        (root / "test" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (root / "train" / wnid / name).write_bytes(content)
    for number, (wnid, content) in enumerate(photos.validation, 1):
        (root / "test" / wnid / validation_name(number)).write_bytes(content)


def validation_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tars(photos: Photographs, root: Path) -> dict[str, str]:
    """ImageNet's three archives; returns their MD5."""
    root.mkdir(parents=True)
    train = tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in photos.train.items()})
    numbered = enumerate(photos.validation, 1)
    validation = tar_of({validation_name(number): content for number, (_, content) in numbered})
    contents = {
        "ILSVRC2012_img_train.tar": train,
        "ILSVRC2012_img_val.tar": validation,
        "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(devkit(photos), mtime=0),
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}


def devkit(photos: Photographs) -> bytes:
    """IDs run against the wnids, as they do not follow them in ImageNet's; and there is an inner node."""
    ids = {wnid: number for number, wnid in enumerate(reversed(WNIDS), 1)}
    kind = [("ILSVRC2012_ID", float), ("WNID", object), ("words", object), ("num_children", float)]
    rows = [(number, wnid, "words", 0) for wnid, number in ids.items()]
    synsets = np.array([*rows, (len(rows) + 1, "n00001740", "entity", 12)], dtype=kind)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets[:, None]})
    truth = "".join(f"{ids[wnid]}\n" for wnid, _ in photos.validation)
    folder = "ILSVRC2012_devkit_t12"
    return tar_of(
        {
            f"{folder}/readme.txt": b"",
            f"{folder}/data/meta.mat": meta.getvalue(),
            f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        }
    )


def write_webdataset(photos: Photographs, root: Path) -> None:
    """Tars train-*.tar and test-0.tar, labelled by index, classes mixed."""
    root.mkdir(parents=True)
    mixed = [
        (f"{n:06d}", WNIDS.index(wnid), content)
        for n, (wnid, content) in enumerate(
            (wnid, content) for wnid, files in photos.train.items() for content in files.values()
        )
    ]
    for shard in range(2):
        write_shard(root / f"train-{shard}.tar", mixed[shard::2])
    write_shard(
        root / "test-0.tar",
        [(f"{n:06d}", WNIDS.index(wnid), content) for n, (wnid, content) in enumerate(photos.validation)],
    )


def write_shard(path: Path, examples: list[tuple[str, int, bytes]]) -> None:
    files: dict[str, bytes] = {}
    for key, label, content in examples:
        files |= {f"{key}.jpeg": content, f"{key}.json": json.dumps({"label": label}).encode()}
    path.write_bytes(tar_of(files))


def write_parquet(photos: Photographs, root: Path) -> None:
    """What ``datasets`` pushes to the Hub: data/train-*.parquet and data/validation-*.parquet, by that library."""
    import datasets

    (root / "data").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    train = [(wnid, name, content) for wnid, files in photos.train.items() for name, content in files.items()]
    validation = [(wnid, validation_name(n), content) for n, (wnid, content) in enumerate(photos.validation, 1)]
    for split, rows, shards in (("train", train, 2), ("validation", validation, 1)):
        for shard in range(shards):
            part = rows[shard::shards]
            columns = {
                "image": [{"bytes": content, "path": name} for _, name, content in part],
                "label": [WNIDS.index(wnid) for wnid, _, _ in part],
            }
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(root / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", batch_size=20)
