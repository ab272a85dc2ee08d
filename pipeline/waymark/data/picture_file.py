"""One picture in a file: which formats are read, and how its pixels become the features."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from waymark.errors import first_line

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What is tried on a file, whatever its ending: no format that starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of 8 bits a channel
MAX_PIXELS = 2**27  # of one picture: its header is small whatever it promises


class OtherSize(ValueError):
    """Say that a picture is not of the size that is asked for."""


def decode(content: bytes, shape: tuple[int, int, int], resize: bool = True) -> np.ndarray:
    """Return the picture in a file as uint8 [H, W, C]; raise what Pillow raises, ValueError.

    Raises OtherSize for a picture of another size, unless it is to be resized.
    """
    import io

    from PIL import Image, ImageOps

    height, width, channels = shape
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it promises {image.width} x {image.height} pixels; allowed are {MAX_PIXELS:,}"
            )
        if image.mode not in MODES:
            raise ValueError(f"its pixels are {image.mode}, not of 8 bits a channel")
        upright = ImageOps.exif_transpose(image)
    if not resize and upright.size != (width, height):
        raise OtherSize(
            f"it has {upright.height} x {upright.width} pixels, where {height} x {width} are taken"
        )
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    plain = upright.convert("RGB" if channels == 3 else "L")
    resized = plain.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, downwards
    return np.asarray(resized).reshape(shape)


def reason(error: Exception) -> str:
    """Return in words what made a picture unreadable."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # whose text holds an address
        return "it is not a picture of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it promises more than {MAX_PIXELS:,} pixels"
    return first_line(error).rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Let Pillow print nothing: what it warns of is refused here, or does not matter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
