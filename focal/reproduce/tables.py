"""``results.md``, ``results.json`` and a picture per table, from finished cells alone.

AUROC is the mean over seeds (which deal the rows anew and order the batches); its interval resamples the test patients,
the same ones for every method. Differences are tested on the first seed, in those resamples
(:func:`focal.measure.metrics.paired`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from focal.baselines.spe_fl import measure
from focal.files import private_write
from focal.measure.metrics import Floats, Paired, paired
from focal.reproduce.cases import Dealing, PaperTable
from focal.reproduce.cells import Arrays, Cell, Store, interval
from focal.reproduce.methods import (
    ALONE,
    BLIND,
    CONVERGED,
    DEALT,
    ENCRYPTED_FEDAVG,
    FEDERATED,
    HEADS,
    MODEL,
    POOLED,
    SCRATCH,
    Method,
)

PAPER_ENCRYPTED_FL, PAPER_FOCAL = 0.5202, 0.9831
"""Macro AUROC by the paper's abstract: fully encrypted federated learning, and its own method."""
POOLED_MARGIN = 0.005
"""How far below pooled plaintext the encrypted head may be."""


class Part(NamedTuple):
    """One table dealt one way: its finished cells."""

    dealing: Dealing
    seeds: list[int]
    cells: dict[Method, list[Cell]]
    """One cell of each of ``seeds``."""
    absent: dict[Method, str]
    """Methods without a cell, and why."""


class Row(NamedTuple):
    """One line of a table."""

    method: Method
    title: str
    auroc: float
    ci95: tuple[float, float]
    range: tuple[float, float]
    """Lowest and highest AUROC over seeds (and models, for a mean of several)."""
    per_class: dict[str, float]
    seconds: float
    institution: tuple[float, float]
    """Bytes up and down of an institution, mean."""
    custodian: tuple[float, float] | None
    """Likewise of a custodian, where the method has them."""
    differences: dict[str, Paired]
    """Encrypted head minus this one, first seed, by the head's name."""
    curve: list[tuple[float, float, float]]
    """(bytes, seconds, AUROC) by round, first seed; the end alone where the method shows no more."""
    facts: dict[str, float]


# --------------------------------------------------------------------------- rows


def rows(part: Part, store: Store) -> list[Row]:
    """A line for each method, the mean of its models; two, the mean and the best, where institutions stay alone."""
    arrays = {method: [store.arrays(cell) for cell in cells] for method, cells in part.cells.items()}
    heads = {
        method.name: (cells[0].models[MODEL].auroc, arrays[method][0].resamples[MODEL])
        for method, cells in part.cells.items()
        if method.name in HEADS
    }
    out = []
    for method, cells in part.cells.items():
        every = [sorted(cell.models) for cell in cells]
        if method.name != ALONE:
            out.append(_row(method, method.title, cells, arrays[method], every, heads))
            continue
        best = [[max(cell.models.items(), key=lambda item: item[1].auroc)[0]] for cell in cells]
        out.append(_row(method, f"{method.title}, mean", cells, arrays[method], every, {}))
        out.append(_row(method, f"{method.title}, best", cells, arrays[method], best, heads))
    return out


