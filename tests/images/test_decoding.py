"""Every common kind of image file becomes upright RGB of the asked size, or an error that names it."""

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, floats, lists, sampled_from, tuples
from PIL import Image, ImageDraw
from PIL.ImageColor import getrgb
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tests.sources.conftest import encode, picture
from tests.support.photographs import picture as photo
from tokenbridge.config.data import ImageLimits
from tokenbridge.images import DataError, decoding
from tokenbridge.images.decoding import LONGEST, Converted, check_bytes, checked_file, decode_rgb
from tokenbridge.images.weight import Budget


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """The beginning of a PNG."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png(beginning: bytes, rows: bytes, transparent: bytes = b"") -> bytes:
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return beginning + (chunk(b"tRNS", transparent) if transparent else b"") + ends


def exif(entries: list[bytes], tail: bytes = b"") -> bytes:
    """An EXIF block of one directory; ``tail`` begins at byte 14 + 12 * entries."""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + tail


def text_chunks() -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "hello", zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    return info


PNG, JPEG = (encode(picture(4, 64, 64), kind) for kind in ("PNG", "JPEG"))
WIDE_WEBP = bytearray(encode(picture(4).convert("RGBA"), "WEBP", exif=Image.Exif().tobytes()))
WIDE_WEBP[24:30] = b"\xff\x3f\0" * 2  # width and height of the canvas, less 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    image = picture(1).convert(mode)
    expected = np.asarray(Image.open(io.BytesIO(encode(image, kind))).convert("RGB")).transpose(2, 0, 1)
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


def test_a_long_line_takes_no_more_memory_than_its_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    enlarged, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda image, size, *more: enlarged.append(size[0] * size[1]) or resize(image, size, *more),
    )
    line = Image.linear_gradient("L").resize((30_000, 1)).convert("RGB")
    pixels = decode_rgb(encode(line), "line.png", 64)
    assert max(enlarged) <= 64 * 64 * LONGEST
    centre = np.asarray(line)[0, 15_000]
    assert np.abs(pixels.astype(int) - centre[:, None, None]).max() <= 1


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
        (encode(picture(1), "EPS"), r"is not an image \(JPEG, PNG, WebP, GIF or BMP\)"),  # Ghostscript would run it
        (encode(picture(1), "TIFF"), "is not an image"),
        (encode(picture(1, 1010, 10)), r"has 1010 x 10 pixels, an aspect of more than data\.limits\.aspect \(100\)"),
        (bytes(WIDE_WEBP), r"is corrupt or truncated \(Image size .* exceeds limit"),
        (png(header(20_000, 20_000), b""), r"has 20000 x 20000 pixels, more than data\.limits\.megapixels \(200\)"),
    ],
    ids=[
        "cut PNG",
        "cut JPEG",
        "flipped byte",
        "empty",
        "text",
        "signature",
        "EPS",
        "TIFF",
        "aspect",
        "WebP bomb",
        "PNG bomb",
    ],
)
def test_a_broken_image_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"cat/7 {message}"):
        checked_file(content, "cat/7", ImageLimits(), "white")


@pytest.mark.parametrize(
    ("size", "message"), [(600_000_000, r"has 600,000,000 bytes, .*megabytes \(512\)"), (-1, "pipe")]
)
def test_what_should_not_be_read_is_named(size: int, message: str) -> None:
    with pytest.raises(DataError, match=f"cat/7 .*{message}"):
        check_bytes(size, "cat/7", ImageLimits())


# Each shows a red disc with hidden colours around it. Fashion and science have them all.
DISC = Image.new("L", (16, 16))
ImageDraw.Draw(DISC).ellipse((3, 3, 12, 12), fill=255)


def disc(mode: str, hidden: Any, colour: Any) -> Image.Image:
    image = Image.new(mode, DISC.size, hidden)
    image.paste(colour, mask=DISC)
    return image


def paletted() -> Image.Image:
    image = disc("P", 0, 1)
    image.putpalette([0, 255, 0, 220, 30, 30])
    return image


@pytest.mark.parametrize(
    ("image", "options", "colour"),
    [
        (disc("RGBA", (0, 255, 0, 0), (220, 30, 30, 255)), {}, (220, 30, 30)),
        (disc("LA", (0, 0), (180, 255)), {}, (180, 180, 180)),
        (paletted(), {"transparency": 0}, (220, 30, 30)),
        (paletted(), {"transparency": b"\0\xff"}, (220, 30, 30)),
        (disc("L", 0, 180), {"transparency": 0}, (180, 180, 180)),
        (disc("1", 0, 1), {"transparency": 0}, (255, 255, 255)),
        (disc("RGB", (0, 255, 0), (220, 30, 30)), {"transparency": (0, 255, 0)}, (220, 30, 30)),
    ],
    ids=["RGBA", "LA", "palette index", "palette alpha", "grey", "bits", "colour"],
)
@pytest.mark.parametrize("background", ["white", "#102030"])
def test_the_background_shows_through_transparency(
    image: Image.Image, options: dict[str, Any], colour: tuple[int, ...], background: str
) -> None:
    content = encode(image, **options)
    expected = np.where(
        np.asarray(DISC)[None], np.reshape(colour, (3, 1, 1)), np.reshape(getrgb(background), (3, 1, 1))
    )
    stored = checked_file(content, "a.png", ImageLimits(), background)
    assert isinstance(stored, Converted)
    np.testing.assert_array_equal(decode_rgb(stored, "a.png", 16), expected)
    if background == "white":
        np.testing.assert_array_equal(decode_rgb(content, "a.png", 16), expected)


def test_half_transparent_is_half_background() -> None:
    half = encode(Image.new("RGBA", (8, 8), (200, 0, 0, 128)))
    assert decode_rgb(half, "a.png", 8)[:, 0, 0].tolist() == pytest.approx([227, 127, 127], abs=1)


def test_an_opaque_image_keeps_its_bytes() -> None:
    for content in (encode(picture(1).convert("RGBA")), encode(picture(1).convert("P")), JPEG):
        assert checked_file(content, "a.png", ImageLimits(), "white") is content


def test_only_the_first_picture_of_an_animation_is_stored() -> None:
    for kind in ("GIF", "PNG", "WEBP"):
        moving = encode(picture(1), kind, save_all=True, append_images=[picture(2)], lossless=True)
        stored = checked_file(moving, "a", ImageLimits(), "white")
        assert isinstance(stored, Converted)
        assert np.abs(decode_rgb(stored, "a", 12).astype(int) - np.asarray(picture(1)).transpose(2, 0, 1)).max() < 30


RAMP = np.tile(np.linspace(0, 65535, 16).astype(int), (16, 1))
KINDS = {"grey": 0, "RGB": 2, "grey and alpha": 4, "RGBA": 6}  # PNG's colour types


def deep(kind: str, grey: np.ndarray) -> bytes:
    """A 16-bit PNG, which Pillow cannot write."""
    opaque = np.full_like(grey, 65535)
    channels = {"grey": [grey], "RGB": [grey] * 3, "grey and alpha": [grey, opaque], "RGBA": [grey] * 3 + [opaque]}
    rows = np.stack(channels[kind], 2).astype(">u2")
    return png(header(*grey.shape, 16, KINDS[kind]), b"".join(b"\0" + row.tobytes() for row in rows))


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_become_eight(kind: str) -> None:
    stored = checked_file(deep(kind, RAMP), "a.png", ImageLimits(), "white")
    assert isinstance(stored, Converted)
    assert np.abs(decode_rgb(stored, "a.png", 16) - RAMP / 257).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_twelve_bits_in_sixteen_is_refused(kind: str, bits: int) -> None:
    with pytest.raises(DataError, match=r"cat/7 has 16 bits per channel, .* convert it"):
        checked_file(deep(kind, RAMP >> (16 - bits)), "cat/7", ImageLimits(), "white")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_found(bits: int) -> None:
    top = 2**bits - 1
    rows = b"".join(b"\0" + np.packbits([row & (top << 8 - bits) != 0] * 8).tobytes() * bits for row in (0, 255))
    content = png(header(8, 2, bits), rows, struct.pack(">H", top))
    assert decode_rgb(content, "a.png", 2)[0].tolist() == [[0, 0], [255, 255]]
    stored = checked_file(content, "a.png", ImageLimits(), "black")
    assert decode_rgb(stored, "a.png", 2).max() == 0


def test_a_transparent_colour_of_sixteen_bits_is_refused() -> None:
    row = np.array([1000, 2000, 60000], ">u2").tobytes()
    content = png(header(1, 1, 16, 2), b"\0" + row, row)
    with pytest.raises(DataError, match=r"16 bits per channel, and a transparent colour"):
        checked_file(content, "a.png", ImageLimits(), "white")


ENTRY = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6
BLOCKS = {  # EXIF as phones, editors and cameras damage it, and whether the orientation can be read
    "resolution 0/0": (exif([ENTRY, struct.pack("<HHII", 0x011A, 5, 1, 38)], bytes(8)), True),
    "software is a ratio": (exif([ENTRY, struct.pack("<HHII", 0x0131, 5, 1, 38)], struct.pack("<II", 72, 1)), True),
    "exposure is a double": (exif([ENTRY, struct.pack("<HHII", 0x829A, 12, 1, 38)], struct.pack("<d", 0.5)), True),
    "offset outside": (exif([ENTRY, struct.pack("<HHII", 0x010F, 2, 40, 90_000)]), True),
    "type 77": (exif([ENTRY, struct.pack("<HHII", 0x9999, 77, 1, 0)]), True),
    "loop": (exif([ENTRY, struct.pack("<HHII", 0x8769, 4, 1, 8)]), True),
    "orientation is a text": (exif([struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0")]), False),
    "orientation 99": (exif([struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0)]), False),
    "cut": (exif([ENTRY])[:14], False),
    "not TIFF": (b"Exif\0\0hello", False),
    "empty": (b"Exif\0\0", False),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of some
@pytest.mark.parametrize("block", BLOCKS)
def test_damaged_exif_is_no_reason_to_lose_whole_pixels(block: str) -> None:
    content, readable = BLOCKS[block]
    plain = picture(3)
    expected = plain.rotate(-90) if readable else plain
    image = encode(plain, "JPEG", quality=100, subsampling=0, exif=content)
    assert checked_file(image, "a.jpg", ImageLimits(), "white") is image
    difference = decode_rgb(image, "a.jpg", 12).astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 4


def test_damaged_exif_in_a_text_of_a_png_is_ignored() -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n    4\nno digits")
    np.testing.assert_array_equal(
        decode_rgb(encode(picture(3), pnginfo=info), "a", 12), decode_rgb(encode(picture(3)), "a", 12)
    )


SAMPLES = [
    JPEG,
    encode(picture(5), "JPEG", exif=BLOCKS["software is a ratio"][0], comment=b"hello"),
    encode(picture(5).convert("P"), pnginfo=text_chunks()),
    encode(disc("RGBA", (0, 255, 0, 0), (220, 30, 30, 255)), "WEBP", exif=BLOCKS["loop"][0]),
    encode(picture(5), "GIF"),
    deep("RGBA", RAMP),
]


@pytest.mark.filterwarnings("ignore")
@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    sample=sampled_from(SAMPLES),
    changes=lists(tuples(floats(0, 1, exclude_max=True), binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_any_damage_gives_pixels_or_an_error_that_names_the_file(
    sample: bytes, changes: list[tuple[float, bytes]]
) -> None:
    content = bytearray(sample)
    for position, new in changes:
        start = int(position**2 * len(content))  # headers and metadata lie at the beginning
        content[start : start + len(new)] = new
    small = ImageLimits(megapixels=0.1)
    try:
        stored = checked_file(bytes(content), "cat/7", small, "white")
    except DataError as error:
        assert str(error).startswith("cat/7 ")
    else:
        assert decode_rgb(stored, "cat/7", 8).shape == (3, 8, 8)


def test_threads_decode_no_more_pixels_at_a_time_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(3 * 64 * 64)
    monkeypatch.setattr(decoding, "PIXELS", budget)
    seen, load = [], PngImageFile.load

    def watched(image: PngImageFile) -> Any:
        seen.append(budget.sum)
        time.sleep(0.002)
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", watched)
    with ThreadPoolExecutor(8) as pool:
        for size in pool.map(lambda _: decode_rgb(PNG, "a.png", 8).shape, range(24)):
            assert size == (3, 8, 8)
    assert max(seen) == 3 * 64 * 64
    assert budget.sum == 0
