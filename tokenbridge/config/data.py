"""Settings of the images, and of the classifier that measures generated images."""

from dataclasses import dataclass, field

from tokenbridge.base.checks import PRECISIONS, require, require_between, require_choice, require_positive

SOURCES = ("idx", "imagefolder", "s3", "webdataset", "huggingface", "imagenet_tars")
IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000


@dataclass
class MirrorConfig:
    """One place that the files of a data set can come from."""

    kind: str  # http | folder | debian
    location: str | None = None  # base URL, folder, or Debian package name; null: skip this mirror
    timeout: float = 10.0  # seconds without an answer before the next mirror is tried

    def __post_init__(self) -> None:
        require_choice("data.mirrors.kind", self.kind, ("http", "folder", "debian"))
        require(
            self.kind != "http" or (self.location or "http://").startswith(("http://", "https://")),
            f"data.mirrors.location is {self.location!r}: an http mirror's starts with http:// or https://",
        )
        require_positive("data.mirrors", timeout=self.timeout)


@dataclass
class HubConfig:
    """The splits and columns to use of a data set in the Hugging Face Hub's layout."""

    train: str = "train"
    test: str | None = "validation"  # null: test_fraction of each class is set aside
    validation: str | None = None  # null: validation_images are cut from the training images
    image: str = "image"
    label: str = "label"


@dataclass
class DataConfig:
    """Where images come from, and what they look like; docs/data.md describes each source."""

    name: str
    source: str  # one of SOURCES
    licence: str
    citation: str
    image_size: int  # pixels; the models see [3, image_size, image_size]
    num_classes: int
    label_names: list[str] | None = None  # null: the source's own names, such as the sorted class folders
    class_names: str = "source"  # imagenet: classes are wnids, or ImageNet-1k's indices, and get readable names
    mirrors: list[MirrorConfig] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)  # of each decompressed file
    md5: dict[str, str] = field(default_factory=dict)  # imagenet_tars: of each of the three archives
    root: str | None = None  # your folder, or its address: s3://bucket/prefix, hf://datasets/owner/name
    test_root: str | None = None  # webdataset: the tars of the test split; null: test_fraction is set aside
    test_fraction: float = 0.0  # share of each class that becomes the test split if the source has none
    validation_images: int = 2000  # cut from the training images to choose settings; at most a tenth of each class
    validation_seed: int = 0  # decides which images are cut
    hub: HubConfig = field(default_factory=HubConfig)  # huggingface
    max_broken: float = 0.0  # largest share of broken images in a split; they are left out and named
    max_train: int | None = None  # keep at most this many images, with balanced classes
    max_test: int | None = None
    shard_size: int = 10000  # images per Parquet file

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, SOURCES)
        require_choice("data.class_names", self.class_names, ("source", IMAGENET))
        require_positive(
            "data",
            image_size=self.image_size,
            num_classes=self.num_classes,
            shard_size=self.shard_size,
            validation_images=self.validation_images,
        )
        require_between("data", 0.0, 0.9, test_fraction=self.test_fraction, max_broken=self.max_broken)
        require(
            self.source != "s3" or self.root is None or self.root.startswith("s3://"),
            f"data.root is {self.root!r}: with data.source=s3 it starts with s3://",
        )
        require(
            self.source == "webdataset" or self.test_root is None,
            f"data.test_root is for data.source=webdataset; {self.source} has its test split below data.root",
        )
        self._check_names()
        for name, limit in (("max_train", self.max_train), ("max_test", self.max_test)):
            require(
                limit is None or limit >= self.num_classes,
                f"data.{name} is {limit}: keep at least one image of each of the {self.num_classes} classes",
            )

    def _check_names(self) -> None:
        if self.class_names == IMAGENET:
            require(self.label_names is None, "data.label_names is set, and data.class_names=imagenet: choose one")
            by_index = self.source in ("webdataset", "huggingface")
            require(
                self.num_classes == IMAGENET_CLASSES or not by_index,
                f"data.class_names=imagenet names classes by their index, so data.num_classes must be "
                f"{IMAGENET_CLASSES}, not {self.num_classes}: set it, or name your classes in data.label_names",
            )
        if self.label_names is not None:
            require(
                len(self.label_names) == self.num_classes,
                f"data.label_names has {len(self.label_names)} names but data.num_classes is {self.num_classes}",
            )
            require(
                len(set(self.label_names)) == self.num_classes, "data.label_names repeats a name: make each one unique"
            )


@dataclass
class ClassifierConfig:
    """The small image classifier that measures class accuracy of generated images."""

    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    precision: str

    def __post_init__(self) -> None:
        require_choice("classifier.precision", self.precision, PRECISIONS)
        numbers = {name: value for name, value in vars(self).items() if name != "precision"}
        require_positive("classifier", **numbers)
