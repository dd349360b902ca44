"""One picture from the bytes of its file: 8-bit RGB as a viewer would show it, or a sentence why not.

::

    bytes --what do they begin with?--> PNG, JPEG, TIFF, JPEG 2000, WebP, GIF, BMP, PNM      DICOM (pydicom)
                                          |                      |                              |
                                   8 bits a channel         more than 8 bits             rescale, palette, YBR
                                   (Pillow)                 (Pillow by bytes, tifffile,         |
                                          |                 OpenJPEG)                    the file's own window,
                                          |                      |                       unless one is declared
                                          |               the declared window                   |
                                          +---> turned upright (EXIF), alpha on black <---------+
                                                                 |
                                                          Picture: RGB, what it was

Pillow alone would drop the low byte of 16-bit colour without a word, so the depth is read from the file itself. Nothing
is guessed: where a picture has more than 8 bits and nobody says which of its values are black and white, or where a
file holds several pictures, it is refused with what one needs to choose. The suffix of a file's name plays no part.
No text of a DICOM file comes into a message, because it may be a patient's.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from focal.config import DatasetConfig, printable
from focal.errors import FocalError

FORMATS = ("PNG", "JPEG", "TIFF", "JPEG2000", "WEBP", "GIF", "BMP", "PPM")
"""Pillow's names of what is read with it (JPEG: also MPO, which is several)."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with more than 8 bits a channel."""
MOST_PIXELS = 1 << 27
"""Of a picture that is read whole (134 megapixels, 0.4 GB as RGB); mammograms have 25, phones up to 108."""

Image.init()  # all formats, before threads ask for them

# The size is checked here, in a sentence; and readers' own words could hold what stands in the file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"(pydicom|pylibjpeg|openjpeg|libjpeg|tifffile|PIL)\b")
for _reader in ("pydicom", "tifffile", "PIL"):
    logging.getLogger(_reader).setLevel(logging.CRITICAL)

Pixels = NDArray[Any]


class ImageError(FocalError):
    """This one picture cannot be had: its file is gone, damaged, or no picture. Without it the others are as good.
    (What a setting or a package would mend is an ordinary :class:`FocalError`: it concerns all pictures of the kind.)
    """


@dataclass(frozen=True)
class Picture:
    """A decoded image, and what its file was."""

    image: Image.Image
    """8-bit RGB, upright."""
    format: str
    """``PNG``, ``JPEG``, ``TIFF``, ``DICOM`` ..."""
    mode: str
    """Channels as stored: Pillow's name (``L``, ``RGB``, ``RGBA``, ``CMYK``), or DICOM's (``MONOCHROME2``)."""
    bits: int
    """Per channel, as stored."""


@dataclass(frozen=True)
class Reading:
    """What a data set declares of its pictures (:class:`focal.config.DatasetConfig`)."""

    window: tuple[float, float] | None = None
    page: int | None = None

    @classmethod
    def of(cls, config: DatasetConfig) -> Reading:
        """The settings of a data set."""
        return cls(config.window, config.page)

    @classmethod
    def declared(cls, window: tuple[float, float] | None, page: int | None) -> Reading:
        """What a person says, checked as a configuration is."""
        if window is not None and not window[0] < window[1]:
            raise FocalError(f"window {list(window)}: black must be below white")
        if page is not None and page < 1:
            raise FocalError(f"page {page}: pages are counted from 1")
        return cls(window, page)

    def key(self, sha256: str) -> str:
        """The key of features: content and what is declared of it, since other settings show other pixels of the same
        bytes. The content alone where nothing is declared."""
        if self == Reading():
            return sha256
        return hashlib.sha256(json.dumps([sha256, self.window, self.page]).encode()).hexdigest()


