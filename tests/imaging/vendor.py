"""Instances of kinds that the pydicom wheel lacks, written here: one function for each kind."""

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging import dicom

STORAGE = "1.2.840.10008.5.1.4.1.1."
CR, CT, ENHANCED_CT, MR, ENHANCED_MR = "1", "2", "2.1", "4", "4.1"
ULTRASOUND, ULTRASOUND_MULTIFRAME, SEGMENTATION = "6.1", "3.1", "66.4"
CAPTURE, COLOUR_MULTIFRAME = "7", "7.4"
SR, PDF, ECG = "88.33", "104.1", "9.1.1"
SIDE = 64
STUDY = "2.25.7"


class Maker:
    """Writes instances of one study into a folder."""

    def __init__(self, folder: Path, study: str = STUDY) -> None:
        self.folder, self.study = folder, study
        self.paths: dict[str, Path] = {}

    def new(self, sop_class: str, modality: str, **elements) -> FileDataset:
        """Return a data set with its UIDs, in Explicit VR Little Endian."""
        number = len(self.paths) + 1
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = STORAGE + sop_class
        meta.MediaStorageSOPInstanceUID = f"{self.study}.1.{number}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID, ds.SOPInstanceUID = STORAGE + sop_class, f"{self.study}.1.{number}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.study, f"{self.study}.1"
        ds.PatientID, ds.PatientName, ds.StudyDate = "V1", "Vendor^Test", "20240101"
        ds.Modality, ds.InstanceNumber, ds.SeriesNumber = modality, number, 1
        for name, value in elements.items():
            setattr(ds, name, value)
        return ds

    def keep(self, name: str, ds: FileDataset) -> Path:
        """Write the data set in its syntax and return the path."""
        path = self.paths[name] = self.folder / f"{name}.dcm"
        syntax = ds.file_meta.TransferSyntaxUID
        if syntax == ExplicitVRBigEndian:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            plain = dicom.save(ds, path.with_suffix(".little"))
            dicom.big_endian(plain, path)
            plain.unlink()
            return path
        ds.save_as(
            path, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=True
        )
        return path


def pixels(ds, array, *, stored=None, signed=False, photometric="MONOCHROME2", planar=None):
    """Put samples of shape (frames, rows, columns[, samples]) into a data set."""
    bits = array.dtype.itemsize * 8
    frames, ds.Rows, ds.Columns = array.shape[:3]
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.SamplesPerPixel = array.shape[3] if array.ndim == 4 else 1
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored, ds.PixelRepresentation = bits, stored or bits, int(signed)
    ds.HighBit = ds.BitsStored - 1
    if array.ndim == 4:
        ds.PlanarConfiguration = planar or 0
        array = array.transpose(0, 3, 1, 2) if planar else array
    data = np.ascontiguousarray(array).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    return ds


