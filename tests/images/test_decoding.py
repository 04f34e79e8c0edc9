"""Every common kind of image file becomes upright RGB of the asked size, or an error that names it."""

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import encode, picture
from tests.support.photographs import picture as photo
from tokenbridge.images import DataError
from tokenbridge.images.decoding import decode_rgb, open_whole

PNG, JPEG = (encode(picture(4, 64, 64), kind) for kind in ("PNG", "JPEG"))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    image = picture(1).convert(mode)
    expected = np.asarray(open_whole(encode(image, kind), "a").convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_rgb(encode(image, kind), "a", 12), expected)


def test_exif_orientation_is_applied() -> None:
    image = picture(2)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to look at it
    turned = decode_rgb(encode(image, exif=exif), "a.png", 12)
    np.testing.assert_array_equal(turned, np.asarray(image.rotate(-90)).transpose(2, 0, 1))


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """The published preparation of ADM's reference statistics, written down from its description: pixels [H, W, 3]."""
    sides = np.array(image.size)
    while sides.min() // 2 >= size:
        sides = sides // 2
        image = image.resize(tuple(sides.tolist()), resample=Image.BOX)
    factor = size / sides.min()
    enlarged = image.resize((round(sides[0] * factor), round(sides[1] * factor)), resample=Image.BICUBIC)
    pixels = np.array(enlarged)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize(
    "sides",
    [(500, 375), (375, 500), (333, 499), (511, 513), (512, 512), (64, 64), (65, 130), (1, 7), (19, 23), (33, 31)],
)
def test_the_crop_is_adms_to_the_pixel(sides: tuple[int, int], size: int) -> None:
    photograph = photo("n11939491").convert("RGB").resize(sides, Image.Resampling.LANCZOS)
    expected = adm_crop(photograph, size).transpose(2, 0, 1)
    assert expected.shape == (3, size, size)
    np.testing.assert_array_equal(decode_rgb(encode(photograph), "a.png", size), expected)


def flipped(content: bytes) -> bytes:
    """The content with other bits in the byte in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PNG[: len(PNG) // 2], r"is corrupt or truncated .*replace or delete it"),
        (JPEG[: len(JPEG) // 2], r"is corrupt or truncated .*replace or delete it"),
        (flipped(PNG), "is corrupt or truncated"),
        (b"", "is not an image"),
        (b"hello, I am a text", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", r"is (not an image|corrupt)"),
        (encode(Image.fromarray(np.full((8, 8), 40000, np.uint16))), r"has pixels of mode I;16.*convert it to 8 bits"),
    ],
    ids=["truncated PNG", "truncated JPEG", "flipped byte", "empty", "text", "signature", "sixteen bits"],
)
def test_a_broken_image_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"cat/7 {message}"):
        open_whole(content, "cat/7")
