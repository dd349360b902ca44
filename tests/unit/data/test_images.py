"""Every encoding of an image that hospitals have: the right pixels, or one clear sentence; damaged bytes likewise."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from focal.config import DatasetConfig
from focal.data import load
from focal.data.images import open_images
from focal.data.pictures import ImageError, Reading, decode, is_picture
from focal.data.sources import EncodedImages, Folder
from focal.errors import FocalError

pydicom = pytest.importorskip("pydicom", reason="DICOM is tested where pydicom is installed")
tifffile = pytest.importorskip("tifffile", reason="deep TIFFs are tested where tifffile is installed")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning:PIL")
"""pytest takes away the filters that focal.data.pictures sets; a test below looks at them."""
SIZE = 48
Pixels = NDArray[Any]


def source() -> Pixels:
    """(48, 40, 3) uint8: smooth, no two corners alike, so that a turned or mirrored picture is another one."""
    y, x = np.mgrid[0:SIZE, 0 : SIZE - 8]
    return np.dstack([x * 5, y * 5, 128 + 60 * np.sin(x / 9) * np.cos(y / 7)]).astype(np.uint8)


A = source()
RGB = Image.fromarray(A)
GRAY = RGB.convert("L")
G = np.asarray(GRAY)
DISC = np.hypot(*(np.mgrid[0:SIZE, 0 : SIZE - 8] - 20)) < 15
MASKED = np.where(DISC[..., None], A, 0).astype(np.uint8)
DEEP = Reading(window=(0, 255 * 16))
"""For 12-bit pictures in this module: 16 times the 8-bit ones."""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.copy().save(out, kind, **options)  # saving leaves settings in an image
    return out.getvalue()


def png16(pixels: Pixels) -> bytes:
    """Unfiltered 16-bit PNG of (h, w), (h, w, 2), (h, w, 3) or (h, w, 4), which Pillow cannot write."""
    values = np.atleast_3d(pixels).astype(">u2")
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: Pixels, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def pyramid(side: int = 512) -> bytes:
    base = np.asarray(RGB.resize((side, side)))
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as t:
        t.write(base, tile=(128, 128), photometric="rgb", subifds=1)
        t.write(base[::4, ::4], tile=(128, 128), photometric="rgb", subfiletype=1)
    return out.getvalue()


def pages_pyramid() -> bytes:
    base = np.asarray(RGB.resize((512, 512)))
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as t:
        t.write(base, tile=(128, 128), photometric="rgb")
        t.write(base[::4, ::4], tile=(128, 128), photometric="rgb", subfiletype=1)
    return out.getvalue()


def oriented(image: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(image, kind, exif=exif, **options)


def dicom(
    pixels: Pixels,
    photometric: str = "MONOCHROME2",
    *,
    bits: int = 8,
    syntax: UID = ExplicitVRLittleEndian,
    frames: int = 1,
    change: Callable[[Dataset], None] = lambda ds: None,
    **elements: Any,
) -> bytes:
    """A secondary capture of a patient whose name no message may hold."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["picture"])
    packs = syntax.is_compressed and not syntax.is_deflated
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if packs else syntax
    big = syntax == ExplicitVRBigEndian
    ds = FileDataset("", {}, b"\0" * 128, meta, syntax == ImplicitVRLittleEndian, not big)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.Modality = "Doe^Jane", "MRN-4711", "DX"
    colour = pixels.ndim - (frames > 1) == 3
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    ds.Rows, ds.Columns = shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3 if colour else 1, photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if bits <= 8 else 16, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if colour:
        ds.PlanarConfiguration = 0
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for name, value in elements.items():
        setattr(ds, name, value)
    change(ds)
    if packs:
        ds.compress(syntax)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


G12 = G.astype(np.uint16) * 16
HU = G.astype(np.int16) * 8 - 1024
WIDE = {"WindowCenter": 2040.5, "WindowWidth": 4081}
"""0 to 4080, as PS3.3 C.11.2.1.2.1 counts."""