def noise(*shape, kind="<u2", low=0, high=4096, seed=1):
    """Return samples between `low` and `high` (exclusive), smooth enough to be compressed."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(low, high - 1, shape[2])[None, None, :]
    ramp = ramp[..., None] if len(shape) == 4 else ramp
    jitter = rng.integers(-9, 10, shape)
    return (ramp + jitter).clip(low, high - 1).astype(kind)


def enhanced(maker, name, sop_class, modality, signed):
    """An enhanced multi-frame image: shared and per-frame functional groups (PS3.3 C.7.6.16)."""
    ds = maker.new(sop_class, modality, ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    low = -1024 if signed else 0
    kind = "<i2" if signed else "<u2"
    pixels(ds, noise(5, SIDE, SIDE, kind=kind, low=low, high=3000), signed=signed)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = ["0.5", "0.5"], "2.5"
    shared.PixelMeasuresSequence = Sequence([measures])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for frame in range(5):
        content, position, group = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues, content.FrameAcquisitionNumber = [1, frame + 1], frame + 1
        position.ImagePositionPatient = ["0", "0", str(2.5 * frame)]
        group.FrameContentSequence = Sequence([content])
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return maker.keep(name, ds)


def grey(maker):
    """Single images of 8, 12 and 16 bits, with and without sign, in every native syntax."""
    shape = (1, SIDE, SIDE)
    maker.keep("cr-12-of-16", pixels(maker.new(CR, "CR"), noise(*shape), stored=12))
    maker.keep("mr-16", pixels(maker.new(MR, "MR"), noise(*shape, high=65_536)))
    signed = noise(*shape, kind="<i2", low=-2048, high=2048)
    maker.keep("ct-signed-12-of-16", pixels(maker.new(CT, "CT"), signed, stored=12, signed=True))
    maker.keep("ct-signed-16", pixels(maker.new(CT, "CT"), signed, signed=True))
    byte = noise(*shape, kind="u1", high=256)
    maker.keep("us-8", pixels(maker.new(ULTRASOUND, "US"), byte))
    for name, syntax in (
        ("implicit", ImplicitVRLittleEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
        ("big-endian", ExplicitVRBigEndian),
    ):
        ds = pixels(maker.new(MR, "MR"), noise(*shape))
        ds.file_meta.TransferSyntaxUID = syntax
        maker.keep(f"mr-{name}", ds)


def colour(maker):
    """RGB by pixel and by plane, YBR, subsampled YBR, palette."""
    rgb = noise(2, SIDE, SIDE, 3, kind="u1", high=256)
    for planar in (0, 1):
        ds = maker.new(COLOUR_MULTIFRAME, "OT")
        maker.keep(f"rgb-planar-{planar}", pixels(ds, rgb, photometric="RGB", planar=planar))
    ds = maker.new(COLOUR_MULTIFRAME, "OT")
    maker.keep("ybr-full", pixels(ds, rgb, photometric="YBR_FULL", planar=0))
    ds = pixels(maker.new(ULTRASOUND, "US"), rgb[:1], photometric="YBR_FULL_422")
    pairs = rgb[0].reshape(-1, 2, 3)
    ds.PixelData = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], *pairs[:, 0, 1:].T], 1).tobytes()
    maker.keep("ybr-full-422", ds)
    ds = pixels(maker.new(ULTRASOUND, "US"), noise(1, SIDE, SIDE, kind="u1", high=256))
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for number, word in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{word}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256) * (number + 1) * 80).astype("<u2").tobytes()
        setattr(ds, f"{word}PaletteColorLookupTableData", table)
    maker.keep("palette", ds)


def compressed(maker):
    """What modalities send compressed: lossless, and multi-frame JPEG of ultrasound."""
    rgb = noise(2, SIDE, SIDE, 3, kind="u1", high=256)
    for name, syntax in (
        ("rle", RLELossless),
        ("jpeg-ls", JPEGLSLossless),
        ("jpeg-2000", JPEG2000Lossless),
    ):
        ds = pixels(maker.new(COLOUR_MULTIFRAME, "OT"), rgb, photometric="RGB")
        ds.compress(syntax, generate_instance_uid=False)
        maker.keep(f"rgb-{name}", ds)
        ds = pixels(maker.new(ENHANCED_MR, "MR"), noise(2, SIDE, SIDE), stored=12)
        ds.compress(syntax, generate_instance_uid=False)
        maker.keep(f"mr-{name}", ds)
    jpeg_lossless(maker, "rgb-jpeg-lossless", COLOUR_MULTIFRAME, rgb, photometric="RGB")
    shape = (2, SIDE, SIDE)
    jpeg_lossless(maker, "mr-jpeg-lossless", ENHANCED_MR, noise(*shape), stored=12)
    signed = noise(*shape, kind="<i2", low=-2048, high=2048)
    jpeg_lossless(maker, "ct-jpeg-lossless", ENHANCED_CT, signed, signed=True)
    borrowed(maker, "us-jpeg", "SC_rgb_dcmtk_+eb+cr.dcm", 3, LossyImageCompression="01")


def jpeg_lossless(maker, name, sop_class, array, **options):
    """An image compressed by JPEG lossless, which pydicom does not write."""
    ds = pixels(maker.new(sop_class, "OT"), array, **options)
    unsigned = array.view(f"u{array.dtype.itemsize}")
    space = imagecodecs.JPEG8.CS.RGB if array.ndim == 4 else imagecodecs.JPEG8.CS.GRAYSCALE
    frames = [
        imagecodecs.jpeg8_encode(
            frame,
            lossless=True,
            predictor=1,
            bitspersample=ds.BitsStored,
            colorspace=space,
            outcolorspace=space,
        )
        for frame in unsigned
    ]
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return maker.keep(name, ds)


def borrowed(maker, name, source, frames, **elements):
    """A multi-frame ultrasound made of a shipped file's one compressed frame."""
    known = pydicom.dcmread(dicom.FILES / source)
    (frame,) = pydicom.encaps.generate_frames(known.PixelData, number_of_frames=1)
    ds = maker.new(ULTRASOUND_MULTIFRAME, "US", NumberOfFrames=frames, **elements)
    for keyword in (
        *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    ):
        setattr(ds, keyword, known[keyword].value)
    ds.file_meta.TransferSyntaxUID = known.file_meta.TransferSyntaxUID
    ds.PixelData = encapsulate([frame] * frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return maker.keep(name, ds)


def no_images(maker):
    """A report, a document, a waveform, and an image object without pixels."""
    ds = maker.new(SR, "SR", ValueType="CONTAINER", CompletionFlag="COMPLETE")
    item, deep = Dataset(), Dataset()
    item.ValueType, item.TextValue, deep.ValueType = "TEXT", "No finding.", "CONTAINER"
    deep.ContentSequence = Sequence([item])
    ds.ContentSequence = Sequence([deep, item])
    maker.keep("report", ds)
    document = b"%PDF-1.4 " + bytes(range(256)) * 8 + b"\0"
    maker.keep(
        "document",
        maker.new(
            PDF,
            "DOC",
            EncapsulatedDocument=document,
            MIMETypeOfEncapsulatedDocument="application/pdf",
        ),
    )
    ds, group = maker.new(ECG, "ECG"), Dataset()
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 2, 500
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.WaveformData = np.arange(1000, dtype="<i2").tobytes()
    group["WaveformData"].VR = "OW"
    ds.WaveformSequence = Sequence([group])
    maker.keep("waveform", ds)
    maker.keep("mr-without-pixels", maker.new(MR, "MR", SpectroscopyData=bytes(16)))


def structures(maker):
    """One-bit segments, private blocks, a very long sequence, and sequences without items."""
    ds = maker.new(SEGMENTATION, "SEG", SegmentationType="BINARY")
    pixels(ds, noise(3, 9, 7, kind="u1", high=2))  # 63 bits: frames do not begin on a byte
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    bits = np.packbits(noise(3, 9, 7, kind="u1", high=2).ravel(), bitorder="little").tobytes()
    ds.PixelData = bits + b"\0" * (len(bits) % 2)
    maker.keep("segmentation", ds)
    ds = pixels(maker.new(MR, "MR"), noise(1, SIDE, SIDE))
    for group, creator in ((0x0019, "VENDOR ONE"), (0x0019, "VENDOR TWO"), (0x2001, "VENDOR 3")):
        block = ds.private_block(group, creator, create=True)
        block.add_new(1, "LO", "some text")
        block.add_new(2, "FD", 1.5)
        block.add_new(3, "SQ", Sequence([Dataset()]))
    maker.keep("private", ds)
    ds = pixels(maker.new(CT, "CT"), noise(1, SIDE, SIDE))
    items = [Dataset() for _ in range(10_000)]
    for number, item in enumerate(items):
        item.ReferencedSOPInstanceUID = f"1.2.3.{number}"
    ds.ReferencedImageSequence, ds.SourceImageSequence = Sequence(items), Sequence([])
    maker.keep("long-sequence", ds)


# Names as they would be written: the terms of Specific Character Set, and a patient's name.
CHARACTER_SETS = {
    "latin-1": (["ISO_IR 100"], "Müller^Jörg"),
    "utf-8": (["ISO_IR 192"], "Ångström^Łukasz=王^小東"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "gb18030": (["GB18030"], "Wang^XiaoDong=王^小东"),
}


def character_sets(maker):
    """A secondary capture for each of `CHARACTER_SETS`, each with a study of its own."""
    for number, (name, (terms, patient)) in enumerate(CHARACTER_SETS.items()):
        ds = pixels(maker.new(CAPTURE, "OT"), noise(1, SIDE, SIDE))
        ds.StudyInstanceUID = f"{maker.study}.9.{number}"
        ds.SpecificCharacterSet, ds.PatientName, ds.PatientID = terms, patient, f"V-{number}"
        maker.keep(name, ds)


def generate(folder: Path) -> dict[str, Path]:
    """Write one instance of every kind; return the files by name."""
    folder.mkdir(exist_ok=True)
    maker = Maker(folder)
    enhanced(maker, "enhanced-ct", ENHANCED_CT, "CT", signed=True)
    enhanced(maker, "enhanced-mr", ENHANCED_MR, "MR", signed=False)
    for kind in (grey, colour, compressed, no_images, structures, character_sets):
        kind(maker)
    return maker.paths
