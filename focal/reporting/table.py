"""The result in the terminal: what each model reached, what the run cost, what was opened and who checked.

::

    Macro AUROC on the test patients
      hospital-a alone      0.741   0.71 to 0.77
      pooled plaintext      0.765   ...             what one machine with all data reaches
      plaintext twin        0.766   ...             the same training, not encrypted
      encrypted             0.766   ...             <- this run
    Seconds ... / Bytes ... / Release ... / Verification ...
"""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from focal.measure.summary import Interval, Summary
from focal.measure.traffic import human_bytes
from focal.protocols import of

PHASE_NAMES = {"keys": "keys", "features": "features", "upload": "upload", "train": "training", "release": "release"}


def print_results(summary: Summary, console: Console | None = None) -> None:
    """Print :func:`results_table` to ``console`` (default: standard output)."""
    (console or Console()).print(results_table(summary))


def results_table(summary: Summary) -> Group:
    """Everything a person wants to know of a finished run, as one rich renderable."""
    parts: list[RenderableType] = [_models(summary), Text(), _cost(summary), Text()]
    parts += [Text(f"Left out: {line}.", style="yellow") for line in summary.left_out_lines]
    parts += [_release(summary), _verification(summary)]
    return Group(*parts)


def _models(summary: Summary) -> Table:
    # names as Text: they are other people's, and rich takes brackets in strings for its own
    title = Text(f"Macro AUROC on the test rows of {summary.dataset}", style="table.title")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("AUROC", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("note")
    for model, score, interval, note, style in model_rows(summary):
        between = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
        table.add_row(Text(model), f"{score:.3f}", between, Text(note), style=style)
    return table


def model_rows(summary: Summary) -> Iterable[tuple[str, float, Interval | None, str, str]]:
    """(model, AUROC, interval, note, style), the encrypted model last."""
    auroc, interval = summary.auroc, summary.auroc_ci95
    institutions = auroc.institutions or {}
    for name, score in institutions.items():
        yield (
            f"{name} alone",
            score,
            (interval.institutions or {}).get(name),
            "logistic regression, its own training rows",
            "",
        )
    if auroc.pooled_plaintext is not None:
        yield (
            "pooled plaintext",
            auroc.pooled_plaintext,
            interval.pooled_plaintext,
            "logistic regression, all training rows",
            "",
        )
    if auroc.plaintext_twin is not None:
        error = "" if summary.max_abs_weight_error is None else f", weights within {summary.max_abs_weight_error:.1e}"
        yield (
            "plaintext twin",
            auroc.plaintext_twin,
            interval.plaintext_twin,
            f"the same training, not encrypted{error}",
            "",
        )
    for name, score in (auroc.others or {}).items():
        what = "the whole network, averaged as often, not encrypted" if name == "fedavg" else "the model of that run"
        yield name, score, (interval.others or {}).get(name), what + _minus(summary, name), ""
    note = f"{summary.steps} steps on ciphertexts"
    if institutions:
        beaten = sum(auroc.encrypted > score for score in institutions.values())
        note += f"; above {beaten} of {len(institutions)} institutions alone"
    yield "encrypted", auroc.encrypted, interval.encrypted, note, "bold"


def _minus(summary: Summary, name: str) -> str:
    """How far the encrypted model is from another one, in a note about that."""
    if (found := (summary.encrypted_minus or {}).get(name)) is None:
        return ""
    return f"; encrypted {found.difference:+.3f}, {found.ci95[0]:+.3f} to {found.ci95[1]:+.3f}"


def _cost(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    seconds = summary.seconds.model_dump()
    phases = ", ".join(f"{label} {seconds[phase]:.1f}" for phase, label in PHASE_NAMES.items())
    table.add_row("Seconds", f"{seconds['total']:.1f} in all: {phases}")
    for i, (party, traffic) in enumerate(summary.bytes.items()):
        table.add_row(
            "Bytes" if i == 0 else "", Text(f"{party}: {human_bytes(traffic.up)} up, {human_bytes(traffic.down)} down")
        )
    return table


def _release(summary: Summary) -> Text:
    release = summary.release
    what = "" if of(summary).joint else ", the final weights and nothing else"
    return Text(
        f"Release: {release.openings} ciphertext{'' if release.openings == 1 else 's'} opened{what}; "
        f"key shares hidden by {release.flooding_bits:.0f}-bit noise, "
        f"weights good to {release.precision_bits:.1f} bits; {summary.security_bits:.0f}-bit security."
    )


def _verification(summary: Summary) -> RenderableType:
    if summary.unverified:
        return Panel(
            "No custodian re-ran the server's steps (verify: off everywhere). "
            "The server is TRUSTED to follow the protocol: one that deviates can learn the key, "
            "and with it every patient's features and labels. Set verify: lockstep for at least one custodian.",
            title="WARNING: nobody verifies",
            style="bold red",
        )
    checkers = [name for name, policy in summary.verify.items() if policy == "lockstep"]
    told = f"Verification: {', '.join(checkers)} re-ran every step and answered only for identical ciphertexts."
    if (guard := summary.guard) is not None:
        told += (
            f"\nGuard: {guard.name} answered every refresh last, only below 2^{guard.limit_bits:.0f}; "
            f"its {guard.items} answers lie within 2^{guard.leak_bits:.0f} of what is made without its share."
        )
    return Text(told)