def decode(data: bytes, where: str, reading: Reading = Reading()) -> Picture:  # noqa: B008 (frozen)
    """The picture in ``data``; ``where`` names it in messages.

    Raises :class:`ImageError` for bytes that are damaged or no picture, and :class:`FocalError` for what a setting or
    a package would mend.
    """
    try:
        image, kind, mode, bits = _reader_of(data)(data, where, reading)
    except FocalError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(where) from None
    except Exception as e:  # damaged bytes make readers raise anything
        raise ImageError(
            f"{where} cannot be decoded ({_why(e, data)})", hint="replace the file, or remove its line from the table"
        ) from None
    return Picture(image, kind, mode, bits)


HEAD = 132
"""Bytes that :func:`is_picture` looks at."""


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is of a format that :func:`decode` knows."""
    return head[128:132] == b"DICM" or head.startswith(_MAGIC) or head[8:12] == b"WEBP"


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC = (*_TIFF, *_JPEG2000, _PNG, b"\xff\xd8\xff", b"GIF8", b"BM", *(b"P%d" % i for i in range(1, 7)))


def _reader_of(data: bytes) -> Any:
    if data[128:132] == b"DICM":
        return _dicom
    if data.startswith(_TIFF):
        return _tiff
    if data.startswith(_PNG) and data[24:25] == b"\x10":
        return _deep_png
    if data.startswith(_JPEG2000) and _jpeg2000_bits(data) > 8:
        return _deep_jpeg2000
    return _pillow


def _why(error: Exception, data: bytes) -> str:
    """A reader's reason in some words. Of DICOM and of errors that are no reader's: their kind only."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no image format that is known"
    if data[128:132] == b"DICM" or not isinstance(error, (OSError, SyntaxError, ValueError)):
        return f"damaged: {type(error).__name__}"
    return printable(str(error))[:100] or type(error).__name__


# --------------------------------------------------------------------------- what all formats share


def _small_enough(width: int, height: int, where: str) -> None:
    if width * height > MOST_PIXELS:
        raise _too_large(where)


def _too_large(where: str) -> FocalError:
    return FocalError(
        f"{where} has more than the {MOST_PIXELS / 1e6:.0f} million pixels that are read whole",
        hint="a whole slide is read with 'kind: slides'; make another picture smaller",
    )


def _page(count: int, where: str, reading: Reading, *, what: str = "page") -> int:
    """The number, from 0, of the page or frame that is meant."""
    if reading.page is None and count == 1:
        return 0
    if reading.page is None:
        raise FocalError(
            f"{where} holds {count} {what}s, and nothing says which is meant",
            hint=f"set 'dataset.page: N', counted from 1, or save the {what} that is meant as a file",
        )
    if reading.page > count:
        raise ImageError(
            f"{where} has no {what} {reading.page}: it holds {count}", hint="correct 'dataset.page', or the file"
        )
    return reading.page - 1


def _windowed(values: Pixels, window: tuple[float, float]) -> Pixels:
    """uint8: the window's lower end is black, its upper end white, values outside are clipped."""
    low, high = window
    exact: Any = np.float32 if values.dtype.itemsize <= 2 else np.float64
    with np.errstate(over="ignore"):
        shown = np.clip((values.astype(exact) - exact(low)) * exact(255 / (high - low)), 0, 255)
    return np.rint(shown).astype(np.uint8)


def _window_of(values: Pixels, bits: int, where: str, reading: Reading, *, what: str = "") -> tuple[float, float]:
    """The declared window. Without one, the refusal names the values that the picture has."""
    if not np.isfinite(values).all():
        raise ImageError(f"{where} holds values that are no numbers", hint="replace the file")
    if reading.window is not None:
        return reading.window
    raise FocalError(
        f"{where} has more than 8 bits a pixel ({bits}{what}): its values go from {values.min():g} to {values.max():g}",
        hint="set 'dataset.window: [black, white]' to the values that your readers see as black and as white",
    )


