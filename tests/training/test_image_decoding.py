import contextlib
import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxgen.training.image_decoding import DamagedImageError, check_shape, decode_image, examine_image


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data, side, channels=3):
    return decode_image(io.BytesIO(data), side, channels)


def noise(height, width, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze())


def png_header(width, height):
    """A PNG of nothing but a header with a right checksum, and a few bytes of pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 40), (33, 97), (1, 1), (7, 300), (700, 650)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [1, 32])
def test_a_constant_colour_stays_what_it_is(width, height, kind, side):
    image = decoded(encoded(Image.new("RGB", (width, height), (200, 100, 50)), kind), side)
    assert image.dtype == np.uint8
    assert image.shape == (side, side, 3)
    # One unit is the rounding of JPEG's colours.
    np.testing.assert_allclose(image.reshape(-1, 3).astype(int), np.tile([200, 100, 50], (side**2, 1)), atol=1)


def test_the_central_square_is_cut_out_and_its_area_averaged():
    values = np.zeros((40, 120, 3), np.uint8)
    values[:, :40], values[:, 40:60], values[:, 60:80], values[:, 80:] = 255, 10, 90, 255
    square = decoded(encoded(Image.fromarray(values)), 8)[..., 0]
    # The square is columns 40 ... 79: half 10, half 90. A pixel covers 5; the cubic reaches 10 beyond the edge.
    np.testing.assert_array_equal(square[:, :2], 10)
    np.testing.assert_array_equal(square[:, 6:], 90)
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    # Without antialiasing, every second column would give 0 or 200. The ends see less than their whole surrounding.
    grey = decoded(encoded(Image.fromarray(stripes)), 8, 1)[:, 1:-1]
    np.testing.assert_allclose(grey.astype(int), 100, atol=3)


def test_a_large_jpeg_is_decoded_small_and_still_right():
    smooth = np.linspace(0, 255, 1024).astype(np.uint8)
    picture = Image.fromarray(np.repeat(np.tile(smooth, (1024, 1))[..., None], 3, 2))
    expected = smooth.reshape(16, 64).mean(1)
    got = decoded(encoded(picture, "JPEG", quality=95), 16)
    # Away from the ends, where the cubic sees the edge; two grey values for JPEG's quantisation.
    np.testing.assert_allclose(got[:, 2:-2, 0], np.tile(expected[2:-2], (16, 1)), atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(48, 48), (61, 48)])
def test_exif_orientation_turns_the_image_upright(orientation, size):
    values = np.add.outer(np.arange(48) * 2, np.linspace(0, 120, size[0])).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.stack([values, values // 2, values * 0], -1)), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = decoded(encoded(Image.fromarray(np.asarray(upright))), 12)
    np.testing.assert_array_equal(decoded(data, 12), expected)


def test_broken_exif_is_no_fault_of_the_pixels():
    data = encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(decoded(data, 4)[0, 0], [1, 2, 3])


def test_every_mode_becomes_colour_or_grey():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    palette = red.quantize(4)
    transparent = red.copy()
    transparent.putalpha(0)
    deep = Image.fromarray(np.full((16, 16), 0x80FF, np.uint16))
    for data, colour in {
        encoded(palette): [255, 0, 0],
        encoded(palette, transparency=bytes([0, 0, 0, 0])): [255, 0, 0],
        encoded(transparent): [255, 0, 0],
        encoded(red.convert("CMYK"), "JPEG", quality=100, subsampling=0): [255, 0, 0],
        encoded(deep): [0x80] * 3,
        encoded(Image.new("L", (16, 16), 7)): [7] * 3,
        encoded(Image.new("LA", (16, 16), (7, 0))): [7] * 3,
        encoded(Image.new("1", (16, 16), 1)): [255] * 3,
    }.items():
        examine_image(io.BytesIO(data), 8, 3)
        # JPEG's rounding.
        np.testing.assert_allclose(decoded(data, 8)[4, 4].astype(int), colour, atol=2)
        # The luma of ITU-R 601, by which Pillow turns grey.
        np.testing.assert_allclose(decoded(data, 8, 1)[4, 4].astype(int), np.dot([0.299, 0.587, 0.114], colour), atol=2)


PNG = encoded(noise(40, 40))
JPEG = encoded(noise(40, 40), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not an image", "neither a PNG nor a JPEG"),
        (encoded(noise(8, 8), "BMP"), "neither a PNG nor a JPEG"),
        (PNG[: len(PNG) // 2], "."),
        (PNG[:20], "."),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:10], "."),
        (PNG[:500] + bytes([PNG[500] ^ 4]) + PNG[501:], "."),
        (png_header(60_000, 60_000), "3600000000 pixels"),
        (png_header(13_000, 12_000), "."),
        (png_header(100, 100), "."),
    ],
    ids=["empty", "text", "bmp", "cut-png", "png-head", "cut-jpeg", "jpeg-head", "flip", "bomb", "bomb2", "short"],
)
def test_damage_is_named(data, reason):
    with pytest.raises(DamagedImageError, match=reason):
        examine_image(io.BytesIO(data), 8)


def test_a_lifted_limit_of_pillow_does_not_lift_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DamagedImageError, match="claims 60000 x 60000 pixels, of 89478485 allowed"):
        examine_image(io.BytesIO(png_header(60_000, 60_000)), 8)


def test_no_byte_of_a_file_can_do_worse_than_damage():
    random = np.random.default_rng(1)
    for data in (encoded(noise(12, 12)), encoded(noise(12, 12), "JPEG", exif=Image.Exif().tobytes())):
        for _ in range(300):
            bad = bytearray(data)
            for place in random.integers(0, len(bad), 3):
                bad[place] = random.integers(256)
            with contextlib.suppress(DamagedImageError):
                examine_image(io.BytesIO(bytes(bad)), 4)


def test_a_shortage_of_the_machine_is_no_damage():
    class Scarce(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(OSError, match="Cannot allocate memory"):
        decode_image(Scarce(PNG), 8)


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="side must be at least 1 pixel, got 0"):
        check_shape(0, 3)
    with pytest.raises(ValueError, match=r"channels must be 1 .* got 4"):
        check_shape(8, 4)
