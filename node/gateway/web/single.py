"""One frame cut out of an instance, as a DICOM file of its own for the decoder.

Only what describes pixels and their display goes with it; nothing of the patient. What an enhanced
multi-frame image says per frame is moved to where a single-frame image says it (PS3.3 C.7.6.16).
"""

from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

from node.gateway.web.files import DAMAGED, Failed, Opened
from node.gateway.web.frames import Layout, stored_frame

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_VALUES, _WINDOW = 0x00289145, 0x00289132  # transformation sequence, frame VOI LUT sequence
_RESCALE = (0x00281052, 0x00281053, 0x00281054)
_WINDOWING = (0x00281050, 0x00281051, 0x00281056)
_PRESENTATION_SHAPE = 0x20500020
_FRAMES, _EXTENDED_MIN = 0x00280008, 0x00289000  # beyond it: nothing of the image pixel module
_FLOATS = {0x7FE00008: "OF", 0x7FE00009: "OD"}


def single_frame(opened: Opened, layout: Layout, number: int, bytes_max: int) -> bytes:
    """Return frame `number` as a DICOM file; raises `Failed`."""
    if layout.frame_bits > bytes_max * 8:
        raise Failed("limit", "the frame is too large to be decoded here")
    frame = stored_frame(opened, layout, number, bytes_max)
    try:
        return _written(_described(opened, number), opened, frame)
    except DAMAGED as error:
        sentence = f"the image's description is damaged ({type(error).__name__})"
        raise Failed("damaged", sentence) from None


def _described(opened: Opened, number: int) -> Dataset:
    described = Dataset()
    for tag in opened.header.keys():  # noqa: SIM118 - iterating gives elements
        if (tag.group == 0x0028 and int(tag) < _EXTENDED_MIN) or int(tag) == _PRESENTATION_SHAPE:
            element = opened.element(int(tag))
            if int(tag) != _FRAMES and element is not None:
                described.add(element)
    for group in _functional_groups(opened, number):
        for sequence, tags in ((_VALUES, _RESCALE), (_WINDOW, _WINDOWING)):
            for item in list(group[sequence].value)[:1] if sequence in group else ():
                for tag in tags:
                    if tag in item:
                        described.add(item[tag])
    return described


def _functional_groups(opened: Opened, number: int) -> list[Dataset]:
    """Return the shared item and that of the frame, whichever there are."""
    found: list[Dataset] = []
    for tag, at in ((_SHARED, 0), (_PER_FRAME, number - 1)):
        element = opened.element(tag) if tag in opened.header else None
        if element is not None and element.VR == "SQ" and len(element.value) > at:
            found.append(element.value[at])
    return found


def _written(described: Dataset, opened: Opened, frame: bytes) -> bytes:
    place = opened.pixels
    syntax = UID(opened.syntax.uid) if opened.syntax.encapsulated else ExplicitVRLittleEndian
    if place is not None and place.tag in _FLOATS:
        described.add_new(place.tag, _FLOATS[place.tag], frame)
    elif opened.syntax.encapsulated:
        described.add_new(0x7FE00010, "OB", encapsulate([frame], has_bot=False))
        described["PixelData"].is_undefined_length = True
    else:
        wide = int(described.get("BitsAllocated", 8)) > 8
        described.add_new(0x7FE00010, "OW" if wide else "OB", frame + b"\0" * (len(frame) % 2))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    described.file_meta, described.preamble = meta, bytes(128)
    target = BytesIO()
    described.save_as(target, implicit_vr=False, little_endian=True)
    return target.getvalue()
