"""Tables, splits and partitions: what a hospital's files become, and what each kind of bad file is told."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import DATA

from focal.config import DatasetConfig, PartitionConfig, numbered
from focal.data import load, load_for_scoring, medmnist
from focal.data.partition import partition
from focal.data.sources import ArrayImages
from focal.data.table import Table, own_groups, seeded_split
from focal.errors import FocalError


def png(value: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (8, 6), value if mode != "RGB" else (value, 0, 255 - value)).save(out, "PNG")
    return out.getvalue()


def hospital(folder: Path, text: str, *, zipped: bool = False, **options: Any) -> DatasetConfig:
    """A CSV with ``text`` beside images ``0.png`` .. ``7.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eyes.csv").write_text(text)
    if "patient" not in text:
        options = {"group": "none", **options}
    images = folder / ("images.zip" if zipped else "images")
    if zipped:
        with zipfile.ZipFile(images, "w") as z:
            for i in range(8):
                z.writestr(f"{i}.png", png(30 * i))
    else:
        images.mkdir(exist_ok=True)
        for i in range(8):
            (images / f"{i}.png").write_bytes(png(30 * i))
    return DatasetConfig(kind="table", table=folder / "eyes.csv", images=images, **options)


GOOD = """filename,label,patient,split,institution,age
0.png,fine,a,train,north,61
1.png,ill,a,train,north,61
2.png,ill,b,train,south,40
3.png,fine,c,train,south,
4.png,fine,d,val,north,33
5.png,ill,e,test,south,NA
6.png,fine,e,test,south,NA
"""


@pytest.mark.parametrize("zipped", [False, True])
def test_a_table_is_read_as_written(tmp_path: Path, zipped: bool) -> None:
    table = load(hospital(tmp_path, GOOD, zipped=zipped, classes=("fine", "ill")), 0)
    assert (table.name, table.classes, table.task, len(table)) == ("eyes", ("fine", "ill"), "binary", 7)
    assert table.labels.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0], [1, 0], [0, 1], [1, 0]]
    assert table.groups.tolist() == list("aabcdee")
    assert table.train_rows.tolist() == [0, 1, 2, 3] and table.test_rows.tolist() == [5, 6]
    assert table.institution is not None and table.institution.tolist()[3:6] == ["south", "north", "south"]
    assert table.columns["age"].tolist() == ["61", "61", "40", "", "33", "NA", "NA"], (
        "nothing is guessed to be a number or missing"
    )
    assert np.asarray(table.images.read(2)).tolist()[0][0] == [60, 0, 195]
    part = table.take([5, 0])
    assert part.filenames.tolist() == ["5.png", "0.png"] and part.labels.tolist() == [[0, 1], [1, 0]]
    assert part.images.sha256(0) == table.images.sha256(5) != table.images.sha256(0)


def test_labels_decide_classes_and_task(tmp_path: Path) -> None:
    multi = load(
        hospital(
            tmp_path,
            "filename,label\n0.png,D; N\n1.png,N\n2.png,\n3.png,C\n4.png,C;D\n5.png,N\n",
            unlabelled_is_negative=True,
        ),
        0,
    )
    assert (multi.classes, multi.task) == (("C", "D", "N"), "multilabel")
    assert multi.labels.tolist()[:3] == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    three = load(hospital(tmp_path, "filename,label\n" + "".join(f"{i}.png,grade-{i % 3}\n" for i in range(8))), 0)
    assert three.task == "multiclass" and three.labels.sum(1).tolist() == [1] * 8


def test_val_stands_in_only_where_the_whole_table_has_no_test_row(tmp_path: Path) -> None:
    table = load(hospital(tmp_path / "a", GOOD.replace("test", "val")), 0)
    assert table.test_rows.tolist() == [4, 5, 6]
    rows = tmp_path / "rows.txt"
    rows.write_text("0\n2\n4\n")
    part = load(hospital(tmp_path / "b", GOOD, rows=rows), 0)
    assert part.test_rows.tolist() == [] and part.split.tolist() == ["train", "train", "val"], (
        "test rows exist, elsewhere"
    )


