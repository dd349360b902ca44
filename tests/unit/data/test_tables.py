"""Tables as hospitals save them: read as meant, or refused in one sentence that says why."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from PIL import Image

from focal.config import DatasetConfig
from focal.data import load
from focal.data.sheet import alike, look, read_sheet
from focal.data.table import Table
from focal.errors import FocalError

ROWS = [(f"{i}.png", "NDCM"[i % 4], f"p{i // 2}") for i in range(24)]
HEAD = ("filename", "label", "patient")


def text(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEAD, separator: str = ",", end: str = "\n") -> str:
    return end.join(separator.join(row) for row in (header, *rows)) + end


def loaded(folder: Path, data: bytes | str, name: str = "eyes.csv", **options: Any) -> Table:
    """``data`` as a table beside images ``0.png`` .. ``23.png``."""
    images = folder / "images"
    images.mkdir()
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    for filename, *_ in ROWS:
        (images / filename).write_bytes(png.getvalue())
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return load(DatasetConfig(kind="table", table=path, images=images, **options), 0)


def workbook(rows: list[tuple[Any, ...]], merged: str = "", hidden: int = 0, **others: list[tuple[Any, ...]]) -> bytes:
    """``merged`` cells, and so many ``hidden`` rows below the header."""
    book, out = openpyxl.Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    if merged:
        book.active.merge_cells(merged)
    for line in range(2, 2 + hidden):
        book.active.row_dimensions[line].hidden = True
    for name, extra in others.items():
        sheet = book.create_sheet(name)
        for row in extra:
            sheet.append(row)
    book.save(out)
    return out.getvalue()


SITE = [(*row, "Universitätsklinikum") for row in ROWS]
READ: dict[str, tuple[bytes | str, dict[str, Any]]] = {
    "as documented": (text(ROWS), {}),
    "Excel's UTF-8 with BOM and CRLF": (b"\xef\xbb\xbf" + text(ROWS, end="\r\n").encode(), {}),
    "German Excel": (b"\xef\xbb\xbf" + text(ROWS, separator=";", end="\r\n").encode(), {}),
    "tabs": (text(ROWS, separator="\t"), {}),
    "a line that names the separator": ("sep=;\n" + text(ROWS, separator=";"), {}),
    "Windows-1252": (text(SITE, (*HEAD, "place"), end="\r\n").encode("cp1252"), {}),
    "UTF-16, tabs": (text(SITE, (*HEAD, "place"), separator="\t").encode("utf-16"), {}),
    "a comma at the end of every row but the header": (text(ROWS, end=",\n").replace("patient,\n", "patient\n"), {}),
    "blank lines": (text(ROWS).replace("1.png", "\n,,\n1.png", 1), {}),
    "quoted cells and other columns": (
        text([(*row, '"a, ""b"""') for row in ROWS], (*HEAD, "note")),
        {},
    ),
    "blanks and capitals in the header": (text(ROWS, ("Filename ", " LABEL", "Patient")), {}),
    "other names": (
        text(ROWS, ("image", "Diagnosis", "Patient ID")),
        {"columns": {"filename": "image", "label": "diagnosis", "patient": "patient id"}},
    ),
    "a group of another name": (text(ROWS, ("filename", "label", "eye")), {"group": "eye"}),
    "a column for each class": (
        text([(f, p, *("01"[label == c] for c in "NDCM")) for f, label, p in ROWS], ("filename", "patient", *"NDCM")),
        {"columns": {"label": ("C", "D", "M", "N")}},
    ),
}


@pytest.mark.parametrize("case", READ)
def test_what_hospitals_save_is_read_as_meant(tmp_path: Path, case: str) -> None:
    data, options = READ[case]
    table = loaded(tmp_path, data, **options)
    assert (table.classes, table.task) == (("C", "D", "M", "N"), "multiclass")
    assert [table.classes[k] for k in table.labels.argmax(1)] == [row[1] for row in ROWS]
    assert table.filenames.tolist() == [row[0] for row in ROWS]
    assert table.groups.tolist() == [row[2] for row in ROWS]


