"""Every encoding of an image that hospitals have: the right pixels, or one clear sentence; damaged bytes likewise."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from focal.data.pictures import Reading, decode, is_picture

pydicom = pytest.importorskip("pydicom", reason="DICOM is tested where pydicom is installed")
tifffile = pytest.importorskip("tifffile", reason="deep TIFFs are tested where tifffile is installed")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

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
    image.save(out, kind, **options)
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
        saved(Image.new("RGB", (60, 60), "gray"), "TIFF", save_all=True, append_images=[RGB]),
        Reading(page=2),
        A,
        0,
    ),
    "gif": (saved(RGB, "GIF"), Reading(), A, 9),
    "gif, second page": (
        saved(Image.new("RGB", RGB.size, "gray"), "GIF", save_all=True, append_images=[RGB]),
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