def test_a_table_without_split_is_split_by_group_and_seed(tmp_path: Path) -> None:
    text = "filename,label,eye\n" + "".join(f"{i}.png,{'AB'[i % 2]},{i // 2}\n" for i in range(8))
    tables = [load(hospital(tmp_path, text, group="eye", test_fraction=0.5), seed) for seed in (0, 0, 1, 2, 3)]
    for table in tables:
        assert not set(table.groups[table.train_rows]) & set(table.groups[table.test_rows])
        assert len(table.test_rows) == 4
    assert (tables[0].split == tables[1].split).all()
    assert any((tables[0].split != t.split).any() for t in tables[2:])


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_seeded_split_holds_out_the_stated_share(groups: int, fraction: float, seed: int) -> None:
    who = np.repeat(own_groups(groups), 2)
    split = seeded_split(who, fraction, seed, "x")
    held = len(np.unique(who[split == "test"]))
    assert 1 <= held <= groups - 1 and abs(held - fraction * groups) <= 1  # rounding, and never an empty side


def test_rows_without_a_patient_are_their_own_group(tmp_path: Path) -> None:
    table = load(hospital(tmp_path, "filename,label,patient\n0.png,A,p\n1.png,B,\n2.png,A,\n3.png,B,p\n"), 0)
    assert len(set(table.groups)) == 3 and table.groups[0] == table.groups[3] == "p"


