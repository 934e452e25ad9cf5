"""JPEG lossless (processes 14), decoded by libjpeg-turbo, for pydicom to find.

What archives keep most of CT and MR is compressed so, and pydicom's own plugins for it are under
the GPL or crash on broken frames. Importing this module and calling `register` is all that is
needed; it changes nothing for other transfer syntaxes.
"""

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

DECODER_DEPENDENCIES = dict.fromkeys((JPEGLossless, JPEGLosslessSV1), ("numpy", "imagecodecs"))
_LABEL = "libjpeg-turbo"
_END = b"\xff\xd9"  # EOI (ISO 10918-1 B.2.1)


def is_available(uid: str) -> bool:
    """Whether frames of that transfer syntax can be decoded; pydicom asks."""
    return uid in DECODER_DEPENDENCIES


def register() -> None:
    """Let pydicom decode JPEG lossless. The same again changes nothing."""
    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if _LABEL not in decoder.available_plugins:
            decoder.add_plugin(_LABEL, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """Return the samples of one frame by pixel, little-endian, in the bits that are allocated."""
    if not source.rstrip(b"\0").endswith(_END):
        raise ValueError("the frame breaks off")  # which libjpeg would fill up
    # Of one colour space to the same: samples as they were compressed, whatever a marker says.
    space = imagecodecs.JPEG8.CS.GRAYSCALE
    if runner.samples_per_pixel == 3:
        space = imagecodecs.JPEG8.CS.RGB
    frame = imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space)
    if frame.dtype.itemsize * 8 > runner.bits_allocated:
        raise ValueError("the frame has more bits than are allocated")
    runner.set_option("planar_configuration", 0)
    return bytearray(frame.astype(np.dtype(f"<u{runner.bits_allocated // 8}")).tobytes())
