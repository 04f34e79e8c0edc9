"""Decoding: from the bytes of an image file to RGB pixels."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenbridge.images import DataError

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def open_whole(content: bytes, path: str) -> Image.Image:
    """Open an image and decode every pixel, so that a truncated file is found here, not in the middle of a training.

    Raises:
        DataError: if it is not a whole image of 8 bits per channel; the message names ``path``.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image: replace or delete it") from error
    except DECODE_ERRORS as error:
        raise DataError(f"{path} is corrupt or truncated ({error}): replace or delete it") from error
    if image.mode not in EIGHT_BIT_MODES:
        raise DataError(
            f"{path} has pixels of mode {image.mode}, which do not fit into 8-bit RGB: convert it to 8 bits per channel"
        )
    return image


def decode_rgb(content: bytes, path: str, size: int) -> NDArray[np.uint8]:
    """Return the pixels uint8 [3, size, size] of an encoded image: upright (EXIF), RGB, centre-cropped.

    Differs: ADM's preparation ignores EXIF, and keeps a picture as its camera stored it.
    """
    upright = ImageOps.exif_transpose(open_whole(content, path))
    pixels = np.asarray(centre_crop(upright.convert("RGB"), size))  # [H, W, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut the centre square, as ADM does.

    A box filter halves the image while its shorter side is at least twice ``size``. Bicubic scaling does the rest.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