BAD = {
    "no label": ("filename,grade\n0.png,A\n", {}, "no column 'label' (found: filename, grade)"),
    "no filename": ("image,label\n0.png,A\n", {}, "no column 'filename'"),
    "no rows": ("filename,label\n", {}, "has no rows"),
    "empty file": ("", {}, "is not a table (it is empty)"),
    "ragged": ("filename,label\n1.png,B\n0.png,A,1,2\n2.png,a\n", {}, "line 3: has 4 cells, the header has 2"),
    "missing image": (
        "filename,label\n0.png,A\n77.png,B\n",
        {},
        "1 of 2 images of eyes.csv are missing: '77.png'",
    ),
    "unknown label": (
        "filename,label\n0.png,A\n1.png,Z\n",
        {"classes": ("A", "B")},
        "line 3: label 'Z' is not among the classes A, B",
    ),
    "two labels": ("filename,label\n0.png,A;B\n1.png,B\n", {"task": "binary"}, "needs exactly one label"),
    "no label value": ("filename,label\n0.png,A\n1.png,\n2.png,B\n", {}, "needs exactly one label"),
    "bad split": (
        "filename,label,split\n0.png,A,train\n1.png,B,dev\n",
        {},
        "line 3: split 'dev' is none of train, val, test",
    ),
    "no test": ("filename,label,split\n0.png,A,train\n1.png,B,train\n", {}, "has no test or val row"),
    "no train": ("filename,label,split\n0.png,A,test\n1.png,B,test\n", {}, "has no train row"),
    "split patient": (
        "filename,label,patient,split\n0.png,A,p,train\n1.png,B,p,test\n",
        {},
        "1 patients or groups have rows in train and in test",
    ),
    "one class": ("filename,label\n0.png,A\n1.png,A\n", {}, "does not fit 1 classes (A)"),
    "one class in train": (
        "filename,label,split\n0.png,A,train\n1.png,B,test\n2.png,A,train\n",
        {},
        "all 2 train rows have the same label",
    ),
    "no group": ("filename,label\n0.png,A\n1.png,B\n", {"group": "eye"}, "no column 'eye'"),
    "one patient": ("filename,label,patient\n0.png,A,p\n1.png,B,p\n", {}, "all rows belong to one patient"),
    "three of binary": (
        "filename,label\n0.png,A\n1.png,B\n2.png,C\n",
        {"task": "binary"},
        "a binary task does not fit 3 classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named_with_a_way_out(tmp_path: Path, case: str) -> None:
    text, options, message = BAD[case]
    with pytest.raises(FocalError) as e:
        load(hospital(tmp_path, text, **options), 0)
    assert message in e.value.message
    assert "eyes" in e.value.message or "images" in e.value.message


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    config = hospital(tmp_path, GOOD)
    with pytest.raises(FocalError, match="gone.csv: cannot be read"):
        load(config.model_copy(update={"table": tmp_path / "gone.csv"}), 0)
    with pytest.raises(FocalError, match="gone: no such folder or zip"):
        load(config.model_copy(update={"images": tmp_path / "gone"}), 0)
    with pytest.raises(FocalError, match="neither a folder nor a zip"):
        load(config.model_copy(update={"images": tmp_path / "eyes.csv"}), 0)
    table = load(config, 0)
    (tmp_path / "images" / "1.png").write_bytes(png(1)[:30])
    (tmp_path / "images" / "2.png").unlink()
    Image.new("I;16", (4, 4), 4000).save(tmp_path / "images" / "3.png")
    for row, problem in (
        (1, "'1.png' cannot be decoded"),
        (2, "'2.png' cannot be read"),
        (3, "'3.png' has more than 8 bits"),
    ):
        with pytest.raises(FocalError, match=problem):
            table.images.read(row)


@pytest.mark.parametrize(
    ("called", "there", "says"),
    [
        ("{i}.PNG", "{i}.png", "differ in capitals, accents or the slashes between folders: '0.PNG' is '0.png'"),
        ("left\\{i}.png", "left/{i}.png", "slashes between folders: 'left\\0.png' is 'left/0.png'"),
        ("\u00e9{i}.png", "e\u0301{i}.png", "in capitals, accents"),
        ("{i}.png", "export/images/{i}.png", "differ in their folder: '0.png' is 'export/images/0.png'"),
        ("C:\\scans\\{i}.png", "{i}.png", "differ in their folder"),
        ("{i}", "{i}.png", "differ in their ending: '0' is '0.png'"),
        ("{i}", "00{i}.png", "differ in their ending: '0' is '000.png'"),
        ("x{i}.png", "y{i}.png", ""),
    ],
)
def test_names_under_which_missing_images_are_there_are_said(
    tmp_path: Path, called: str, there: str, says: str
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as z:
        for i in range(3):
            z.writestr(there.format(i=i), png(i))
    (tmp_path / "a.csv").write_text(
        "filename,label,patient\n" + "".join(f"{called.format(i=i)},{'ab'[i % 2]},{i}\n" for i in range(3))
    )
    with pytest.raises(FocalError, match="3 of 3 images of a.csv are missing") as e:
        load(DatasetConfig(kind="table", table=tmp_path / "a.csv", images=path), 0)
    assert (f"3 of them are there under names that {says}" if says[:6] == "differ" else says) in e.value.hint
    assert ("are there" in e.value.hint) == bool(says)


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    config = hospital(tmp_path, GOOD, zipped=True)
    raw = bytearray((tmp_path / "images.zip").read_bytes())
    at = raw.index(png(30 * 2))
    raw[at + 40] ^= 1
    (tmp_path / "images.zip").write_bytes(raw)
    table = load(config, 0)
    with pytest.raises(FocalError, match="'2.png' cannot be read"):
        table.images.sha256(2)
    assert table.images.read(1).size == (8, 6)


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_does_not_unpack_is_named(tmp_path: Path, packed: int) -> None:
    """Every decompressor has an error of its own."""
    config = hospital(tmp_path, GOOD, zipped=True)
    with zipfile.ZipFile(tmp_path / "images.zip") as z:
        images = {name: z.read(name) for name in z.namelist()}
    with zipfile.ZipFile(tmp_path / "images.zip", "w", packed) as z:
        for name, data in images.items():
            z.writestr(name, data)
        start = z.getinfo("2.png").header_offset + 30 + len("2.png")
        size = z.getinfo("2.png").compress_size
    raw = bytearray((tmp_path / "images.zip").read_bytes())
    raw[start : start + size] = b"\xff" * size
    (tmp_path / "images.zip").write_bytes(raw)
    with pytest.raises(FocalError, match="'2.png' cannot be read"):
        load(config, 0).images.sha256(2)


@pytest.mark.parametrize(("offset", "value"), [(0, 1), (2, 99)])
def test_a_member_that_is_encrypted_or_packed_in_an_unknown_way_is_named(
    tmp_path: Path, offset: int, value: int
) -> None:
    """Flags (bit 0: encrypted) and packing, in the member's local header and in the directory's,
    where the name stands 46 bytes on."""
    config = hospital(tmp_path, GOOD, zipped=True)
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive) as z:
        local, directory = z.getinfo("2.png").header_offset, z.start_dir
    raw = bytearray(archive.read_bytes())
    for start in (local + 6, raw.index(b"2.png", directory) - 46 + 8):
        raw[start + offset] = value
    archive.write_bytes(raw)
    with pytest.raises(FocalError, match="'2.png' cannot be read"):
        load(config, 0).images.sha256(2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("0\n1\nx\n", "no row number"), ("0\n7\n", "row numbers from 0 to 6"), ("", "between 1"), ("1 1", "different")],
)
def test_bad_row_files(tmp_path: Path, text: str, problem: str) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text(text)
    with pytest.raises(FocalError, match=problem):
        load(hospital(tmp_path, GOOD, rows=rows), 0)


def test_one_class_is_a_warning_where_other_institutions_have_the_rest(tmp_path: Path) -> None:
    text = "filename,label,split\n0.png,A,train\n1.png,A,train\n2.png,A,test\n"
    with pytest.warns(UserWarning, match="same label"):
        table = load(hospital(tmp_path, text, classes=("A", "B")), 0)
    with pytest.raises(FocalError, match="same label"):
        partition(table, PartitionConfig(), ("x", "y"), 0)


def _first_pixel(images: Any, send: Any) -> None:
    send.send(images.read(3).getpixel((0, 0)))


@pytest.mark.skipif(sys.platform == "win32", reason="fork does not exist on Windows")
def test_a_zip_is_read_from_forked_processes_and_after_pickling(tmp_path: Path) -> None:
    images = load(hospital(tmp_path, GOOD, zipped=True), 0).images
    assert images.read(0).getpixel((0, 0)) == (0, 0, 255)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe()
    child = context.Process(target=_first_pixel, args=(images, send))
    child.start()
    assert receive.poll(20) and receive.recv() == (90, 0, 165)
    child.join(20)
    assert pickle.loads(pickle.dumps(images)).read(3).getpixel((0, 0)) == (90, 0, 165)


def test_scoring_needs_neither_labels_nor_a_split(tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": ("A", "B", "C"), "task": "multiclass"}
    bare = load_for_scoring(hospital(tmp_path / "a", "filename\n0.png\n1.png\n", **options))
    assert bare.labels.shape == (2, 3) and not bare.labels.any() and bare.test_rows.tolist() == [0, 1]
    one = load_for_scoring(hospital(tmp_path / "b", "filename,label\n0.png,B\n", **options))
    assert one.labels.tolist() == [[0, 1, 0]]
    own = load_for_scoring(hospital(tmp_path / "c", "filename,label,split\n0.png,B,train\n1.png,A,test\n", **options))
    assert own.test_rows.tolist() == [1]


# --------------------------------------------------------------------------- MedMNIST


def medmnist_file(path: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n, dtype=np.uint8) % 2)[:, None]
    np.savez(path, **{**arrays, **changes})
    return path


def test_medmnist_arrays_become_a_table(tmp_path: Path) -> None:
    table = load(DatasetConfig(kind="medmnist", file=medmnist_file(tmp_path / "othermnist.npz")), 0)
    assert (table.name, table.task, len(table.train_rows), len(table.test_rows)) == ("othermnist", "binary", 12, 6)
    image = table.images.read(0)
    assert image.mode == "RGB" and image.size == (28, 28)
    assert len({table.images.sha256(i) for i in range(len(table))}) == len(table)


def test_a_rebuilt_medmnist_file_is_a_warning(tmp_path: Path) -> None:
    config = DatasetConfig(kind="medmnist", file=medmnist_file(tmp_path / "pneumoniamnist.npz"))
    with pytest.warns(UserWarning, match="MedMNIST publishes 28209eda"):
        assert load(config, 0).classes == ("normal", "pneumonia")


def test_bad_medmnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, dict[str, Any]] = {
        "short.npz": {"val_labels": np.zeros((3, 1), np.uint8)},
        "shape.npz": {"val_images": np.zeros((4, 20, 20), np.uint8)},
        "object.npz": {"val_labels": np.array([[None]] * 4)},
    }
    for name, changes in cases.items():
        with pytest.raises(FocalError, match=name):
            load(DatasetConfig(kind="medmnist", file=medmnist_file(tmp_path / name, **changes)), 0)
    with pytest.raises(FocalError, match="holds 2 classes"):
        load(
            DatasetConfig(
                kind="medmnist", file=medmnist_file(tmp_path / "a.npz"), classes=("a", "b", "c"), task="binary"
            ),
            0,
        )
    (tmp_path / "noise.npz").write_bytes(b"no zip")
    with pytest.raises(FocalError, match="noise.npz: is not a MedMNIST file"):
        load(DatasetConfig(kind="medmnist", file=tmp_path / "noise.npz"), 0)
    monkeypatch.setattr(medmnist, "DOWNLOAD", "http://127.0.0.1:9/{name}.npz")
    with pytest.raises(FocalError, match="could not be downloaded") as e:
        load(DatasetConfig(kind="medmnist", file=tmp_path / "new" / "retinamnist.npz"), 0)
    assert str(tmp_path / "new") in e.value.hint and not list((tmp_path / "new").iterdir())


