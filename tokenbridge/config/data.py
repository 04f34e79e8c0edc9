"""Settings of the images, and of the classifier that judges them."""

from dataclasses import dataclass, field

from tokenbridge.config.checks import require, require_between, require_choice, require_positive


@dataclass
class MirrorConfig:
    """One place that the files of a data set can come from."""

    kind: str  # http | folder | debian
    location: str | None = None  # base URL, folder, or Debian package name; null: not given, the next is tried
    timeout: float = 10.0  # seconds without an answer before the next mirror is tried

    def __post_init__(self) -> None:
        require_choice("data.mirrors.kind", self.kind, ("http", "folder", "debian"))
        require(
            self.kind != "http" or (self.location or "http://").startswith(("http://", "https://")),
            f"data.mirrors.location is {self.location!r}: an http mirror's starts with http:// or https://",
        )
        require_positive("data.mirrors", timeout=self.timeout)


@dataclass
class DataConfig:
    """Where images come from, and what they look like."""

    name: str
    source: str  # idx | imagefolder | s3 (an imagefolder there) | webdataset (tars, local or on S3)
    licence: str
    citation: str
    image_size: int  # pixels; the models see [3, image_size, image_size]
    num_classes: int
    label_names: list[str] | None = None  # null: the class folders' names, sorted
    mirrors: list[MirrorConfig] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)  # of each decompressed file
    root: str | None = None  # your folder: root/<split>/<class>/* or root/<class>/* (imagefolder), the files (idx)
    test_root: str | None = None  # webdataset: the tars of the test split; null: test_fraction is set aside
    test_fraction: float = 0.0  # where the source has no test split: this share of each class becomes it
    max_train: int | None = None  # keep only so many images, classes balanced
    max_test: int | None = None
    shard_size: int = 10000  # images per Parquet file

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, ("idx", "imagefolder", "s3", "webdataset"))
        require_positive("data", image_size=self.image_size, num_classes=self.num_classes, shard_size=self.shard_size)
        require_between("data", 0.0, 0.9, test_fraction=self.test_fraction)
        require(
            self.source != "s3" or self.root is None or self.root.startswith("s3://"),
            f"data.root is {self.root!r}: with data.source=s3 it starts with s3://",
        )
        require(
            self.source == "webdataset" or self.test_root is None,
            f"data.test_root is for data.source=webdataset; {self.source} has its test split below data.root",
        )
        if self.label_names is not None:
            require(
                len(self.label_names) == self.num_classes,
                f"data.label_names has {len(self.label_names)} names but data.num_classes is {self.num_classes}",
            )
            require(
                len(set(self.label_names)) == self.num_classes, "data.label_names repeats a name: make each one unique"
            )
        for name, limit in (("max_train", self.max_train), ("max_test", self.max_test)):
            require(
                limit is None or limit >= self.num_classes,
                f"data.{name} is {limit}: keep at least one image of each of the {self.num_classes} classes",
            )


@dataclass
class ClassifierConfig:
    """The small image classifier that measures class accuracy of generated images."""

    width: int
    epochs: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        require_positive("classifier", **vars(self))
