"""One PNG or JPEG image, turned into a square array; whatever cannot be is named damage."""

import errno
import io
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

ByteStream: TypeAlias = io.BufferedReader | io.BytesIO

_FORMATS = ("PNG", "JPEG")
_MODES = {1: "L", 3: "RGB"}
_MOST_PIXELS = 89_478_485  # Pillow's default, 256 MB of RGB; kept here too, because a program may lift Pillow's
_ORIENTATION = 0x0112  # the EXIF tag: how the stored rows and columns are to be shown
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What the machine lacks at the moment says nothing about the file.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamagedImageError(RuntimeError):
    """An image cannot be decoded; says why."""


class UnreadableImageError(DamagedImageError):
    """The file system does not hand out the bytes of an image, which may be well again tomorrow."""


def check_shape(side: int, channels: int) -> None:
    """Refuse a size that no image can be brought to.

    Raises:
        ValueError: if the side is below 1 or the channels are neither 1 nor 3.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")


def decode_image(stream: ByteStream, side: int, channels: int = 3) -> UInt8[np.ndarray, "side side channels"]:
    """Decode an image, turn it upright, cut out its central square and scale that.

    A palette is looked up, 16 bits become the upper 8, and an alpha channel is dropped without blending. Scaling is
    bicubic over the area that a pixel covers; a large JPEG is first decoded at 1/2, 1/4 or 1/8, but not below twice
    the side.

    Args:
        stream: the bytes of a PNG or JPEG file, at the beginning.
        side: of the square, in pixels.
        channels: 3 for RGB, 1 for grey.

    Raises:
        DamagedImageError: if the bytes are no such image, are cut off, or claim an absurd size.
    """
    try:
        with Image.open(stream, formats=_FORMATS) as image:
            _check_pixels(image)
            image.draft(None, (2 * side, 2 * side))
            turn = _TRANSPOSES.get(_orientation(image))
            upright = _convert(image, _MODES[channels])
        if turn is not None:
            upright = upright.transpose(turn)
        width, height = upright.size
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        # Not `resize(box=...)`, whose filter sees what lies beyond the square.
        square = upright.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
        return np.array(square).reshape(side, side, channels)
    except Exception as error:
        raise _damage(error, stream) from error


def examine_image(stream: ByteStream, side: int, channels: int = 3) -> None:
    """Decode an image completely, and check what decoding alone does not: the checksums of a PNG.

    Raises:
        DamagedImageError: as for `decode_image`.
    """
    try:
        with Image.open(stream, formats=_FORMATS) as image:
            _check_pixels(image)
            if image.format == "PNG":
                image.verify()
        stream.seek(0)
    except Exception as error:
        raise _damage(error, stream) from error
    decode_image(stream, side, channels)


def _check_pixels(image: Image.Image) -> None:
    # Only the header has been read.
    if image.width * image.height > _MOST_PIXELS:
        raise DamagedImageError(f"claims {image.width} x {image.height} pixels, of {_MOST_PIXELS} allowed")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Malformed EXIF data are common, and no fault of the pixels.
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey, which Pillow would clip at 255; of 16-bit colour it takes the upper byte, too.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA"):
        # By way of RGBA, because Pillow warns of a palette with transparency otherwise.
        image = image.convert("RGBA")
    return image.convert(mode)


def _damage(error: Exception, stream: ByteStream) -> Exception:
    """Say what an exception of a decoder means: hostile bytes can raise nearly any."""
    if isinstance(error, DamagedImageError | MemoryError):
        return error
    if isinstance(error, UnidentifiedImageError):
        # Its own message holds the address of the stream.
        return DamagedImageError("is neither a PNG nor a JPEG image" if stream.seek(0, io.SEEK_END) else "is empty")
    return unreadable(error) or DamagedImageError(" ".join(str(error).split())[:200] or type(error).__name__)


def unreadable(error: Exception) -> Exception | None:
    """Return what to raise for an error of the file system, None for any other (Pillow's have no number)."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    return error if error.errno in _SHORTAGES else UnreadableImageError(f"cannot be read: {error.strerror}")