def test_medmnist_is_downloaded_when_the_network_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    medmnist_file(tmp_path / "served.npz")
    monkeypatch.setattr(medmnist, "DOWNLOAD", (tmp_path / "served.npz").as_uri())
    table = load(DatasetConfig(kind="medmnist", file=tmp_path / "data" / "othermnist.npz"), 0)
    assert len(table) == 22 and (tmp_path / "data" / "othermnist.npz").exists()


# --------------------------------------------------------------------------- partition


def made_table(groups: int = 60, per_group: int = 3, classes: int = 4, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    who = np.repeat([f"p{i}" for i in range(groups)], per_group)
    labels = np.eye(classes, dtype=np.uint8)[np.repeat(np.arange(groups) % classes, per_group)]
    n = len(who)
    split = np.repeat(np.where(rng.random(groups) < 0.3, "test", "train"), per_group)
    images = ArrayImages(np.zeros((n, 4, 4), np.uint8))
    sites = np.array([f"s{i % 3}" for i in range(n)])
    return Table("made", tuple("ABCD"[:classes]), "multiclass", labels, who, split, sites, who, {}, images)


@given(
    by=st.sampled_from(["patient", "dirichlet"]),
    alpha=st.sampled_from([0.01, 0.5, 100.0]),
    parties=st.integers(1, 12),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_every_row_goes_to_one_institution_and_no_patient_to_two(
    by: Any, alpha: float, parties: int, seed: int
) -> None:
    table = made_table()
    names = [f"h{i}" for i in range(parties)]
    parts = partition(table, PartitionConfig(by=by, alpha=alpha), names, seed)
    assert list(parts) == names
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(table)))
    owners = [set(table.groups[rows]) for rows in parts.values()]
    assert sum(map(len, owners)) == len(set(table.groups))
    assert all((table.split[rows] == "train").any() for rows in parts.values())
    again = partition(table, PartitionConfig(by=by, alpha=alpha), names, seed)
    assert all((parts[name] == again[name]).all() for name in names)