def _deep(
    values: Pixels, most: float, bits: int, where: str, reading: Reading, orientation: int, inverted: bool = False
) -> Image.Image:
    """Values (h, w), or (h, w, c) with 1 to 4 channels, of which the second or fourth is alpha with ``most`` opaque."""
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4:
        raise ImageError(f"{where} is no gray or RGB picture", hint="save it as gray or RGB")
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    colour, alpha = values[..., :colours], values[..., colours:]
    shown = _windowed(colour, _window_of(colour, bits, where, reading))
    if inverted:
        shown = 255 - shown
    if alpha.size:  # as if it lay on black
        shown = np.rint(shown * (alpha.astype(np.float32) / most)).astype(np.uint8)
    return _turned(Image.fromarray(shown[..., 0] if colours == 1 else shown), orientation)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """RGB, turned as EXIF's orientation says."""
    image.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(image).convert("RGB")


def _on_black(image: Image.Image) -> Image.Image:
    """RGB; whatever colour lies below transparent places is not shown."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


# --------------------------------------------------------------------------- the formats


def _pillow(data: bytes, where: str, reading: Reading, page: int | None = None) -> tuple[Image.Image, str, str, int]:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    kind, mode = image.format or "", image.mode
    _small_enough(*image.size, where)
    number = _page(getattr(image, "n_frames", 1), where, reading) if page is None else page
    if number:
        image.seek(number)
        _small_enough(*image.size, where)
    if image.mode in DEEP_MODES or (kind == "PPM" and _pnm_most(data) > 255):  # scaled by Pillow
        raise FocalError(f"{where} has more than 8 bits a pixel, as {kind}", hint="save it as PNG or TIFF")
    return _on_black(ImageOps.exif_transpose(image)), kind, mode, 1 if mode == "1" else 8


def _pnm_most(data: bytes) -> int:
    """The largest value that a portable any-map says it has: the fourth word of its header; bitmaps have none."""
    words = re.sub(rb"#[^\n]*", b"", data[:4096]).split(maxsplit=4)
    return 1 if words[0] in (b"P1", b"P4") else int(words[3])


def _deep_png(data: bytes, where: str, reading: Reading) -> tuple[Image.Image, str, str, int]:
    """16 bits a channel. Pillow gives the high byte of colours only: the low one is the high one of the other order."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    kind, mode = "PNG", {b"\0": "L", b"\2": "RGB", b"\4": "LA", b"\6": "RGBA"}[data[25:26]]
    _small_enough(*image.size, where)
    _page(getattr(image, "n_frames", 1), where, reading)
    orientation = image.getexif().get(0x0112, 1)
    if "transparency" in image.info:
        raise FocalError(f"{where} has 16 bits and a transparent colour", hint="save it without transparency")
    if mode == "L":
        values = np.asarray(image)
    elif mode == "LA":  # 4 bytes a pixel, like 8-bit RGBA: said to be that
        head = data[12:24] + b"\x08\x06" + data[26:29]
        as_rgba = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
        values = np.asarray(Image.open(io.BytesIO(as_rgba), formats=("PNG",))).view(">u2")
    else:
        low = Image.open(io.BytesIO(data), formats=("PNG",))
        low.tile = [tile._replace(args=f"{mode};16L") for tile in low.tile]
        values = np.asarray(image) * np.uint16(256) + np.asarray(low)
    return _deep(values, 65535, 16, where, reading, orientation), kind, mode, 16


