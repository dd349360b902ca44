"""A hospital's table as text: a header, rows of cells, and the line on which each stands.

::

    the file's bytes --zip with a workbook--> openpyxl ----------------------------> Sheet
                     --text: BOM, UTF-8 or cp1252--> separator: , ; tab  --csv-->    header   filename label  patient
                                                     (or a first line sep=;)         line 2   0.png    ill    0001
                                                                                     line 4   1.png    well   7

Cells are what was written, without blanks around them: nothing is guessed to be a number or to be missing. What had to
be chosen (an encoding, a separator) is in :attr:`Sheet.notes`, for people to read.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from focal.errors import FocalError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))

OLD_EXCEL = b"\xd0\xcf\x11\xe0"

ERRORS = ("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!")
"""What spreadsheets write where a formula has no result."""
LATIN = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0430\u0435\u043e\u0440\u0441\u0445"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTXaeopcx" + "ABEZHIKMNOPTYXo",
)
"""Cyrillic and Greek letters that look like Latin ones."""
EXACT = 1e15
"""Spreadsheets round longer numbers."""

Lines = Iterator[tuple[int, list[str]]]
"""Line number and cells of every line that is not blank."""


@dataclass(frozen=True)
class Sheet:
    """A table of text. Columns are found by their names in lower case."""

    path: Path
    header: tuple[str, ...]
    """In lower case; columns without a name are ``""``."""
    lines: tuple[int, ...]
    """(n,) where each row stands in the file, from 1."""
    rows: tuple[tuple[str, ...], ...]
    """(n,) rows of as many cells as the header has."""
    notes: tuple[str, ...] = ()
    """What had to be chosen to read it."""

    def __contains__(self, column: str) -> bool:
        return column != "" and column in self.header

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray[np.str_]:
        """(n,) the cells of one column. Raises :class:`FocalError` when there is no such column."""
        if name not in self:
            raise FocalError(
                f"{self.path}: has no column '{name}' (found: {', '.join(filter(None, self.header)) or 'nothing'})",
                hint="the columns are filename,label,patient[,split][,institution]; say what one is called here: "
                f"dataset.columns: {{{name}: THEIRS}}",
            )
        at = self.header.index(name)
        return np.array([row[at] for row in self.rows], dtype=np.str_)

    def check_results(self, names: Collection[str]) -> None:
        """Raise :class:`FocalError` for a cell of these columns in which a spreadsheet's formula failed."""
        for at, name in enumerate(self.header):
            for line, row in zip(self.lines, self.rows, strict=True) if name in names else ():
                if row[at].upper() in ERRORS:
                    raise FocalError(
                        f"{self.path}: line {line}: '{name}' is {row[at]}, which a spreadsheet writes where a formula "
                        "has no result",
                        hint="mend the formula, or remove the line",
                    )

    def renamed(self, columns: Mapping[str, str]) -> Sheet:
        """The same with the column ``theirs`` called ``ours``, for every ``ours: theirs`` of ``columns``."""
        header = list(self.header)
        for ours, theirs in columns.items():
            name = theirs.strip().lower()
            if name not in self:
                self.column(name)
            if ours in self.header and ours != name:  # said on purpose: the other column has no name any more
                header[self.header.index(ours)] = ""
            header[self.header.index(name)] = ours
        return replace(self, header=tuple(header))


