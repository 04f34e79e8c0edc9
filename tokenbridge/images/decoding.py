"""Decoding: the one door from the bytes of an image file, which anybody may have made, to RGB pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tokenbridge.config.data import ImageLimits
from tokenbridge.images import DataError
from tokenbridge.images.weight import Budget

READERS: dict[bytes, type[ImageFile]] = {  # by the first bytes: no other format of Pillow's is tried
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
}
TURNS: dict[object, Transpose] = {  # by the EXIF orientation
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
DEEP = ";16B"  # how Pillow's names of the samples of a 16-bit PNG end
HIGH_BYTE = [sample >> 8 for sample in range(2**16)]
DARK = 2**12 >> 8  # a 16-bit image with no high byte from here on may have samples of 12 bits
LONGEST = 8  # sides longer than this many times the shorter side are cut before the image is resized
PIXELS = Budget(2**26)  # that threads decode at the same time


class Converted(bytes):
    """An image file that was written again: an upright, opaque RGB PNG of 8 bits per channel."""


@contextmanager
def whole_image(content: bytes, path: str, limits: ImageLimits | None = None) -> Iterator[tuple[Image.Image, bool]]:
    """Decode every pixel, so that a truncated file is found here, not in the middle of a training.

    Yields the image, with 8 bits per channel, and whether other programs see the same picture if they convert it to
    RGB. They do not if it is transparent or has 16 bits per channel, or is an animation, whose first picture it is.

    Raises:
        DataError: if it is not a whole image within ``limits``; the message names ``path``.
    """
    reader = next((reader for start, reader in READERS.items() if content.startswith(start)), None)
    if reader is None:
        raise DataError(f"{path} is not an image (JPEG, PNG, WebP, GIF or BMP): replace or delete it")
    try:
        image = reader(io.BytesIO(content))
        check_shape(image.size, path, limits)
        samples = str(image.tile[0].args) if image.tile else ""
        first_of_many = getattr(image, "is_animated", False)
        with PIXELS.held(image.width * image.height):
            image.load()
            eight = eight_bits(image, samples, path)
            yield eight, not (first_of_many or samples.endswith(DEEP) or is_transparent(eight))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        raise DataError(f"{path} is corrupt or truncated ({error}): replace or delete it") from error


def check_bytes(size: int, path: str, limits: ImageLimits) -> None:
    """Check a file before it is read.

    Args:
        size: bytes; less than 0 if it is not a regular file.

    Raises:
        DataError: if it has more than ``limits.megabytes``, or is not a regular file.
    """
    if size < 0:
        raise DataError(f"{path} is a pipe, a device or a dangling link, not an image: replace or delete it")
    if size > limits.megabytes * 1e6:
        raise DataError(
            f"{path} has {size:,} bytes, more than data.limits.megabytes ({limits.megabytes:g}): make it smaller"
        )


def check_shape(size: tuple[int, int], path: str, limits: ImageLimits | None) -> None:
    """Check width and height before any pixel is decoded."""
    if limits is None:
        return
    width, height = size
    if width * height > limits.megapixels * 1e6:
        raise DataError(
            f"{path} has {width} x {height} pixels, more than data.limits.megapixels ({limits.megapixels:g}): make it "
            "smaller"
        )
    if max(size) > limits.aspect * min(size):
        raise DataError(
            f"{path} has {width} x {height} pixels, an aspect of more than data.limits.aspect ({limits.aspect:g}): "
            "cut it"
        )


def eight_bits(image: Image.Image, samples: str, path: str) -> Image.Image:
    """Return a decoded image with 8 bits per channel.

    Pillow has already taken the high bytes of 16-bit colours, but not of 16-bit greys. It has scaled greys of 2 and 4
    bits, but not the one that is transparent.

    Args:
        samples: Pillow's name for the samples in the file.

    Raises:
        DataError: if the range of 16-bit samples is not known, or one of their colours is transparent.
    """
    if samples in ("L;2", "L;4") and "transparency" in image.info:
        image.info["transparency"] *= 255 // (2 ** int(samples[-1]) - 1)
    if not samples.endswith(DEEP):
        return image
    if image.mode == "I;16":
        image = image.convert("I").point(HIGH_BYTE, "L")
    if "transparency" in image.info or np.asarray(image.convert("RGB")).max() < DARK:
        raise DataError(
            f"{path} has 16 bits per channel, and a transparent colour or no sample above {2**12 - 1:,}, as if the "
            "range were 12 bits: convert it to 8 bits per channel"
        )
    return image


def is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Return the image as RGB; ``background`` shows through where it is transparent.

    Raises:
        DataError: if it has more than 8 bits per channel.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"an image has pixels of mode {image.mode}: convert it to 8 bits per channel")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba, opaque = image.convert("RGBA"), Image.new("RGB", image.size, background)
    opaque.paste(rgba, mask=rgba.getchannel("A"))
    return opaque


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says. Damaged EXIF says nothing: the pixels may still be whole."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises many types on damaged files
        turn = None
    return image if turn is None else image.transpose(turn)


def checked_file(content: bytes, path: str, limits: ImageLimits, background: str) -> bytes:
    """Return the content, or ``Converted`` if other programs would see another picture in it.

    Raises:
        DataError: as ``whole_image`` does.
    """
    with whole_image(content, path, limits) as (image, plain):
        return content if plain else Converted(encode_png(to_rgb(upright(image), background)))


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decode_rgb(content: bytes, path: str, size: int) -> NDArray[np.uint8]:
    """Return the pixels uint8 [3, size, size] of an encoded image: upright (EXIF), RGB, centre-cropped.

    Differs: ADM's preparation ignores EXIF, and keeps a picture as its camera stored it.
    """
    with whole_image(content, path) as (image, _):
        pixels = np.asarray(centre_crop(to_rgb(upright(image)), size))  # [H, W, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut the centre square, as ADM does.

    A box filter halves the image while its shorter side is at least twice ``size``. Bicubic scaling does the rest.

    Differs: ADM resizes a long image as a whole, which takes gigabytes for a line of 30,000 x 1 pixels. Here it is cut
    to ``LONGEST`` first, which moves the sampled positions by less than a pixel of the file.
    """
    if image.size == (size, size):
        return image
    image = centre_cut(image, LONGEST * min(image.size))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return centre_cut(image, size)


def centre_cut(image: Image.Image, longest: int) -> Image.Image:
    """Cut out the centre of the sides that are longer than ``longest``."""
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Image.fromarray(np.asarray(image)[top : top + height, left : left + width])
