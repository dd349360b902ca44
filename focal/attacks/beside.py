"""Accuracy, cost and leak of every method in one table and one figure: ``focal reproduce`` beside ``focal attack``.

::

    OUT/results.json  AUROC, bytes, seconds of a table's methods --+
                                                                   +--> OUT/leaks.md, OUT/leaks.png
    OUT/attacks/leaks.json  what attacks on them recovered --------+
"""

from __future__ import annotations

import json
from pathlib import Path

from focal.files import private_write
from focal.measure.leaks import FOLDER, Leak, read_leaks
from focal.reporting.leaks import Method, plot_methods

TABLE = "ocular"
"""The paper table that attacks are made for: fundus images."""


def write_beside(out: Path) -> Path | None:
    """Join what is in ``out``; returns the page, or None where one of the two studies is missing."""
    found = read_leaks(out / FOLDER)
    if found is None or not (out / "results.json").exists():
        return None
    parts = json.loads((out / "results.json").read_text())["tables"].get(TABLE, {}).get("parts", {})
    if not parts:
        return None
    rows = next(iter(parts.values()))["rows"]
    methods, lines = [], []
    for row in rows:
        own = [leak for leak in found.leaks if leak.reproduced == row["method"] and leak.images is not None]
        if not own:
            continue
        worst = max(own, key=_share)
        assert worst.images is not None
        size = row["institution_bytes"]["up"] + row["institution_bytes"]["down"]
        methods.append(Method(row["title"], row["auroc"], size, _share(worst), worst.images.high))
        cells = (row["title"], f"{row['auroc']:.4f}", f"{size / 1e6:.3g}", f"{row['seconds']:.3g}", worst.images.text)
        lines.append("| " + " | ".join([*cells, f"{worst.mean.k if worst.mean else 0}", worst.title]) + " |")
    if not methods:
        return None
    plot_methods(methods, out / "leaks.png")
    head = "| method | AUROC | MB of an institution | seconds | images that leak | mean image | strongest attack |"
    where = f"AUROC, bytes and seconds: ODIR-5K, as in results.md. Leaks: attacks on {found.data} (`focal attack`).\n"
    text = [
        "# Accuracy, cost and leak\n",
        where,
        "![AUROC against leak](leaks.png)\n",
        head,
        "|---" * 7 + "|",
        *lines,
        "",
    ]
    private_write(out / "leaks.md", "\n".join(text).encode())
    return out / "leaks.md"


def _share(leak: Leak) -> float:
    return 0.0 if leak.images is None else leak.images.k / leak.images.n