def read_sheet(path: Path) -> Sheet:
    """The table in ``path``: an ``.xlsx`` workbook of one sheet, or text with commas, semicolons or tabs.

    Raises :class:`FocalError` naming file and line for what is no table, has no rows, has two columns of one name, or a
    line with more cells than the header.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise FocalError(f"{path}: cannot be read ({e.strerror})", hint="is the path of the table right?") from None
    notes: list[str] = []
    found = _workbook(path, data, notes) if data[:4] == b"PK\x03\x04" else _text(path, data, notes)
    _, first = next(found, (0, []))
    header = [cell.lower() for cell in first]
    while header and not header[-1]:
        header.pop()
    if not header:
        raise _no_table(path, "it is empty")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise FocalError(
            f"{path}: has two columns '{twice[0]}'", hint="case does not tell columns apart; rename or remove one"
        )
    lines, rows = [], []
    for line, cells in found:
        if any(cells[len(header) :]):
            raise FocalError(
                f"{path}: line {line}: has {len(cells)} cells, the header has {len(header)}",
                hint="a cell that holds the separator must be in double quotes",
            )
        lines.append(line)
        rows.append(tuple(cells[: len(header)] + [""] * (len(header) - len(cells))))
    if not rows:
        raise FocalError(f"{path}: has no rows", hint="write one line per image below the header")
    return Sheet(path, tuple(header), tuple(lines), tuple(rows), tuple(notes))


def _no_table(path: Path, why: str) -> FocalError:
    return FocalError(
        f"{path}: is not a table ({why})",
        hint="write it as .xlsx, or as text in UTF-8: commas between the columns, one line per image",
    )


def _text(path: Path, data: bytes, notes: list[str]) -> Lines:
    if data.startswith(OLD_EXCEL):
        raise _no_table(path, "it is a workbook of Excel before 2007")
    text = _decoded(path, data, notes)
    first, _, rest = text.partition("\n")
    start, separator = 0, ""
    if first.strip().lower().startswith("sep="):
        separator, text, start = first.strip("\r\n")[4:5], rest, 1
        if separator not in SEPARATORS:
            raise _no_table(path, f"its first line names '{separator}' as separator")
    separator = separator or _separator(text)
    if separator != ",":
        notes.append(f"its columns are separated by {SEPARATORS[separator]}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    begins = start + 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield begins, stripped
            begins = start + reader.line_num + 1
    except csv.Error as e:
        raise _no_table(path, f"line {begins}: {e}") from None


def _decoded(path: Path, data: bytes, notes: list[str]) -> str:
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), None)
    try:
        try:
            text = data.decode(encoding or "utf-8")
        except UnicodeDecodeError:
            if encoding is not None:
                raise
            text = data.decode("cp1252")
            notes.append("it is no UTF-8 and was read as Windows-1252; look at its accents")
    except UnicodeDecodeError:
        raise _no_table(path, "its bytes are no text") from None
    if "\0" in text:
        raise _no_table(path, "its bytes are no text")
    return text


def _separator(text: str) -> str:
    """The one that cuts the header into most columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=lambda s: len(next(csv.reader([header], delimiter=s), [])))


def _workbook(path: Path, data: bytes, notes: list[str]) -> Lines:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            names = z.namelist()
            parts = [z.read(name) for name in names if name.startswith("xl/worksheets/") and name.endswith(".xml")]
        if "xl/workbook.xml" not in names:
            raise _no_table(path, "it is a zip archive")
        _check_layout(path, parts, notes)
        import openpyxl

        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheets = {s.title: list(s.iter_rows(values_only=True)) for s in book.worksheets}
    except FocalError:
        raise
    except Exception as e:  # openpyxl has no error of its own for what is no workbook
        raise _no_table(path, f"its workbook is damaged: {type(e).__name__}") from None
    filled = {name: rows for name, rows in sheets.items() if any(cell is not None for row in rows for cell in row)}
    if len(filled) > 1:
        raise _no_table(path, f"it has {len(filled)} sheets: {', '.join(filled)}; keep one")
    for line, row in enumerate(next(iter(filled.values()), []), start=1):
        cells = [_cell(value) for value in row]
        if any(cells):
            yield line, cells


def _check_layout(path: Path, sheets: Sequence[bytes], notes: list[str]) -> None:
    """What a person sees in a workbook and its cells do not say: of cells that are merged only the first has a value,
    and rows that a filter hides are there."""
    for sheet in sheets:
        for first, top, last, bottom in re.findall(rb'<mergeCell ref="([A-Z]+)([0-9]+):([A-Z]+)([0-9]+)"', sheet):
            if top != bottom:
                where = f"{first.decode()}{top.decode()}:{last.decode()}{bottom.decode()}"
                raise FocalError(
                    f"{path}: the cells {where} are merged: only the first of them has a value",
                    hint="unmerge them, and write the value into every row that it is meant for",
                )
    if hidden := sum(len(re.findall(rb'<row [^>]*hidden="(?:1|true)"', sheet)) for sheet in sheets):
        notes.append(f"{hidden} rows that are hidden in the workbook are read like the others")


def _cell(value: object) -> str:
    """As text: whole numbers without a point, days without a time, numbers with more digits than a workbook keeps with
    an exponent."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and abs(value) >= EXACT:
        return f"{value:.14E}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).removesuffix(" 00:00:00").strip()


def alike(values: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of different ``values`` that a reader would take for one: they differ by case, blanks, ``.0``,
    leading zeros, how accents are composed, or the alphabet of a letter."""
    groups: dict[str, list[str]] = {}
    for value in sorted(set(values)):
        groups.setdefault(look(value), []).append(value)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def look(value: str) -> str:
    """What a reader sees of ``value``."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", value) if unicodedata.category(c) != "Cf")
    shown = " ".join(shown.translate(LATIN).casefold().split())
    head, point, tail = shown.partition(".")
    if head.isdecimal() and (not point or (tail and not tail.strip("0"))):
        return head.lstrip("0") or "0"
    return shown
