"""Pixels decoded, shown as pictures, or written in another transfer syntax. Pure: bytes to bytes.

Runs in the fenced process of `node.gateway.web.fence`, for codecs are native code that reads
hostile input. What comes in is a DICOM file; for single frames one that was cut down to it.
"""

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from node.imaging import jpeg_lossless

jpeg_lossless.register()

Array = npt.NDArray[Any]
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF", "image/jp2": "JPEG2000"}


def native(file: bytes) -> bytes:
    """Return the samples of a one-frame file: little-endian, by pixel, colours as RGB."""
    array = pixel_array(pydicom.dcmread(BytesIO(file)))
    little: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return little


def transcode(file: bytes) -> bytes:
    """Return the whole file in Explicit VR Little Endian, its pixels decoded."""
    data_set = pydicom.dcmread(BytesIO(file))
    syntax = data_set.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        data_set.decompress(generate_instance_uid=False)
    elif not syntax.is_little_endian:
        _turn_words(data_set)
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = BytesIO()
    # Not `save_as`, which refuses to change the byte order.
    pydicom.dcmwrite(
        target, data_set, implicit_vr=False, little_endian=True, enforce_file_format=True
    )
    return target.getvalue()


def _turn_words(data_set: Any) -> None:
    """Turn round what pydicom leaves in big-endian order: values that are words of some size."""
    pixels = max(2, int(data_set.get("BitsAllocated", 16)) // 8)
    sizes = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}

    def turn(_: Any, element: Any) -> None:
        size = sizes.get(element.VR)
        if size is not None and isinstance(element.value, bytes):
            size = pixels if element.keyword == "PixelData" else size
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()

    data_set.walk(turn)


def picture(file: bytes, wishes: dict[str, Any]) -> bytes:
    """Return the frame of a one-frame file as a picture.

    `wishes`: media (of `FORMATS`), size (width, height it must fit into, or None), region (x, y,
    width, height of the image, or None), window (center, width, function, or None), quality (1 to
    100).
    """
    data_set = pydicom.dcmread(BytesIO(file))
    array = pixel_array(data_set)
    grey = data_set.get("SamplesPerPixel", 1) == 1
    if grey and data_set.get("PhotometricInterpretation") == "PALETTE COLOR":
        array, grey = apply_color_lut(array, data_set), False
    shades = _grey(array, data_set, wishes.get("window")) if grey else _eight_bits(array, data_set)
    image = Image.fromarray(np.ascontiguousarray(shades))
    region, size = wishes.get("region"), wishes.get("size")
    if region:
        x, y, width, height = region
        image = image.crop((x, y, min(x + width, image.width), min(y + height, image.height)))
    if size:
        scale = min(size[0] / image.width, size[1] / image.height)
        fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(fitted, Image.Resampling.LANCZOS)
    target = BytesIO()
    kind = FORMATS[wishes["media"]]
    options = {"quality": wishes.get("quality", 90)} if kind == "JPEG" else {}
    image.save(target, kind, **options)
    return target.getvalue()


def _eight_bits(array: Array, data_set: Any) -> Array:
    if array.dtype == np.uint8:
        return array
    bits = array.dtype.itemsize * 8
    if "RedPaletteColorLookupTableDescriptor" not in data_set:
        bits = int(data_set.get("BitsStored", bits))
    return (array.astype(np.uint32) >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


def _grey(array: Array, data_set: Any, window: Any) -> Array:
    values = apply_modality_lut(array, data_set)
    shades: Array
    if window is None and "VOILUTSequence" in data_set:
        values = apply_voi(values, data_set)
        shades = _stretched(values, data_set, False)
    else:
        window = window or _own_window(data_set)
        shades = _windowed(values, *window) if window else _stretched(values, data_set, True)
    inverse = data_set.get("PhotometricInterpretation") == "MONOCHROME1"
    if data_set.get("PresentationLUTShape") == "INVERSE":
        inverse = True
    return 255 - shades if inverse else shades


def _own_window(data_set: Any) -> tuple[float, float, str] | None:
    def first(value: Any) -> Any:
        return value[0] if isinstance(value, list | tuple | pydicom.multival.MultiValue) else value

    center, width = first(data_set.get("WindowCenter")), first(data_set.get("WindowWidth"))
    if center is None or width is None or float(width) <= 0:
        return None
    return float(center), float(width), str(data_set.get("VOILUTFunction") or "LINEAR")


def _windowed(values: Array, center: float, width: float, function: str) -> Array:
    """Apply a window (PS3.3 C.11.2.1.2, C.11.2.1.3), to 0 to 255."""
    values = values.astype(np.float32)
    shades: Array
    if function == "SIGMOID":
        shades = 255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80)))
    elif function == "LINEAR_EXACT":
        shades = ((values - center) / width + 0.5) * 255
    elif width > 1:
        shades = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    else:
        shades = (values > center - 0.5) * np.float32(255)
    return np.clip(np.rint(shades), 0, 255).astype(np.uint8)


def _stretched(values: Array, data_set: Any, without_padding: bool) -> Array:
    """Spread the values that occur over 0 to 255; padding does not count (PS3.3 C.7.5.1.1.2)."""
    values = values.astype(np.float32)
    inside = values[np.isfinite(values)]
    padding = data_set.get("PixelPaddingValue") if without_padding else None
    if isinstance(padding, int) and "RescaleSlope" not in data_set:
        inside = inside[inside != padding] if (inside != padding).any() else inside
    if not inside.size or inside.max() == inside.min():
        return np.zeros(values.shape, np.uint8)
    low, high = float(inside.min()), float(inside.max())
    return np.clip(np.nan_to_num((values - low) / (high - low)) * 255, 0, 255).astype(np.uint8)
