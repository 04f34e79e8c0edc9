"""Settings of the images, and of the classifier that measures generated images."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from tokenbridge.base.checks import Precision
from tokenbridge.config.types import (
    ClassName,
    Colour,
    Integer,
    Name,
    PartialShare,
    Positive,
    PositiveNumber,
    Settings,
    refuse,
)

IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000
BY_INDEX = ("webdataset", "huggingface")  # sources whose images have the index of a class and not its name


class MirrorConfig(Settings):
    """One place that the files of a data set can come from."""

    kind: Literal["http", "folder", "debian"]
    location: str | None = None  # base URL, folder, or Debian package name; null: skip this mirror
    timeout: PositiveNumber = 10.0  # seconds with almost no data before the next mirror is tried

    def __post_init__(self) -> None:
        web = self.location is None or self.location.startswith(("http://", "https://"))
        message = f"location is {self.location!r}: the address of an http mirror must start with http:// or https://"
        refuse(
            {
                message: self.kind == "http" and not web,
                "location holds a user name, and params.yaml would record it: use a mirror without": web
                and "@" in urlsplit(self.location or "").netloc,
            }
        )


class HubConfig(Settings):
    """The splits and columns to use of a data set in the Hugging Face Hub's layout."""

    train: str = "train"
    test: str | None = "validation"  # null: test_fraction of each class is set aside
    validation: str | None = None  # null: validation_images are cut from the training images
    image: str = "image"
    label: str = "label"


class ImageLimits(Settings):
    """The largest image file that is read; a larger one is broken."""

    megapixels: PositiveNumber = 200.0
    megabytes: PositiveNumber = 512.0
    aspect: PositiveNumber = 100.0  # longer side / shorter side


class DataConfig(Settings):
    """Where images come from, and what they look like; docs/data.md describes each source."""

    name: Name
    source: Literal["idx", "imagefolder", "s3", "webdataset", "huggingface", "imagenet_tars"]
    licence: str
    citation: str
    image_size: Positive  # pixels; the models see [3, image_size, image_size]
    num_classes: Positive
    label_names: list[ClassName] | None = None  # null: the source's own names, such as the sorted class folders
    class_names: Literal["source", "imagenet"] = "source"  # imagenet: wnids or ImageNet-1k's indices get readable names
    mirrors: list[MirrorConfig] = Field(default_factory=list)
    sha256: dict[str, str] = Field(default_factory=dict)  # of each decompressed file
    md5: dict[str, str] = Field(default_factory=dict)  # imagenet_tars: of each of the three archives
    root: str | None = None  # your folder, or its address: s3://bucket/prefix, hf://datasets/owner/name
    test_root: str | None = None  # webdataset: the tars of the test split; null: test_fraction is set aside
    test_fraction: PartialShare = 0.0  # share of each class that becomes the test split if the source has none
    validation_images: Positive = 2000  # cut from the training images to choose settings; at most a tenth of each class
    validation_seed: Integer = 0  # decides which images are cut
    hub: HubConfig = Field(default_factory=HubConfig)  # huggingface
    max_broken: PartialShare = 0.0  # largest share of broken images in a split; they are left out and named
    limits: ImageLimits = Field(default_factory=ImageLimits)
    background: Colour = "white"  # what is seen through transparent images
    max_train: Integer | None = None  # keep at most this many images, with balanced classes
    max_test: Integer | None = None
    shard_size: Positive = 10000  # images per Parquet file

    def __post_init__(self) -> None:
        classes, names = self.num_classes, self.label_names
        count, unique = (classes, classes) if names is None else (len(names), len(set(names)))
        imagenet = self.class_names == IMAGENET
        elsewhere = self.source == "s3" and self.root is not None and not self.root.startswith("s3://")
        limits = {"max_train": self.max_train, "max_test": self.max_test}
        mistakes = {
            f"root is {self.root!r}: with data.source=s3 it must start with s3://": elsewhere,
            "test_root is set: leave it out, because only data.source=webdataset uses it": self.source != "webdataset"
            and self.test_root is not None,
            "label_names is set, and data.class_names is imagenet: choose one": imagenet and names is not None,
            f"num_classes is {classes}: data.class_names=imagenet names classes by their index, so set "
            f"{IMAGENET_CLASSES}, or name your classes in data.label_names": imagenet
            and self.source in BY_INDEX
            and classes != IMAGENET_CLASSES,
            f"label_names has {count} names: must be as many as data.num_classes ({classes})": count != classes,
            "label_names repeats a name: make each one unique": unique != count,
        }
        for name, limit in limits.items():
            few = limit is not None and limit < classes
            mistakes[f"{name} is {limit}: must be at least data.num_classes ({classes})"] = few
        refuse(mistakes)


class ClassifierConfig(Settings):
    """The small image classifier that measures class accuracy of generated images."""

    width: Positive
    epochs: Positive
    batch_size: Positive
    learning_rate: PositiveNumber
    precision: Precision