def test_patients_are_dealt_evenly_and_by_seed() -> None:
    table = made_table(groups=90)
    sizes = [len(rows) for rows in partition(table, PartitionConfig(), ("a", "b", "c"), 0).values()]
    assert sizes == [90, 90, 90]
    one, other = (partition(table, PartitionConfig(), ("a", "b", "c"), seed)["a"] for seed in (0, 1))
    assert set(one) != set(other)


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    table = made_table(groups=400, per_group=1)

    def spread(alpha: float) -> float:
        """Mean over classes of the largest institution's share of that class; 1/3 is even."""
        parts = partition(table, PartitionConfig(by="dirichlet", alpha=alpha), ("a", "b", "c"), 3)
        counts = np.array([table.labels[rows].sum(0) for rows in parts.values()], float)
        return float((counts.max(0) / counts.sum(0)).mean())

    # Dirichlet(1000, 1000, 1000) has a standard deviation of 0.009 a share;
    # with 100 groups a class, rounding adds 0.01.
    assert spread(1000.0) < 0.38 < 0.8 < spread(0.05)


def test_partition_by_column_goes_by_names_or_where_none_were_given_by_their_order() -> None:
    table = made_table()
    assert table.institution is not None
    named = partition(table, PartitionConfig(by="column"), ("s2", "s0", "s1"), 0)
    ordered = partition(table, PartitionConfig(by="column"), numbered(3), 0)
    assert set(table.institution[named["s2"]]) == {"s2"} == set(table.institution[ordered["hospital-c"]])
    for wrong in (("x", "y", "z"), ("s0", "s1", "S2"), ("s0", "s1", "s2", "s3"), ("s0", "s1")):
        with pytest.raises(FocalError, match="'s0', 's1', 's2', the institutions are"):
            partition(table, PartitionConfig(by="column"), wrong, 0)


