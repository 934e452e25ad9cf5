"""A data set in the DICOM JSON model, long values as addresses (PS3.18 annex F; §10.4.1.1.2).

Pixels and binary values over a kilobyte are given as a BulkDataURI: the path of tags to the value,
which `find_bulk` follows. Values that contradict their form are left out, the rest stays.
"""

import re
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from node.gateway.web.files import DAMAGED, Failed, Opened

BULK_BYTES_MIN = 1_024
DEPTH_MAX = 64
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_PATH = re.compile(r"[0-9A-Fa-f]{8}(?:/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,16}")

Json = dict[str, Any]


def to_json(opened: Opened, url: str) -> Json:
    """Return the header of an instance; `url` is the instance's own."""
    found = _data_set(opened.header, f"{url}/bulkdata", 0)
    if opened.pixels is not None:
        tag = f"{opened.pixels.tag:08X}"
        found[tag] = {"vr": opened.pixels.vr, "BulkDataURI": f"{url}/bulkdata/{tag}"}
    # Readers of JSON see Unicode whatever the file was written in.
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    found["00083002"] = {"vr": "UI", "Value": [opened.syntax.uid]}  # Available Transfer Syntax UID
    return dict(sorted(found.items()))


def _data_set(data_set: Dataset, url: str, depth: int) -> Json:
    found: Json = {}
    if depth > DEPTH_MAX:
        return found
    for tag in sorted(data_set.keys()):
        if tag.group == 0x0002 or tag.element == 0x0000:
            continue
        try:
            found[f"{int(tag):08X}"] = _element(data_set, int(tag), f"{url}/{int(tag):08X}", depth)
        except DAMAGED:
            continue
    return found


def _element(data_set: Dataset, tag: int, url: str, depth: int) -> Json:
    raw = data_set.get_item(tag, keep_deferred=True)
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
        return {"vr": raw.VR or "UN", "BulkDataURI": url}  # left in the file for its length
    element = data_set[tag]
    if element.VR == "SQ":
        items = [
            _data_set(item, f"{url}/{number}", depth + 1)
            for number, item in enumerate(element.value)
        ]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    value = element.value
    if element.VR in _BINARY and isinstance(value, bytes) and len(value) > BULK_BYTES_MIN:
        return {"vr": element.VR, "BulkDataURI": url}
    converted: Json = element.to_json_dict(None, 0)
    return _finite(converted)


def _finite(element: Json) -> Json:
    """JSON has no numbers beyond the finite ones (PS3.18 F.2.5 leaves them out)."""
    values = element.get("Value")
    if values and any(isinstance(value, float) for value in values):
        limit = float("inf")
        element["Value"] = [
            None if isinstance(v, float) and not -limit < v < limit else v for v in values
        ]
    return element


def is_bulk_path(path: str) -> bool:
    """Whether `path` has the form that metadata gives out: TAG or TAG/ITEM/TAG."""
    return _PATH.fullmatch(path) is not None


def find_bulk(opened: Opened, path: str, bytes_max: int) -> bytes | None:
    """Return the value at `path`, or None if there is none; raises `Failed` for a longer one."""
    *steps, last = path.split("/")
    tag = int(last, 16)
    data_set = opened.header
    try:
        for at in range(0, len(steps), 2):
            data_set = data_set[int(steps[at], 16)].value[int(steps[at + 1])]
        raw = data_set.get_item(tag, keep_deferred=True)
        if isinstance(raw, RawDataElement) and raw.value is None and raw.length and not steps:
            if raw.length > bytes_max:
                raise Failed("limit", f"the value is longer than {bytes_max} bytes")
            return b"".join(opened.pieces(raw.value_tell, raw.length))
        value = data_set[tag].value
    except DAMAGED:
        return None
    return value if isinstance(value, bytes) else None