def _row(
    method: Method,
    title: str,
    cells: Sequence[Cell],
    arrays: Sequence[Arrays],
    models: Sequence[Sequence[str]],
    heads: Mapping[str, tuple[float, Floats]],
) -> Row:
    """``models``: of each cell, those whose mean is shown. ``heads``: AUROC and resamples
    of the encrypted heads, first seed."""
    chosen = [cell.models[name] for cell, names in zip(cells, models, strict=True) for name in names]
    resamples = [
        np.mean([own.resamples[name] for name in names], axis=0) for own, names in zip(arrays, models, strict=True)
    ]
    classes = [name for name in chosen[0].per_class if all(s.per_class.get(name) is not None for s in chosen)]
    up, down = (_mean(cell, way, "custodian", wanted=False) for cell, way in ((cells[0], "up"), (cells[0], "down")))
    custodians = any(name.startswith("custodian") for name in cells[0].traffic)
    first = float(np.mean([cells[0].models[name].auroc for name in models[0]]))
    differences = {
        name: paired(head - first, resampled - resamples[0])
        for name, (head, resampled) in heads.items()
        if name != method.name and (name == BLIND or method.name in FEDERATED + DEALT)
    }
    auroc, seconds = float(np.mean([s.auroc for s in chosen])), float(np.mean([cell.seconds for cell in cells]))
    curve = [(p.bytes, p.seconds, p.auroc) for p in cells[0].curve]
    return Row(
        method=method,
        title=title,
        auroc=auroc,
        ci95=interval(np.mean(resamples, axis=0)),
        range=(min(s.auroc for s in chosen), max(s.auroc for s in chosen)),
        per_class={name: float(np.mean([s.per_class[name] for s in chosen])) for name in classes},
        seconds=seconds,
        institution=(up, down),
        custodian=(_mean(cells[0], "up", "custodian"), _mean(cells[0], "down", "custodian")) if custodians else None,
        differences=differences,
        curve=curve or [(up + down, cells[0].seconds, chosen[0].auroc if len(models[0]) == 1 else auroc)],
        facts=dict(cells[0].facts),
    )


def _mean(cell: Cell, way: str, prefix: str, *, wanted: bool = True) -> float:
    """Bytes of an average party whose name begins with ``prefix``, or (not ``wanted``) of an average institution."""
    parties = [t for name, t in cell.traffic.items() if name != "server" and name.startswith(prefix) == wanted]
    return float(np.mean([getattr(t, way) for t in parties])) if parties else 0.0


# --------------------------------------------------------------------------- what was asked


def gains(made: Sequence[Row]) -> tuple[float, float] | None:
    """The blind head over the mean and over the best of the single institutions, percent."""
    blind, alone = _named(made, BLIND), [row for row in made if row.method.name == ALONE]
    if blind is None or len(alone) != 2:
        return None
    return 100 * (blind.auroc / alone[0].auroc - 1), 100 * (blind.auroc / alone[1].auroc - 1)


def _named(made: Sequence[Row], name: str) -> Row | None:
    return next((row for row in made if row.method.name == name), None)


def checks(paper: PaperTable, part: Part, made: Sequence[Row]) -> Iterator[tuple[str, bool, str]]:
    """(what must be reached, whether it is, the numbers) of one part."""
    where, skewed = f"Table {paper.number}, {part.dealing.name}", part.dealing.by.by == "dirichlet"
    for row in made:
        for name, by in row.differences.items():
            head = _named(made, name)
            assert head is not None  # differences are those of rows that are shown
            gap = head.auroc - row.auroc
            numbers = f"{gap:+.4f}, first seed {by.low:+.4f} to {by.high:+.4f}"
            if row.method.name == POOLED:
                yield (
                    f"{where}: not below pooled plaintext by more than {POOLED_MARGIN}",
                    gap >= -POOLED_MARGIN,
                    numbers,
                )
            elif row.method.name == ALONE and skewed and paper.name == "ocular":
                yield f"{where}: above every single institution", gap > 0, numbers
            elif row.method.name in FEDERATED + DEALT and skewed:
                yield f"{where}: {head.title} not below {row.title}", gap >= 0, numbers


# --------------------------------------------------------------------------- files


