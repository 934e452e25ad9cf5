"""GDCM and DCMTK write files anew; what `verify` says of each, kind by kind.

What a tool changes is in `CHANGES`, and nothing else may happen: every other file that a tool
writes must be told to be the same image.
"""

from collections import Counter
from pathlib import Path

from node.imaging.commitment import commit_file
from node.imaging.errors import UnreadableInstance
from node.imaging.manifest import first_version
from node.imaging.reader import read_instance
from node.imaging.verify import Verdict, compare
from tests.imaging import dicom, vendor
from tests.interop.series import head_ct
from tests.interop.tools import call

NAME = "re-encoding: gdcmconv and DCMTK's converters, and what verify says"
PACKAGES = {"dcmtk": "dcmcjpeg", "libgdcm-tools": "gdcmconv"}
TOOLS = {
    "gdcmconv --raw": "native",
    "gdcmconv --implicit": "native",
    "gdcmconv --explicit": "native",
    "gdcmconv --jpeg": "JPEG lossless",
    "gdcmconv --j2k": "JPEG 2000",
    "gdcmconv --jpegls": "JPEG-LS",
    "gdcmconv --rle": "RLE",
    "dcmconv +ti": "native",
    "dcmconv +te": "native",
    "dcmconv +tb": "big-endian",
    "dcmconv +td": "deflated",
    "dcmcjpeg +un +e1": "JPEG lossless",
    "dcmcjpeg +un +el": "JPEG lossless",
    "dcmdjpeg": "native",
    "dcmcjpls +un": "JPEG-LS",
    "dcmdjpls": "native",
    "dcmcrle +un": "RLE",
    "dcmdrle": "native",
}
# OpenJPEG does not decode samples of 32 bits: such a file is refused, not half read.
_UNDECODED = {("rtdose", "gdcmconv --j2k")}
# Decoded and compressed anew they are other images: from a lossy source P is the payload.
LOSSY = {"JPEG-lossy", "us-jpeg"}
_INTACT = {Verdict.SAME_FILE, Verdict.REENCODED}
_LUT = "palette color lookup table data"


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    counts: dict[str, Counter[str]] = {tool: Counter() for tool in TOOLS}
    for name, path in sources(work).items():
        (known,) = first_version(bytes(16), bytes(32), [commit_file(path)]).instances
        for tool in TOOLS:
            target = work / "out.dcm"
            target.unlink(missing_ok=True)
            done = call(*tool.split(), path, target)
            if done.returncode or not target.exists():
                counts[tool]["not written"] += 1  # the tool does not know the source's syntax
                continue
            counts[tool][told(name, tool, known, target)] += 1
    total = sum(next(iter(counts.values())).values())
    lines = [f"{total} sources by {len(TOOLS)} conversions"]
    return lines + [f"{tool} ({TOOLS[tool]}): {_counted(found)}" for tool, found in counts.items()]


def sources(work: Path) -> dict[str, Path]:
    """Return a file of every kind: written for it, shipped with pydicom, and a real CT slice."""
    shipped = ("CT_small", "MR_small", "rtdose", "SC_rgb_small_odd", "test-SR", "JPEG-lossy")
    found = {name: dicom.FILES / f"{name}.dcm" for name in shipped}
    return found | {"head-ct": head_ct()[0]} | vendor.generate(work / "vendor")


def told(name, tool, known, target) -> str:
    """Return the verdict in words, once it is what it must be."""
    read = read_instance(target)
    where = f"{name} by {tool}"
    if isinstance(read, UnreadableInstance):
        assert read.code == "decoder", f"{where}: {read.reason}"
        assert (name, tool) in _UNDECODED, f"{where}: {read.reason}"
        return "refused"
    said = compare(known, read)
    allowed = changes(name, tool)
    if name in (*LOSSY, "segmentation") and said.verdict is Verdict.UNDECIDED:
        return said.verdict.value
    if said.verdict not in _INTACT:
        details = set(said.details)
        assert allowed, f"{where}: {said.sentence}"
        assert details <= allowed, f"{where}: {said.sentence}"
    return said.verdict.value


def changes(name: str, tool: str) -> set[str]:
    """Return what the tool is known to change in files of that kind."""
    known = set()
    if tool.startswith("dcmcjpeg"):
        known |= {"derivation description (added)", "derivation description"}
        if name == "rgb-planar-1":  # DCMTK 3.6.7 mixes up the planes; its own decoder shows it
            known |= {"pixels of frame 1", "pixels of frame 2"}
    rewritten = tool.startswith("gdcmconv") and not tool.endswith("plicit")
    if rewritten:  # GDCM leaves out a number of frames that is 1
        known |= {"number of frames (removed)"}
    if name == "palette" and rewritten:  # GDCM writes the table anew
        known |= {f"{colour} {_LUT}" for colour in ("red", "green", "blue")}
    if name in LOSSY and (rewritten or "jp" in tool):
        known |= {"lossy image compression method (added)", "lossy image compression ratio (added)"}
        known |= {"photometric interpretation", "planar configuration (added)", "bits stored"}
        known |= {"pixels"} | {f"pixels of frame {number}" for number in (1, 2, 3)}
    if name == "ybr-full-422" and rewritten:  # it takes subsampling for lossy compression
        known |= {"lossy image compression (added)", "lossy image compression method (added)"}
        known |= {"photometric interpretation", "pixels of frame 1", "pixels"}
    if name == "rtdose" and tool == "dcmconv +tb":  # 32 bits: DCMTK turns round 16-bit words
        known |= {f"pixels of frame {number}" for number in range(1, 16)}
    return known


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(found.items()))