def test_a_workbook_is_read_whatever_its_name(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [HEAD, *((f, "NDCM".index(label), i // 2) for i, (f, label, _) in enumerate(ROWS))]
    table = loaded(tmp_path, workbook([rows[0], (None,) * 3, *rows[1:]]), "eyes.csv")
    assert table.classes == ("0", "1", "2", "3") and table.groups.tolist()[:4] == ["0", "0", "1", "1"]
    assert read_sheet(tmp_path / "eyes.csv").lines[0] == 3
    other = tmp_path / "two.xlsx"
    other.write_bytes(workbook(rows, notes=[("look here",)]))
    with pytest.raises(FocalError, match="has 2 sheets: Sheet, notes"):
        read_sheet(other)
    other.write_bytes(workbook(rows, merged="A1:B1"))
    assert len(read_sheet(other)) == 24, "merged across, in a line of titles"
    other.write_bytes(workbook(rows, hidden=3))
    assert read_sheet(other).notes == ("3 rows that are hidden in the workbook are read like the others",)


def relabelled(rename: dict[str, str], every: int = 1) -> str:
    return text([(f, rename.get(c, c) if i % every == 0 else c, p) for i, (f, c, p) in enumerate(ROWS)])


TWO = {"N": "normal", "D": "abnormal", "C": "abnormal", "M": "abnormal"}
REFUSED: dict[str, tuple[bytes | str, dict[str, Any], str]] = {
    "empty": ("", {}, "is not a table"),
    "a header alone": ("filename,label,patient\n", {}, "has no rows"),
    "Excel before 2007": (b"\xd0\xcf\x11\xe0" + bytes(600), {}, "workbook of Excel before 2007"),
    "bytes": (bytes(range(256)), {}, "its bytes are no text"),
    "UTF-16 without a mark": (text(ROWS).encode("utf-16-le"), {}, "its bytes are no text"),
    "an open quote": (text(ROWS).replace("3.png", '"3.png'), {}, "is not a table (line 5: "),
    "two columns of one name": (text([(*r, "x") for r in ROWS], (*HEAD, "Label")), {}, "two columns 'label'"),
    "more cells than the header": (text([*ROWS[:3], (*ROWS[3], "x")]), {}, "line 5: has 4 cells, the header has 3"),
    "no such column": (text(ROWS), {"columns": {"label": "grade"}}, "has no column 'grade'"),
    "no patient": (text([r[:2] for r in ROWS], HEAD[:2]), {}, "has no column 'patient'"),
    "no patient, but one that looks like it": (
        text(ROWS, ("filename", "label", "patient_id")),
        {},
        "'patient_id' looks like it",
    ),
    "mrn": (text(ROWS, ("filename", "label", "mrn")), {}, "'mrn' looks like it"),
    "labels that differ by case": (relabelled({"N": "n"}, 8), {}, "labels that look alike: 'N' and 'n'"),
    "by .0": (
        text([(f, str("NDCM".index(c)) + ".0" * (i % 8 == 0), p) for i, (f, c, p) in enumerate(ROWS)]),
        {},
        "'0' and '0.0'",
    ),
    "by accents": (
        relabelled({"N": "caf\u00e9"}).replace("caf\u00e9", "cafe\u0301", 1),
        {},
        "labels that look alike",
    ),
    "by a blank of no width": (relabelled({"N": "N\u200b"}, 8), {}, "labels that look alike"),
    "NA": (relabelled({"N": "NA"}, 8), {}, "the label 'NA' reads like 'not known'"),
    "by a letter of another alphabet": (
        relabelled({"N": "\u041d", "D": "H"}),
        {},
        "labels that look alike: 'H' and '\u041d'",
    ),
    "what could rewrite a screen": (relabelled({"N": "N\x1b[2J"}, 8), {}, "the label 'N?[2J' holds control characters"),
    "a formula without a result": (
        relabelled({"N": "#N/A"}, 8),
        {},
        "line 2: 'label' is #N/A, which a spreadsheet writes",
    ),
    "patients of such a formula": (
        text([(f, c, "#REF!" if i == 4 else p) for i, (f, c, p) in enumerate(ROWS)]),
        {},
        "line 6: 'patient' is #REF!",
    ),
    "patients that a spreadsheet has rounded": (
        text([(f, c, f"{p[1]}.23457E+11") for f, c, p in ROWS]),
        {},
        "line 2: patient '0.23457E+11' is a number that a spreadsheet has rounded",
    ),
    "longer numbers than a workbook keeps": (
        workbook([HEAD, *((f, c, 2024000000000000 + i) for i, (f, c, _) in enumerate(ROWS))]),
        {},
        "is a number that a spreadsheet has rounded",
    ),
    "merged cells": (
        workbook([HEAD, *ROWS], merged="C2:C3"),
        {},
        "the cells C2:C3 are merged: only the first of them has a value",
    ),
    "a question mark": (relabelled({"N": "?"}, 8), {}, "the label '?' reads like"),
    "A|B": (relabelled({"N": "N|D"}, 8), {}, "the label 'N|D' reads like several"),
    "A,B": (relabelled({"N": '"N,D"'}, 8), {}, "the label 'N,D' reads like several"),
    "nothing": (relabelled({"N": ""}, 8), {}, "line 2: a multiclass task needs exactly one label, not ''"),
    "nothing, multilabel": (
        relabelled({"N": "", "D": "D;C"}),
        {},
        "line 2: has no label: has nobody looked, or was nothing found?",
    ),
    "positive is who has nothing": (relabelled(TWO), {}, "the positive class would be 'normal'"),
    "neither 0 nor 1": (
        text([(f, p, "1", "yes") for f, _, p in ROWS], ("filename", "patient", "N", "D")),
        {"columns": {"label": ("N", "D")}},
        "line 2: column 'D' holds 'yes', neither 0 nor 1",
    ),
    "a label in another case": (
        relabelled({"N": "n"}, 8),
        {"classes": ("N", "D", "C", "M")},
        "label 'n' is not among the classes N, D, C, M",
    ),
    "words for splits": (
        text([(*r, "Training") for r in ROWS], (*HEAD, "split")),
        {},
        "split 'training' is none of train, val, test",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_mean_several_things_is_refused(tmp_path: Path, case: str) -> None:
    data, options, message = REFUSED[case]
    with pytest.raises(FocalError) as e:
        loaded(tmp_path, data, **options)
    assert message in e.value.message and "eyes.csv" in e.value.message and e.value.hint


def test_whoever_says_what_is_meant_is_believed(tmp_path: Path) -> None:
    named = loaded(tmp_path, relabelled({"N": "NA"}), classes=("NA", "D", "C", "M"))
    assert named.labels.sum(0).tolist() == [6] * 4
    (tmp_path / "b").mkdir()
    binary = loaded(tmp_path / "b", relabelled(TWO), classes=("abnormal", "normal"))
    assert binary.classes[-1] == "normal" and not binary.notes
    (tmp_path / "c").mkdir()
    empty = loaded(tmp_path / "c", relabelled({"N": "", "D": "D;C"}), unlabelled_is_negative=True)
    assert (empty.labels.sum(1) == 0).sum() == 6


def test_what_people_should_read_is_said(tmp_path: Path) -> None:
    table = loaded(
        tmp_path,
        text(
            [
                (f, "ill" if c in "ND" else "fine", ("0001", "1", "", "P7", "p7")[i % 5], "x")
                for i, (f, c, _) in enumerate(ROWS)
            ],
            (*HEAD, "hospital"),
            separator=";",
        ),
    )
    said = "\n".join(table.notes)
    for part in (
        "separated by semicolons",
        "the positive class is 'ill'",
        "5 rows have no patient",
        "look alike: '0001', '1'",
        "look alike: 'P7', 'p7'",
        "'hospital' looks like 'institution'",
    ):
        assert part in said
    assert set(table.groups) >= {"0001", "1", "P7", "p7"}, "ids are text"


def test_a_zip_that_is_no_workbook(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("0.png", b"")
    with pytest.raises(FocalError, match="it is a zip archive"):
        read_sheet(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FocalError, match="its workbook is damaged"):
        read_sheet(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [("0001", "1"), ("7", "7.0"), ("P1", "p1"), ("é", "e\u0301"), ("a  b", "a b"), ("Ⅳ", "IV")],
)
def test_what_looks_alike(one: str, other: str) -> None:
    assert alike([one, other, "x"]) and look(one) == look(other)
    assert not alike([one, one, "x"]) and not alike(["1.5", "1.50", "10", "1"])