def write_results(
    out: Path, papers: Mapping[PaperTable, Sequence[Part]], skipped: Mapping[PaperTable, str], store: Store, made: str
) -> None:
    """Write ``results.md``, ``results.json`` and ``table-N.png`` to ``out``."""
    from focal.reproduce.figures import plot_table

    text, content, reached = [HEAD.format(made=made)], {}, []
    for paper, parts in papers.items():
        shown = [(part, rows(part, store)) for part in parts if part.cells]
        text.append(f"## Table {paper.number}. {paper.title}\n\n{paper.missing}\n")
        if shown:
            plot_table(paper, shown, out / f"table-{paper.number}.png")
            text.append(f"![AUROC, bytes and seconds](table-{paper.number}.png)\n")
        for part, lines in shown:
            text.append(_part_text(paper, part, lines))
            text += [_measures_text(part, store)] if paper.measures else []
            reached += list(checks(paper, part, lines))
        content[paper.name] = {
            "title": paper.title,
            "missing": paper.missing,
            "paper_gain_percent": paper.gain,
            "parts": {part.dealing.name: _part_json(part, lines) for part, lines in shown},
        }
    text += [f"## Table {paper.number}. {paper.title}\n\nSkipped here: {why}\n" for paper, why in skipped.items()]
    text.append(_checks_text(reached))
    whole = {
        "made": made,
        "tables": content,
        "skipped": {paper.name: why for paper, why in skipped.items()},
        "targets": [{"target": what, "reached": good, "numbers": numbers} for what, good, numbers in reached],
    }
    private_write(out / "results.md", "\n".join(text).encode())
    private_write(out / "results.json", json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n")


HEAD = """# The paper's tables on public data

`make reproduce`: {made}. Macro one-vs-rest AUROC on the test patients of all institutions together, 95 % intervals by \
patient; mean over
seeds, which deal the rows anew. "Blind head minus this" is the difference on the first seed with its interval (paired \
bootstrap by patient)
and two-sided p. Seconds are the method's own, without the features, which are the same for all; encrypted blind runs \
are processes with
real sockets; all else runs in one process, so that its seconds hold no network. MB are an institution's, sent and \
received.

Where labels are skewed, one dealing helps federated averaging and the next one hurts it: rows "mean of 5 dealings" \
deal the same patients
five times, "lowest, highest" says how far that moves it. The blind head works on sums over all patients, and no \
dealing moves it.

(*) Every test row is scored by its own institution's head. Where labels are skewed, the test rows repeat an \
institution's share of each
disease, which its head has learned: this is another task, and not comparable with one head for all.
"""


def _part_text(paper: PaperTable, part: Part, made: Sequence[Row]) -> str:
    seeds = f"{len(part.seeds)} seed{'' if len(part.seeds) == 1 else 's'}"
    lines = [
        f"### {part.dealing.title}, {seeds}\n",
        "| method | AUROC | 95 % interval | lowest, highest "
        "| blind head minus this | p | seconds | MB sent | received | who sees what |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in made:
        d = row.differences.get(BLIND)
        against = ("", "") if d is None else (f"{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})", f"{d.p:.3f}")
        interval_, spread = f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}", f"{row.range[0]:.3f} to {row.range[1]:.3f}"
        size = (
            ("", "")
            if not any(row.institution)
            else (f"{row.institution[0] / 1e6:.3g}", f"{row.institution[1] / 1e6:.3g}")
        )
        seconds = f"{row.seconds:.3g}"
        cells = (row.title, f"{row.auroc:.4f}", interval_, spread, *against, seconds, *size, row.method.sees)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{method.title}: not run ({why})." for method, why in part.absent.items()]
    lines += [f"\n{sentence}" for sentence in _sentences(paper, made)]
    return "\n".join([*lines, "", _per_class_text(made)])


def _sentences(paper: PaperTable, made: Sequence[Row]) -> Iterator[str]:
    gain, blind, federated, scratch = (
        gains(made),
        _named(made, BLIND),
        _named(made, ENCRYPTED_FEDAVG),
        _named(made, SCRATCH),
    )
    if gain is not None:
        told = (
            ""
            if paper.gain is None
            else f"; the paper states +{paper.gain} % on data of its own, and not over which of the two"
        )
        yield (
            f"Encrypted blind head over single institutions: {gain[0]:+.2f} % over their mean, "
            f"{gain[1]:+.2f} % over the best{told}."
        )
    if blind is not None and scratch is not None:
        yield (
            "Fully encrypted federated learning beside the encrypted blind head: "
            f"{scratch.auroc:.4f} and {blind.auroc:.4f} (paper: {PAPER_ENCRYPTED_FL} and {PAPER_FOCAL}). "
            "It has no pretrained network, and as many steps as fit the seconds of a blind run; "
            f"without encryption the same steps reach {scratch.facts['auroc_plaintext_twin']:.4f}."
        )
    if blind is not None and federated is not None:
        yield (
            "A much stronger opponent encrypts the updates of the same head on the same pretrained features: "
            f"{federated.auroc:.4f} ({blind.auroc - federated.auroc:+.4f} for the blind head)."
        )
    for head in (row for row in made if row.method.name in HEADS):
        yield from (_when(row, head) for row in made if row.method.name in FEDERATED)
    for row in made:
        if row.custodian is not None:
            yield (
                f"{row.title}: "
                f"a custodian sends {row.custodian[0] / 1e6:.3g} MB and receives {row.custodian[1] / 1e6:.3g} MB."
            )
    for row in made:
        if row.facts:
            yield (
                f"{row.title}: "
                + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in row.facts.items())
                + "."
            )