def test_partitions_that_cannot_be_made() -> None:
    table = made_table(groups=5, seed=1)
    assert len(set(table.labels[table.train_rows].argmax(1))) > 1
    with pytest.raises(FocalError, match="fewer than 6 institutions"):
        partition(table, PartitionConfig(), [f"h{i}" for i in range(6)], 0)
    assert table.institution is not None
    lonely = table.take(np.flatnonzero((table.institution != "s0") | (table.split == "test")))
    with pytest.raises(FocalError, match="'s0' .* has no train row"):
        partition(lonely, PartitionConfig(by="column"), ("s0", "s1", "s2"), 0)
    bare = Table(**{**{f: getattr(table, f) for f in table.__dataclass_fields__}, "institution": None})
    with pytest.raises(FocalError, match="no 'institution' column"):
        partition(bare, PartitionConfig(by="column"), ("a", "b", "c"), 0)


# --------------------------------------------------------------------------- the shared sets


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there (FOCAL_DATA names the folder)")
    return DATA / name


def test_odir_is_read_and_dealt() -> None:
    config = DatasetConfig(
        kind="table", table=shared("odir5k.csv"), images=shared("odir5k.zip"), classes=tuple("NDGCAHMO")
    )
    table = load(config, 0)
    assert (len(table.train_rows), len(table.test_rows), table.task) == (3835, 1275, "multiclass")
    assert table.labels.sum(0).tolist() == [2296, 1293, 222, 236, 212, 99, 186, 566]
    assert table.images.read(0).size == (224, 224)
    parts = partition(table, PartitionConfig(), ("a", "b", "c"), 0)
    assert {len(np.intersect1d(rows, table.train_rows)) // 100 for rows in parts.values()} <= {12, 13}, (
        "a third of 3835 each"
    )


def test_colon_tiles_stay_in_their_cluster() -> None:
    config = DatasetConfig(
        kind="table", table=shared("lc25000_colon.csv"), images=shared("lc25000_colon.zip"), group="cluster"
    )
    table = load(config, 0)
    assert table.task == "binary" and len(table.test_rows) == 281, "val stands in for test"
    parts = partition(table, PartitionConfig(), ("a", "b", "c"), 0)
    assert sum(len(set(table.groups[rows])) for rows in parts.values()) == 123


def test_the_published_retinamnist_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = load(DatasetConfig(kind="medmnist", file=shared("retinamnist.npz")), 0)
    assert (len(table), len(table.classes), table.task, len(table.test_rows)) == (1600, 5, "multiclass", 400)