def voi_table(ds: Dataset) -> None:
    """16 stored values to each step of a table of 8 bits that darkens by half."""
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    table.LUTData = (np.arange(4096) // 32).astype(np.uint16).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    ds.VOILUTSequence = [table]


def palette(ds: Dataset) -> None:
    for name, values in zip(
        ("Red", "Green", "Blue"), (np.arange(256), 255 - np.arange(256), np.full(256, 7)), strict=True
    ):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", (values * 257).astype("<u2").tobytes())


def enhanced(ds: Dataset) -> None:
    """Frames 1 and 2 of unlike windows, and one rescaling for both."""
    shared, rescale, frames = Dataset(), Dataset(), []
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1000
    shared.PixelValueTransformationSequence = [rescale]
    for low, high in ((-1000, 3080), (-1000, 7160)):
        groups, voi = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = (low + high) / 2, high - low, "LINEAR_EXACT"
        groups.FrameVOILUTSequence = [voi]
        frames.append(groups)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames


def ycc(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("YCbCr"))


def palette_with_hole() -> bytes:
    image = Image.fromarray(np.where(DISC, 1, 0).astype(np.uint8), "P")
    image.putpalette([255, 0, 255, 10, 200, 30])
    return saved(image, "PNG", transparency=0)


HOLED = np.where(DISC[..., None], (10, 200, 30), 0).astype(np.uint8)
GRAY3 = np.dstack([G] * 3)
RGBA = np.dstack([np.where(DISC[..., None], A, (255, 0, 255)).astype(np.uint8), (DISC * 255).astype(np.uint8)])

SHOWN: dict[str, tuple[bytes, Reading, Pixels, float]] = {
    # file, what is declared, the pixels, the mean deviation that the encoding may have
    "png": (saved(RGB, "PNG"), Reading(), A, 0),
    "png, gray": (saved(GRAY, "PNG"), Reading(), GRAY3, 0),
    "png, palette": (saved(RGB.quantize(256), "PNG"), Reading(), A, 4),
    "png, bilevel": (
        saved(Image.fromarray(DISC), "PNG"),
        Reading(),
        np.dstack([DISC * 255] * 3),
        0,
    ),
    "png, opaque alpha": (saved(Image.fromarray(np.dstack([A, G * 0 + 255])), "PNG"), Reading(), A, 0),
    "png, garbage below alpha": (saved(Image.fromarray(RGBA), "PNG"), Reading(), MASKED, 0),
    "png, gray and alpha": (
        saved(Image.fromarray(np.dstack([G, (DISC * 255).astype(np.uint8)])), "PNG"),
        Reading(),
        np.where(DISC[..., None], GRAY3, 0),
        0,
    ),
    "png, palette with a transparent entry": (palette_with_hole(), Reading(), HOLED, 0),
    "png, 16 bits of gray": (png16(G.astype(np.uint16) * 257), Reading((0, 65535)), GRAY3, 0),
    "png, 12 bits of gray": (png16(G12), DEEP, GRAY3, 0),
    "png, 12 bits of gray and alpha": (png16(np.dstack([G12, G12 * 0 + 65535])), DEEP, GRAY3, 0),
    "png, 12 bits of RGB": (png16(A.astype(np.uint16) * 16), DEEP, A, 0),
    "png, 12 bits of RGB and alpha": (
        png16(np.dstack([A.astype(np.uint16) * 16, DISC.astype(np.uint16) * 65535])),
        DEEP,
        MASKED,
        0,
    ),
    "png, turned": (oriented(RGB.rotate(90, expand=True), 6, "PNG"), Reading(), A, 0),
    "jpeg": (saved(RGB, "JPEG", quality=95), Reading(), A, 3),
    "jpeg, gray": (saved(GRAY, "JPEG", quality=95), Reading(), GRAY3, 2),
    "jpeg, CMYK": (saved(RGB.convert("CMYK"), "JPEG", quality=95), Reading(), A, 5),
    "jpeg, turned": (oriented(RGB.rotate(90, expand=True), 6, "JPEG", quality=95), Reading(), A, 3),
    "jpeg, mirrored": (oriented(ImageOps.mirror(RGB), 2, "JPEG", quality=95), Reading(), A, 3),
    "tiff": (saved(RGB, "TIFF"), Reading(), A, 0),
    "tiff, turned": (saved(RGB.rotate(90, expand=True), "TIFF", tiffinfo={274: 6}), Reading(), A, 0),
    "tiff, LZW": (saved(RGB, "TIFF", compression="tiff_lzw"), Reading(), A, 0),
    "tiff, JPEG": (saved(RGB, "TIFF", compression="jpeg"), Reading(), A, 4),
    "tiff, LAB": (saved(RGB.convert("LAB"), "TIFF"), Reading(), A, 9),
    "tiff, white is 0": (tiff(255 - G, photometric="miniswhite"), Reading(), GRAY3, 0),
    "tiff, planes": (tiff(np.moveaxis(A, 2, 0), photometric="rgb", planarconfig="separate"), Reading(), A, 0),
    "tiff, tiles of one picture": (tiff(A, tile=(16, 16), photometric="rgb"), Reading(), A, 0),
    "tiff, 12 bits of gray": (tiff(G12, photometric="minisblack"), DEEP, GRAY3, 0),
    "tiff, 12 bits, white is 0": (tiff(4080 - G12, photometric="miniswhite"), DEEP, GRAY3, 0),
    "tiff, 12 bits of RGB": (tiff(A.astype(np.uint16) * 16, photometric="rgb"), DEEP, A, 0),
    "tiff, 12 bits of RGB, deflated": (
        tiff(A.astype(np.uint16) * 16, photometric="rgb", compression="zlib"),
        DEEP,
        A,
        0,
    ),
    "tiff, 12 bits in planes": (
        tiff(np.moveaxis(A.astype(np.uint16) * 16, 2, 0), photometric="rgb", planarconfig="separate"),
        DEEP,
        A,
        0,
    ),
    "tiff, 12 bits, turned": (
        tiff(np.rot90(G12).copy(), photometric="minisblack", extratags=[(274, "H", 1, 6, True)]),
        DEEP,
        GRAY3,
        0,
    ),
    "tiff, 12 bits of RGB and alpha": (
        tiff(
            np.dstack([A.astype(np.uint16) * 16, DISC.astype(np.uint16) * 65535]),
            photometric="rgb",
            extrasamples=["unassalpha"],
        ),
        DEEP,
        MASKED,
        0,
    ),
    "tiff, float": (tiff(G.astype(np.float32) / 255, photometric="minisblack"), Reading((0, 1)), GRAY3, 0),
    "tiff, float of RGB": (tiff(A.astype(np.float32) / 255, photometric="rgb"), Reading((0, 1)), A, 0),
    "tiff, 32-bit integers": (tiff(G.astype(np.int32), photometric="minisblack"), Reading((0, 255)), GRAY3, 0),
    "tiff, signed bytes": (
        tiff((G.astype(np.int16) - 128).astype(np.int8), photometric="minisblack"),
        Reading((-128, 127)),
        GRAY3,
        0,
    ),
    "tiff, second page": (
        saved(Image.new("RGB", (60, 60), "gray"), "TIFF", save_all=True, append_images=[RGB.copy()]),
        Reading(page=2),
        A,
        0,
    ),
    "gif": (saved(RGB, "GIF"), Reading(), A, 9),
    "gif, second page": (
        saved(Image.new("RGB", RGB.size, "gray"), "GIF", save_all=True, append_images=[RGB.copy()]),
        Reading(page=2),
        A,
        9,
    ),
    "webp": (saved(RGB, "WEBP", lossless=True), Reading(), A, 0),
    "bmp": (saved(RGB, "BMP"), Reading(), A, 0),
    "pnm": (saved(RGB, "PPM"), Reading(), A, 0),
    "jpeg 2000": (saved(RGB, "JPEG2000"), Reading(), A, 0),
    "jpeg 2000, 12 bits of gray": (
        saved(Image.fromarray(G12), "JPEG2000"),
        DEEP,
        GRAY3,
        0,
    ),
    "declared things leave 8 bits alone": (saved(RGB, "PNG"), Reading((0, 4095), 1), A, 0),
    "dicom": (dicom(G), Reading(), GRAY3, 0),
    "dicom, white is 0": (dicom(255 - G, "MONOCHROME1"), Reading(), GRAY3, 0),
    "dicom, its window": (dicom(G12, bits=12, **WIDE), Reading(), GRAY3, 0),
    "dicom, the first of its windows": (
        dicom(G12, bits=12, WindowCenter=[2040.5, 60], WindowWidth=[4081, 10]),
        Reading(),
        GRAY3,
        0,
    ),
    "dicom, exact window": (
        dicom(G12, bits=12, WindowCenter=2040, WindowWidth=4080, VOILUTFunction="LINEAR_EXACT"),
        Reading(),
        GRAY3,
        0,
    ),
    "dicom, sigmoid": (
        dicom(G12, bits=12, WindowCenter=2040, WindowWidth=4080, VOILUTFunction="SIGMOID"),
        Reading(),
        np.rint(255 / (1 + np.exp(-4 * (GRAY3 * 16.0 - 2040) / 4080))),
        0,
    ),
    "dicom, its table": (dicom(G12, bits=12, change=voi_table), Reading(), G[..., None].repeat(3, 2) // 2, 0),
    "dicom, the declared window": (dicom(G12, bits=12, WindowCenter=5, WindowWidth=2), DEEP, GRAY3, 0),
    "dicom, 12 bits, white is 0": (dicom(4080 - G12, "MONOCHROME1", bits=12, **WIDE), Reading(), GRAY3, 0),
    "dicom, hounsfield units": (
        dicom(HU, bits=16, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=-108 + 0.5 - 1, WindowWidth=4081),
        Reading(),
        np.clip((GRAY3 * 16.0 - 2148 - (-108 - 0.5 - 2040)) / 4080 * 255, 0, 255),
        1,
    ),
    "dicom, declared hounsfield units": (
        dicom(HU, bits=16, RescaleSlope=2, RescaleIntercept=-100),
        Reading((-2148, -2148 + 4080)),
        GRAY3,
        0,
    ),
    "dicom, RGB": (dicom(A, "RGB"), Reading(), A, 0),
    "dicom, YBR": (dicom(ycc(RGB), "YBR_FULL"), Reading(), A, 2),
    "dicom, palette": (
        dicom(G, "PALETTE COLOR", change=palette),
        Reading(),
        np.dstack([G, 255 - G, np.full_like(G, 7)]),
        0,
    ),
    "dicom, second frame": (dicom(np.stack([G * 0, G, G * 0]), frames=3), Reading(page=2), GRAY3, 0),
    "dicom, frames with a window each": (
        dicom(np.stack([G12, G12]), bits=12, frames=2, change=enhanced),
        Reading(page=2),
        np.rint(GRAY3 / 2),
        1,
    ),
    "dicom, implicit": (dicom(G12, bits=12, syntax=ImplicitVRLittleEndian, **WIDE), Reading(), GRAY3, 0),
    "dicom, big endian": (dicom(G12, bits=12, syntax=ExplicitVRBigEndian, **WIDE), Reading(), GRAY3, 0),
    "dicom, deflated": (dicom(G12, bits=12, syntax=DeflatedExplicitVRLittleEndian, **WIDE), Reading(), GRAY3, 0),
    "dicom, RLE": (dicom(G12, bits=12, syntax=RLELossless, **WIDE), Reading(), GRAY3, 0),
    "dicom, RLE of RGB": (dicom(A, "RGB", syntax=RLELossless), Reading(), A, 0),
    "dicom, JPEG 2000": (dicom(G12, bits=12, syntax=JPEG2000Lossless, **WIDE), Reading(), GRAY3, 0),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_encoding_shows_the_picture(name: str) -> None:
    data, reading, pixels, deviation = SHOWN[name]
    picture = decode(data, "f: image 'x'", reading)
    assert picture.image.mode == "RGB" and picture.image.size == pixels.shape[1::-1]
    assert np.abs(np.asarray(picture.image, np.float64) - pixels).mean() <= deviation
    assert is_picture(data[:132]), "found by content"


def encapsulated(frame: bytes, pixels: Pixels, photometric: str, bits: int, syntax: UID) -> bytes:
    """A DICOM file around a compressed frame that another library made."""

    def pack(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True

    return dicom(pixels, photometric, bits=bits, change=pack)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 20000 x 20000 pixels."""
    data = bytearray(saved(GRAY, "PNG"))
    data[16:24] = struct.pack(">II", 20000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def no_picture(ds: Dataset) -> None:
    del ds.PixelData


PAGES = saved(Image.new("RGB", (60, 60), "gray"), "TIFF", save_all=True, append_images=[RGB.copy()])
REFUSED: dict[str, tuple[bytes, Reading, type[FocalError], str, str]] = {
    # file, what is declared, the error's kind, what it says, the way out
    "png, 16 bits of gray": (
        png16(G12),
        Reading(),
        FocalError,
        f"(16): its values go from {16 * int(G.min())} to",
        "window",
    ),
    "png, 16 bits of RGB": (
        png16(A.astype(np.uint16) * 16),
        Reading(),
        FocalError,
        f"more than 8 bits a pixel (16): its values go from 0 to {16 * int(A.max())}",
        "window",
    ),
    "png, 16 bits of gray and alpha": (
        png16(np.dstack([G12, G12 * 0 + 65535])),
        Reading(),
        FocalError,
        f"to {16 * int(G.max())}",
        "window",
    ),
    "tiff, 16 bits": (
        tiff(A.astype(np.uint16), photometric="rgb"),
        Reading(),
        FocalError,
        "values go from 0 to 235",
        "window",
    ),
    "tiff, float": (tiff(G.astype(np.float32) / 255), Reading(), FocalError, "(32): its values go from 0.", "window"),
    "tiff, not a number": (tiff(np.full((9, 9), np.nan, np.float32)), DEEP, ImageError, "no numbers", "replace"),
    "tiff, pages": (PAGES, Reading(), FocalError, "holds 2 pages, and nothing says which", "dataset.page: N"),
    "tiff, no such page": (PAGES, Reading(page=3), ImageError, "has no page 3: it holds 2", "page"),
    "tiff, volume": (tiff(np.stack([G] * 4), photometric="minisblack"), Reading(), FocalError, "holds 4 pages", "page"),
    "gif, animated": (
        saved(RGB, "GIF", save_all=True, append_images=[GRAY.convert("RGB")]),
        Reading(),
        FocalError,
        "holds 2 pages",
        "page",
    ),
    "mpo": (
        saved(RGB, "MPO", save_all=True, append_images=[RGB.copy()]),
        Reading(),
        FocalError,
        "holds 2 pages",
        "page",
    ),
    "slide with a pyramid inside": (pyramid(), Reading(), FocalError, "is a whole slide", "kind: slides"),
    "slide with a pyramid behind": (pages_pyramid(), Reading(), FocalError, "is a whole slide", "kind: slides"),
    "bomb": (bomb(), Reading(), FocalError, "more than the 134 million pixels", "kind: slides"),
    "pgm, 16 bits": (
        b"P5 # comment\n2 2\n4095\n" + bytes(8),
        Reading((0, 4095)),
        FocalError,
        "more than 8 bits a pixel, as PPM",
        "PNG or TIFF",
    ),
    "ppm, 16 bits": (b"P6 2 2 4095\n" + bytes(24), Reading(), FocalError, "more than 8 bits", "PNG or TIFF"),
    "empty": (b"", Reading(), ImageError, "the file is empty", "replace the file"),
    "html": (b"<html>Session expired</html>", Reading(), ImageError, "of no image format that is known", "replace"),
    "jpeg, cut": (saved(RGB, "JPEG")[:700], Reading(), ImageError, "truncated", "replace"),
    "png, cut": (saved(RGB, "PNG")[:500], Reading(), ImageError, "truncated", "replace"),
    "dicom without a window": (
        dicom(G12, bits=12),
        Reading(),
        FocalError,
        f"(12, after rescaling, and no window): its values go from {16 * int(G.min())} to {16 * int(G.max())}",
        "dataset.window: [black, white]",
    ),
    "dicom, frames": (
        dicom(np.stack([G] * 3), frames=3),
        Reading(),
        FocalError,
        "holds 3 frames, and nothing says which",
        "dataset.page: N",
    ),
    "dicom without a picture": (dicom(G, change=no_picture), Reading(), ImageError, "without a picture", "line"),
    "dicom, a tile of a slide": (
        dicom(A, "RGB", TotalPixelMatrixColumns=9000),
        Reading(),
        FocalError,
        "whole slide in DICOM",
        "kind: slides",
    ),
    "dicom, too large": (dicom(G, Rows=60000, Columns=60000), Reading(), FocalError, "more than the", "smaller"),
    "dicom, video": (
        encapsulated(b"\0" * 8, G, "MONOCHROME2", 8, UID("1.2.840.10008.1.2.4.100")),
        Reading(),
        FocalError,
        "is compressed as MPEG2",
        "focal[dicom]",
    ),
    "dicom, unknown syntax": (
        dicom(G).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
        Reading(),
        FocalError,
        "is compressed as what no standard names",
        "focal[dicom]",
    ),
    "dicom, cut": (dicom(G)[:900], Reading(), ImageError, "cannot be decoded (damaged:", "replace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_in_a_sentence_and_its_way_out(name: str) -> None:
    data, reading, kind, says, way_out = REFUSED[name]
    with pytest.raises(FocalError) as caught:
        decode(data, "f: image 'x'", reading)
    assert type(caught.value) is kind
    assert caught.value.message.startswith("f: image 'x' ") and says in caught.value.message
    assert way_out in caught.value.hint and "\n" not in caught.value.message


def test_dicom_in_jpeg() -> None:
    gray = encapsulated(saved(GRAY, "JPEG", quality=95), G, "MONOCHROME2", 8, JPEGBaseline8Bit)
    colour = encapsulated(saved(RGB, "JPEG", quality=95), A, "YBR_FULL_422", 8, JPEGBaseline8Bit)
    lossy = encapsulated(saved(RGB, "JPEG2000", quality_mode="rates", quality_layers=[4]), A, "RGB", 8, JPEG2000)
    for data, pixels, deviation in ((gray, GRAY3, 2), (colour, A, 3), (lossy, A, 9)):
        shown = np.asarray(decode(data, "x").image, np.float64)
        assert np.abs(shown - pixels).mean() < deviation


@pytest.mark.parametrize("codec", ["ljpeg", "jpegls"])
def test_dicom_in_lossless_jpeg(codec: str) -> None:
    """What focal[dicom] adds."""
    pytest.importorskip("libjpeg", reason="lossless JPEG is tested where focal[dicom] is installed")
    codecs = pytest.importorskip("imagecodecs", reason="the files of this test are written with imagecodecs")
    if codec == "ljpeg":
        frame, syntax = codecs.ljpeg_encode(G12, bitspersample=12), JPEGLosslessSV1
    else:
        frame, syntax = codecs.jpegls_encode(G12), JPEGLSLossless
    picture = decode(encapsulated(frame, G12, "MONOCHROME2", 12, syntax), "x", DEEP)
    assert np.array_equal(picture.image, GRAY3)


def test_a_deep_tiff_that_cannot_be_unpacked_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def asarray(page: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    data = saved(Image.fromarray(G12), "TIFF", compression="tiff_lzw")
    with pytest.raises(FocalError, match="16 bits a channel, compressed as LZW\n.*imagecodecs"):
        decode(data, "x", DEEP)


def test_no_word_of_a_patient_reaches_anyone(tmp_path: Path) -> None:
    """Damaged anywhere, with names and dates that break the rules: nothing is written, and no message has a name."""
    program = """
import sys, random
from pathlib import Path
from focal.data.pictures import decode
from focal.errors import FocalError
data = Path(sys.argv[1]).read_bytes()
chance, told = random.Random(5), set()
for _ in range(300):
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        damaged[chance.randrange(len(data))] = chance.randrange(256)
    try:
        decode(bytes(damaged), "x")
    except FocalError as e:
        told.add(str(e))
print("\\n".join(told))
"""
    file = tmp_path / "x.dcm"
    file.write_bytes(dicom(G12, bits=12, PatientBirthDate="19990101", StudyDescription="Doe^Jane" * 20, **WIDE))
    run = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True)
    assert run.stderr == "" and "cannot be decoded" in run.stdout
    for word in ("Doe", "Jane", "MRN", "4711", "1999"):
        assert word not in run.stdout


@pytest.mark.parametrize("name", SHOWN)
def test_damaged_bytes_are_one_sentence_or_a_picture(name: str) -> None:
    """Seeded; nothing but :class:`FocalError` comes out, whatever a reader raises."""
    data, reading, *_ = SHOWN[name]
    chance = np.random.default_rng(zlib.crc32(name.encode()))
    for trial in range(40):
        damaged = bytearray(data)
        if trial % 4 == 0:
            del damaged[int(chance.integers(len(data))) :]
        else:
            near = len(data) if trial % 2 else min(len(data), 700)  # headers are where readers break
            for at in chance.integers(near, size=int(chance.integers(1, 6))):
                damaged[at] = chance.integers(256)
        try:
            image = decode(bytes(damaged), "x", reading).image
        except FocalError as e:
            assert e.message.startswith("x ") and "\n" not in e.message
        else:
            assert image.mode == "RGB"


def test_settings_are_part_of_the_key_and_nothing_else_is() -> None:
    data = saved(RGB, "PNG")
    plain = sha256(data).hexdigest()
    assert Reading().key(plain) == plain
    others = {reading.key(plain) for reading in (Reading((0, 9)), Reading((0, 8)), Reading(page=1))}
    assert len(others) == 3 and plain not in others


def test_a_pool_of_threads_reads_the_same(tmp_path: Path) -> None:
    kinds = [name for name in SHOWN if SHOWN[name][1] == Reading()]
    for i, name in enumerate(kinds):
        (tmp_path / str(i)).write_bytes(SHOWN[name][0])
    images = EncodedImages(Folder(tmp_path), np.array([str(i) for i in range(len(kinds))]))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(images.keyed, list(range(len(kinds))) * 3))
    for i, (key, decoded) in enumerate(found):
        one = decode(images.store.bytes(str(i % len(kinds))), "x")
        assert key == images.sha256(i % len(kinds))
        picture = decoded()
        assert np.array_equal(picture.image, one.image) and (picture.format, picture.bits) == (one.format, one.bits)


# --------------------------------------------------------------------------- a folder without a table

FILES = {
    "a.png": saved(RGB, "PNG"),
    "b.dcm": dicom(G),
    "IM0001": dicom(G),
    "c.WEBP": saved(RGB, "WEBP"),
    "d/e.jp2": saved(RGB, "JPEG2000"),
    "d/f.gif": saved(RGB, "GIF"),
    "cut.jpg": b"\0\0",
    "notes.txt": b"text",
    "d/more.txt": b"text",
    "scan.nii": b"volume",
    "README": b"text",
    ".DS_Store": b"x",
    "Thumbs.db": b"x",
    "__MACOSX/._a.png": saved(RGB, "PNG"),
    "d/.hidden/g.png": saved(RGB, "PNG"),
    "DICOMDIR": dicom(G),
}
SHOWN_FILES = ["IM0001", "a.png", "b.dcm", "c.WEBP", "cut.jpg", "d/e.jp2", "d/f.gif"]


@pytest.mark.parametrize("zipped", [False, True])
def test_what_holds_an_image_is_found_and_what_does_not_is_counted(tmp_path: Path, zipped: bool) -> None:
    place = tmp_path / ("new.zip" if zipped else "new")
    if zipped:
        with zipfile.ZipFile(place, "w") as z:
            for name, data in FILES.items():
                z.writestr(name, data)
    for name, data in FILES.items() if not zipped else ():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    with pytest.warns(UserWarning, match=r"4 files skipped that hold no image: 2 \.txt, 1 "):
        table = open_images(place, ("a", "b"), "binary", None)
    assert table.filenames.tolist() == SHOWN_FILES
    for row, name in enumerate(SHOWN_FILES):
        if name == "cut.jpg":
            with pytest.raises(ImageError, match="'cut.jpg' cannot be decoded"):
                table.images.read(row)
        else:
            assert table.images.read(row).size == RGB.size


def test_new_images_are_read_as_is_declared(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(G12))
    with pytest.raises(FocalError, match="more than 8 bits"):
        open_images(tmp_path, ("a", "b"), "binary", None).images.read(0)
    assert np.array_equal(open_images(tmp_path, ("a", "b"), "binary", None, DEEP).images.read(0), GRAY3)


def test_a_name_that_is_no_text_is_said(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xe4uge.png", "wb") as f:
        f.write(FILES["a.png"])
    with pytest.raises(FocalError, match="1 file names are not UTF-8, the first is '.uge.png'"):
        open_images(tmp_path, ("a", "b"), "binary", None)


# --------------------------------------------------------------------------- MedMNIST's arrays

ODD = {
    "16-bit pixels": ({"train_images": np.zeros((4, 8, 8), np.uint16)}, "'train_images' holds uint16 values"),
    "float pixels": ({"val_images": np.zeros((4, 8, 8), np.float32)}, "'val_images' holds float32 values"),
    "float labels": ({"train_labels": np.zeros((4, 1))}, "'train_labels' holds float64 values"),
    "a negative class": ({"test_labels": np.array([[0], [1], [-1], [0]])}, "holds the label -1, but classes are"),
    "two of a disease": (
        {f"{part}_labels": np.array([[0, 1], [1, 1], [0, 2], [0, 0]]) for part in ("train", "val", "test")},
        "holds the label 2, but 0 and 1 say",
    ),
    "minus one of a disease": (
        {f"{part}_labels": np.array([[0, 1], [1, 1], [0, -1], [0, 0]]) for part in ("train", "val", "test")},
        "holds the label -1, but 0 and 1 say",
    ),
    "a class too many": ({"test_labels": np.array([[0], [1], [7], [0]])}, "holds 8 classes"),
}


@pytest.mark.parametrize("name", ODD)
def test_arrays_that_would_be_misread_are_refused(tmp_path: Path, name: str) -> None:
    changes, says = ODD[name]
    arrays: dict[str, Pixels] = {}
    for part in ("train", "val", "test"):
        arrays |= {f"{part}_images": np.zeros((4, 8, 8), np.uint8), f"{part}_labels": np.array([[0], [1], [0], [1]])}
    np.savez(tmp_path / "own.npz", **{**arrays, **changes})
    classes = ("a", "b")
    with pytest.raises(FocalError, match=says):
        load(DatasetConfig(kind="medmnist", file=tmp_path / "own.npz", classes=classes), 0)


def test_a_window_upside_down_is_refused() -> None:
    for window, page, says in (((5.0, 5.0), None, "below white"), (None, 0, "counted from 1")):
        with pytest.raises(FocalError, match=says):
            Reading.declared(window, page)
    with pytest.raises(ValueError, match="black must be below white"):
        DatasetConfig(kind="synthetic", window=(240, -160))