def _when(row: Row, head: Row) -> str:
    """What a method with rounds has cost when it first stands where an encrypted head ends."""
    paid, took, level = head.curve[-1]
    ends = f"{head.title} ends at {level:.4f} ({paid / 1e6:.3g} MB of an institution, {took:.3g} s, first seed)"
    for i, (size, seconds, auroc) in enumerate(row.curve):
        if auroc >= level:
            return f"{ends}; {row.title} reaches that after round {i + 1}: {size / 1e6:.3g} MB, {seconds:.3g} s."
    return f"{ends}; {row.title} does not reach that in {len(row.curve)} rounds: {row.curve[-1][2]:.4f}."


def _per_class_text(made: Sequence[Row]) -> str:
    classes = list(made[0].per_class)
    if len(classes) < 2:
        return ""
    lines = ["| AUROC by class | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
    for row in made:
        values = [f"{row.per_class[name]:.3f}" if name in row.per_class else "" for name in classes]
        lines.append("| " + " | ".join([row.title, *values]) + " |")
    return "\n".join([*lines, ""])


def _measures_text(part: Part, store: Store) -> str:
    """Accuracy and the like, means over seeds and over a method's models."""
    lines = ["| at threshold 0 | accuracy | precision | recall | F1 |", "|---|---|---|---|---|"]
    for method, cells in part.cells.items():
        kept = [store.arrays(cell) for cell in cells]
        found = np.mean(
            [measure(own.labels, scores, own.task) for own in kept for scores in own.scores.values()], axis=0
        )
        lines.append(f"| {method.title} | " + " | ".join(f"{value:.3f}" for value in found) + " |")
    return "\n".join([*lines, ""])


def _checks_text(reached: Sequence[tuple[str, bool, str]]) -> str:
    lines = [
        "## What the encrypted blind head must reach\n",
        "| target | reached | blind head minus the other |",
        "|---|---|---|",
    ]
    return "\n".join(
        [*lines, *(f"| {what} | {'yes' if good else '**no**'} | {numbers} |" for what, good, numbers in reached), ""]
    )


def _part_json(part: Part, made: Sequence[Row]) -> dict[str, Any]:
    gain = gains(made)
    return {
        "seeds": part.seeds,
        "gain_percent": None if gain is None else {"over_mean": gain[0], "over_best": gain[1]},
        "rows": [
            {
                "method": row.method.name,
                "title": row.title,
                "auroc": row.auroc,
                "ci95": row.ci95,
                "range": row.range,
                "per_class": row.per_class,
                "seconds": row.seconds,
                "institution_bytes": {"up": row.institution[0], "down": row.institution[1]},
                "custodian_bytes": None
                if row.custodian is None
                else {"up": row.custodian[0], "down": row.custodian[1]},
                "blind_minus_this": row.differences[BLIND]._asdict() if BLIND in row.differences else None,
                "converged_minus_this": row.differences[CONVERGED]._asdict() if CONVERGED in row.differences else None,
                "curve": [{"bytes": b, "seconds": s, "auroc": a} for b, s, a in row.curve],
                "facts": row.facts,
            }
            for row in made
        ],
        "absent": {method.name: why for method, why in part.absent.items()},
    }
