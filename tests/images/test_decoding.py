"""Every common kind of image file becomes upright RGB of the asked size, or an error that names it."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.sources.conftest import picture
from tests.support.photographs import picture as photo
from tokenbridge.images import DataError
from tokenbridge.images.decoding import centre_crop, decode_rgb, open_whole


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_rgb_of_the_right_size_is_untouched() -> None:
    image = picture(0, 8, 8)
    np.testing.assert_array_equal(decode_rgb(encode(image), "a.png", 8), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    image = picture(1).convert(mode)
    expected = np.asarray(open_whole(encode(image, kind), "a").convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_rgb(encode(image, kind), "a", 12), expected)


def test_grey_has_three_equal_channels() -> None:
    red, green, blue = decode_rgb(encode(picture(1).convert("L")), "a.png", 12)
    assert (red == green).all()
    assert (red == blue).all()


def test_exif_orientation_is_applied() -> None:
    image = picture(2)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to look at it
    turned = decode_rgb(encode(image, exif=exif), "a.png", 12)
    np.testing.assert_array_equal(turned, np.asarray(image.rotate(-90)).transpose(2, 0, 1))


@pytest.mark.parametrize("sides", [(8, 8), (9, 30), (64, 17), (5, 7), (8, 9), (100, 33), (31, 16)])
def test_every_shape_is_cropped_to_the_square(sides: tuple[int, int]) -> None:
    assert decode_rgb(encode(picture(3, *sides)), "a.png", 8).shape == (3, 8, 8)


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


def test_the_centre_is_kept() -> None:
    image = Image.new("RGB", (24, 8), "red")
    image.paste("blue", (8, 0, 16, 8))
    assert np.asarray(centre_crop(image, 8)).reshape(-1, 3).tolist() == [[0, 0, 255]] * 64


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_named(kind: str) -> None:
    content = encode(picture(4, 64, 64), kind)
    with pytest.raises(DataError, match=r"cat/7 is corrupt or truncated .*replace or delete it"):
        open_whole(content[: len(content) // 2], "cat/7")


def test_a_flipped_byte_is_found() -> None:
    content = bytearray(encode(picture(4, 64, 64)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match="is corrupt or truncated"):
        open_whole(bytes(content), "a.png")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.png is (not an image|corrupt)"):
        open_whole(content, "a.png")


def test_sixteen_bits_are_refused_instead_of_clipped() -> None:
    deep = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    with pytest.raises(DataError, match=r"a\.png has pixels of mode I;16.*convert it to 8 bits"):
        open_whole(encode(deep), "a.png")