def _tiff(data: bytes, where: str, reading: Reading) -> tuple[Image.Image, str, str, int]:
    """Structure, depth and what is deep by tifffile, 8 bits by Pillow, which knows more colour spaces."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first: Any = file.pages[0]
        if reading.page is None and first.is_tiled and (len(file.pages) > 1 or first.subifds):
            raise FocalError(
                f"{where} is a whole slide: a picture in tiles, at several magnifications",
                hint="read slides with 'kind: slides', or name one picture of each file with 'dataset.page: N'",
            )
        number = _page(len(file.pages), where, reading)
        page: Any = file.pages[number]
        _small_enough(page.imagewidth, page.imagelength, where)
        if page.bitspersample <= 8 and page.sampleformat == 1:
            image, kind, mode, _ = _pillow(data, where, reading, number)
            return image, kind, mode, page.bitspersample
        photometric = getattr(page.photometric, "name", "unknown")
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB") or page.axes not in ("YX", "YXS", "SYX"):
            raise FocalError(
                f"{where} has {page.bitspersample} bits a channel in a form that is not read "
                f"({photometric}, axes {page.axes})",
                hint="save it as gray or RGB",
            )
        try:
            values = page.asarray()
        except ValueError as e:
            if "requires the 'imagecodecs' package" not in str(e):
                raise
            raise FocalError(
                f"{where} has {page.bitspersample} bits a channel, compressed as {page.compression.name}",
                hint="pip install imagecodecs, or save it without compression",
            ) from None
        if values.dtype.kind not in "uif":
            raise ImageError(f"{where} holds values of type {values.dtype}", hint="save it as gray or RGB")
        if page.axes == "SYX":
            values = np.moveaxis(values, 0, 2)
        if values.ndim == 3 and values.shape[2] in (2, 4) and not set(map(int, page.extrasamples)) & {1, 2}:
            values = values[..., : values.shape[2] - 1]  # the last channel is said not to be alpha
        most = 1.0 if values.dtype.kind == "f" else 2.0**page.bitspersample - 1
        orientation = int(page.tags.valueof(274, default=1))
        inverted = photometric == "MINISWHITE"
        image = _deep(values, most, page.bitspersample, where, reading, orientation, inverted)
        return image, "TIFF", photometric, page.bitspersample


def _jpeg2000_bits(data: bytes) -> int:
    """The largest of the components' depths: ITU-T T.800, A.5.1 (SIZ)."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 42:
        return 0
    (components,) = struct.unpack_from(">H", data, at + 40)
    depths = data[at + 42 : at + 42 + 3 * components : 3]
    return max(((depth & 0x7F) + 1 for depth in depths), default=0)


def _deep_jpeg2000(data: bytes, where: str, reading: Reading) -> tuple[Image.Image, str, str, int]:
    import openjpeg

    header = Image.open(io.BytesIO(data), formats=("JPEG2000",))
    _small_enough(*header.size, where)
    bits = _jpeg2000_bits(data)
    values = openjpeg.decode(data)
    return _deep(values, 2.0**bits - 1, bits, where, reading, 1), "JPEG2000", header.mode, bits


# --------------------------------------------------------------------------- DICOM


def _dicom(data: bytes, where: str, reading: Reading) -> tuple[Image.Image, str, str, int]:
    """Rescale, then window, as DICOM PS3.3 C.11 has it; MONOCHROME1 is inverted; colour becomes RGB."""
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
    except ImportError:
        raise FocalError(f"{where} is a DICOM file, which needs pydicom", hint="pip install 'focal[site]'") from None

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    ds = pydicom.dcmread(io.BytesIO(data))
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {str(e.keyword) for e in ds}:
        raise ImageError(f"{where} is a DICOM file without a picture", hint="remove its line from the table")
    width, height = int(ds.Columns), int(ds.Rows)
    if "TotalPixelMatrixColumns" in ds and reading.page is None:
        raise FocalError(
            f"{where} is a whole slide in DICOM", hint="read slides with 'kind: slides', or set 'dataset.page: N'"
        )
    _small_enough(width, height, where)
    frame = _page(int(ds.get("NumberOfFrames") or 1), where, reading, what="frame")
    syntax = ds.file_meta.TransferSyntaxUID
    if not _decodable(syntax):
        known = syntax.name if syntax.is_transfer_syntax else "what no standard names"
        raise FocalError(
            f"{where} is compressed as {known}, which no package that is installed decodes",
            hint="pip install 'focal[dicom]', or let your archive export it uncompressed",
        )
    own = "pydicom" if syntax == "1.2.840.10008.1.2.5" else ""  # RLE: another, where installed, ends on damaged bytes
    values = pixel_array(ds, index=frame, decoding_plugin=own)
    photometric, bits = str(ds.PhotometricInterpretation), int(ds.get("BitsStored") or 8 * values.itemsize)
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, ds)
        bits = 8 * values.itemsize
        shown = _windowed(values, (0, 2**bits - 1))
    elif values.ndim == 3:
        shown = values if values.dtype == np.uint8 else _windowed(values, _window_of(values, bits, where, reading))
    else:
        rescale = _of_frame(ds, frame, "PixelValueTransformationSequence")
        rescaled = apply_modality_lut(values, rescale)
        shown = _dicom_window(rescaled, values, _of_frame(ds, frame, "FrameVOILUTSequence"), bits, where, reading)
        if photometric == "MONOCHROME1":
            shown = 255 - shown
    return Image.fromarray(shown).convert("RGB"), "DICOM", photometric, bits


