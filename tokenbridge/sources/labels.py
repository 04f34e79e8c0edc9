"""Labels of images as they come, by name or by number, and the classes that they stand for."""

import logging
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from tokenbridge.base.names import stored_name
from tokenbridge.config import DataConfig
from tokenbridge.images import DataError

logger = logging.getLogger(__name__)

TEXTS = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary)
NUMBERS = (kinds.is_boolean, kinds.is_integer, kinds.is_floating)
Label = str | int  # the name of a class, or its number


def number_or_name(text: str | bytes, names: list[str] | None) -> Label:
    """Return a label that is written as text. Digits are a number, unless they are one of the class names."""
    name = stored_name(text)
    return int(name) if re.fullmatch(r"[0-9]{1,9}", name) and name not in (names or []) else name


def column_labels(column: pa.ChunkedArray, place: Callable[[int], str]) -> list[Label]:
    """Return the labels in a column of a Parquet file: texts, or whole numbers.

    Args:
        place: turns a row into its place, for messages.

    Raises:
        DataError: at the first row whose label is null, a list, a dictionary or a fraction.
    """
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    if column.null_count:
        row, fault = pc.index(column.is_null(), True).as_py(), "null"
    elif any(is_kind(kind) for is_kind in TEXTS):
        return [stored_name(label) for label in column.cast(kind).cast(pa.large_binary()).to_pylist()]
    elif any(is_kind(kind) for is_kind in NUMBERS):
        numbers = column.cast(kind).to_numpy()
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        if whole.all():
            return [int(number) for number in numbers]
        row = int(np.argmin(whole))
        fault = str(numbers[row])
    else:
        row, fault = 0, f"of the type {kind}"
    raise DataError(
        f"{place(row)} has a label that is {fault}: write the name or the index of one class, or correct data.hub.label"
    )


def name_classes(
    found: set[Label], names: list[str] | None, config: DataConfig, place: str
) -> tuple[list[str], dict[Label, int]]:
    """Return the class names, and the index of the class for each label that is allowed.

    Args:
        found: all labels of the training images.
        names: the class names, by index; None: they are the sorted labels that are names, or else numbers.
        place: for messages.

    Raises:
        DataError: if there are labels by name and by number but no class names, or names of fewer or more classes than
            data.num_classes.
    """
    named = sorted(label for label in found if isinstance(label, str))
    numbers = {label for label in found if isinstance(label, int)}
    if names is None and named:
        if numbers or len(named) != config.num_classes:
            shown = ", ".join([*named[:10], *map(str, sorted(numbers)[:10])])
            raise DataError(
                f"{place} has {len(found)} labels ({shown}), but data.num_classes is {config.num_classes}: correct it, "
                "or set data.label_names"
            )
        names = named
    names = names or [str(index) for index in range(config.num_classes)]
    first = int(numbers == {*range(1, len(names) + 1)})
    if first:
        logger.info(f"{place} has the labels 1 to {len(names)}: they become 0 to {len(names) - 1}")
    return names, {name: index for index, name in enumerate(names)} | {first + n: n for n in range(len(names))}