def _decodable(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    if not syntax.is_transfer_syntax:
        return False
    try:
        return not syntax.is_compressed or syntax.is_deflated or bool(get_decoder(syntax).is_available)
    except NotImplementedError:  # a video's, or a document's
        return False


def _of_frame(ds: Any, frame: int, sequence: str) -> Any:
    """Where a frame's ``sequence`` stands: with the frame, with all frames, or (single pictures) in the file itself."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or []
        if at < len(items) and items[at].get(sequence):
            return items[at].get(sequence)[0]
    return ds


def _dicom_window(rescaled: Pixels, stored: Pixels, voi: Any, bits: int, where: str, reading: Reading) -> Pixels:
    """uint8 of gray values: by the declared window, else the file's table or (first) window, else, up to 8 bits,
    as stored."""
    if reading.window is not None and bits > 8:
        return _windowed(rescaled, _window_of(rescaled, bits, where, reading))
    if voi.get("VOILUTSequence"):
        return _looked_up(rescaled, voi.VOILUTSequence[0])
    centre, width = (_first(voi.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        function = str(voi.get("VOILUTFunction") or "LINEAR")
        if function == "SIGMOID" and width > 0:
            return np.rint(255 / (1 + np.exp(-4 * (rescaled - centre) / width))).astype(np.uint8)
        low, high = centre - width / 2, centre + width / 2
        if function == "LINEAR":  # C.11.2.1.2.1: of the values that are whole numbers
            low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        if function not in ("LINEAR", "LINEAR_EXACT") or width < 1:
            raise ImageError(f"{where} has a window that is not read ({function})", hint="set 'dataset.window'")
        return _windowed(rescaled, (low, high if high > low else low + 1e-6))
    if bits <= 8 and stored.dtype == np.uint8 and np.array_equal(rescaled, stored):
        return _windowed(stored, (0, 2**bits - 1))
    return _windowed(rescaled, _window_of(rescaled, bits, where, reading, what=", after rescaling, and no window"))


def _looked_up(rescaled: Pixels, table: Any) -> Pixels:
    """uint8 through a VOI LUT (PS3.3 C.11.2.1.1). pydicom's own ``apply_voi`` wraps around in tables of 8 bits."""
    entries, first, depth = (int(number) for number in table.LUTDescriptor)
    values = table.LUTData
    if isinstance(values, bytes):
        size = "u1" if len(values) < 2 * (entries or 1 << 16) else "u2"
        values = np.frombuffer(values, "<>"[not table.original_encoding[1]] + size)
    lut = _windowed(np.asarray(values), (0, 2.0**depth - 1))
    return lut[np.clip(np.rint(rescaled).astype(np.int64) - first, 0, len(lut) - 1)]


def _first(value: Any) -> float | None:
    """Of several values, which are alternatives, the first: what a viewer opens with."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0])
