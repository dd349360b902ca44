"""A whole consortium on one machine: writes manifest and local files, starts every role as a process, follows them.

The processes are those that run on several machines, with the same files and sockets. What only this launcher can do,
because it may see every institution's folder, is the comparison: the plaintext twin, each institution alone, and all
rows pooled. Interrupted at any point, the same command goes on from the last finished step.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from focal.ckks import native
from focal.ckks.scheme import Scheme
from focal.config import LocalConfig, RunConfig
from focal.errors import FocalError
from focal.files import private_write
from focal.manifest import Manifest, Member
from focal.measure.traffic import merge, mirrored
from focal.net.identity import Identity, sign_manifest
from focal.protocols import check_complete, of
from focal.protocols.common.progress import timeline
from focal.protocols.start import LEFT_OUT
from focal.reading import read, write
from focal.runs.folder import Run
from focal.runs.provision import draft, half_of_memory, members
from focal.task import scored_classes
from focal.telling import Event, Progress, Say, Show

MEASURE_SECONDS = 3.0
"""Between two looks at the processes' memory, at least: the kernel walks all their pages for each."""
MEASURE_SHARE = 0.01
"""Of the time, for such looks."""


def open_run(config: RunConfig, runs: Path) -> Run:
    """The unfinished run of this configuration, or a new folder: ``runs/NAME``, ``runs/NAME-2``, ...

    Raises :class:`FocalError` when an unfinished run of that name belongs to another configuration,
    :class:`ConfigError` when it is of an old version.
    """
    for i in range(1, 10_000):
        folder = runs / (config.name if i == 1 else f"{config.name}-{i}")
        run = Run(folder, config)
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            write(config, folder / "config.json")
            return run
        if run.finished:
            continue
        begun, stored = run.manifest_file.exists(), folder / "config.json"
        if begun:
            _ = run.manifest  # of an old version: say so, whatever else differs
        if begun and stored.exists() and read(RunConfig, stored) != config:
            raise FocalError(
                f"{folder} holds an unfinished run of another configuration",
                hint="finish it with its own configuration, delete the folder, "
                f"or choose another name in {config.name}.yaml",
            )
        write(config, stored)
        return run
    raise FocalError(f"{runs}: too many runs named '{config.name}'", hint="delete old ones")


def newest_finished(config: RunConfig, runs: Path) -> Path | None:
    """The newest run of exactly this configuration that has a released model."""
    folders = [path.parent for path in runs.glob(f"{config.name}*/summary.json")] if runs.is_dir() else []
    own = [f for f in folders if (f / "model.pt").exists() and read(RunConfig, f / "config.json") == config]
    return max(own, key=lambda f: (f / "summary.json").stat().st_mtime, default=None)


# --------------------------------------------------------------------------- setting up


def prepare(run: Run, say: Say, show: Show = lambda event: None) -> Manifest:
    """Manifest and local files, written once; a second call reads them. ``say`` gets what was found and the planner's
    choice, ``show`` how far looking at the images is."""
    if not run.manifest_file.exists():
        manifest = _draft(run, say, show)
        for identity in _identities(run).values():
            manifest = sign_manifest(manifest, identity)
        write(manifest, run.manifest_file)
    for member in run.manifest.members:  # a folder that was moved goes on where it lies now
        path = run.party(member.name) / "local.json"
        if read(LocalConfig, path).state != run.party(member.name).absolute():
            write(_local_file(run, member.name, member.role), path)
    return run.manifest


def _identities(run: Run) -> dict[str, Identity]:
    consortium = run.config.consortium
    out = {}
    for name in ("server", *consortium.custodian_names(), *consortium.site_names()):
        path = run.party(name) / "identity.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            Identity.new(name).save(path)
        out[name] = Identity.load(path)
    return out


def _draft(run: Run, say: Say, show: Show) -> Manifest:
    from focal.data import load
    from focal.data.examine import examine
    from focal.data.partition import partition
    from focal.data.synthetic import SyntheticImages
    from focal.segments.lower import build_lower, input_text
    from focal.training.features import Learner, accelerator

    def progress(phase: str) -> Progress:
        return lambda done, total: show(
            {"event": "progress", "party": "all", "phase": phase, "done": done, "total": total}
        )

    config = run.config
    consortium = config.consortium
    accelerator(config.device)
    table = load(config.dataset, config.seed).check_scorable()
    names = consortium.site_names()
    segment, source = build_lower(config.lower, config.lower.weights)
    spec, cache = segment.spec, run.folder.absolute().parent / "cache"
    # what is decoded here needs not be decoded again; generated images each institution makes for itself
    generated = isinstance(table.images, SyntheticImages)
    learned = np.flatnonzero(np.isin(table.split, () if generated else ("train", "test")))
    with Learner(segment, table, learned, device=config.device, cache=cache, progress=progress("features")) as learner:
        found = examine(table, cache, progress("data"), None if generated else learner)
        usable = found.usable(config.dataset.bad_images)
        parts = {
            name: at[np.isin(at, usable)]
            for name, at in partition(table, consortium.partition, names, config.seed).items()
        }
        rows = {name: int((table.split[parts[name]] == "train").sum()) for name in names}
        dealt = ", ".join(f"{n} {r}" for n, r in rows.items())
        patients = len(set(table.groups[usable].tolist()))
        say(
            f"data:   {len(usable)} images of {patients} patients or groups, {sum(rows.values())} training rows "
            f"({dealt}), {len(table.classes)} classes"
        )
        for note in found.warnings():
            say(f"note:   {note}")
        if found.problems:
            say(f"note:   {len(found.problems)} images cannot be read and are left out (bad_images: skip)")
        say(f"lower:  {spec}, {spec.dim} features, {source}")
        say(f"input:  {input_text(config.lower, spec)}")
        say(f"native: {native.description}")

        everybody = members(consortium, _identities(run), rows, f"tcp://127.0.0.1:{_free_port()}")
        manifest = draft(config, everybody, table.classes, table.task, spec)
        check_complete(manifest)
        computing = 1 + sum(m.verify == "lockstep" for m in manifest.custodians)
        plan = of(config).plan
        manifest, cost = plan.settled(manifest, plan.wish(config), half_of_memory(), computing)
        say(cost)
        learner.finish()
        private_write(run.folder / "learned", str(_kept(run, "learned") + learner.seconds).encode())
    for name, at in parts.items():
        private_write(run.party(name) / "rows.txt", "".join(f"{i}\n" for i in at).encode())
    for member in manifest.members:
        write(_local_file(run, member.name, member.role), run.party(member.name) / "local.json")
    return manifest


def _local_file(run: Run, name: str, role: str) -> LocalConfig:
    config, folder = run.config, run.party(name).absolute()
    cores = os.cpu_count() or 1
    if role != "institution":
        return LocalConfig(name=name, keys=folder / "identity.json", state=folder, threads=cores)
    paths = {
        k: Path(v).absolute() for k in ("table", "images", "file") if (v := getattr(config.dataset, k)) is not None
    }
    from focal.segments.lower import weights_source

    return LocalConfig(
        name=name,
        keys=folder / "identity.json",
        state=folder,
        data=config.dataset.model_copy(update={**paths, "rows": folder / "rows.txt"}),
        weights=weights_source(config.lower),
        device=config.device,
        threads=max(1, cores // len(config.consortium.site_names())),
        stay=name in config.consortium.clinics,
        cache=run.folder.absolute().parent / "cache",
        seed=config.seed,
        **of(config).plan.own_local_fields(config),
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --------------------------------------------------------------------------- running


def program(module: str) -> list[str]:
    """The command that runs ``module`` as ``python -m`` does, without the working directory among the places where
    modules are looked for: a module of that folder with a name of the standard library's would be run by every party,
    key holders included."""
    here = "import sys; sys.path[:] = [place for place in sys.path if place]"
    return [sys.executable, "-c", f"{here}; import runpy; runpy.run_module({module!r}, None, '__main__', True)"]


class Processes:
    """Every party of a run as a child process; events arrive on one queue. Leaving the ``with`` ends them all.

    ``module`` is what runs a role, and ``roles`` are started: another module stands in for focal in comparisons
    (focal.protocols.interactive.plain).
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        module: str = "focal",
        roles: tuple[str, ...] = ("server", "custodian", "institution"),
    ) -> None:
        self.run, self.manifest, self.module, self.roles = run, manifest, module, roles
        self.events: queue.Queue[Event] = queue.Queue()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.errors: dict[str, str] = {}
        self._measure_next = 0.0
        self.peak_memory = 0
        """Largest sum of the processes' proportional set sizes seen, bytes."""

    def __enter__(self) -> Processes:
        for member in self.manifest.members:
            if member.role in self.roles:
                self._start(member.name, member.role)
        return self

    def _start(self, name: str, role: str) -> None:
        folder = self.run.party(name)
        command = [
            *program(self.module),
            role,
            "--manifest",
            str(self.run.manifest_file),
            "--local",
            str(folder / "local.json"),
            "--events",
        ]
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # An own session: Ctrl-C reaches the launcher only, which then ends them in order.
            # The pipe on standard input tells a child that the launcher is gone, however it went.
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(log)
        self.children[name] = child
        threading.Thread(target=self._read, args=(name, child), daemon=True).start()

    def _read(self, name: str, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                self.events.put(json.loads(line))
        self.events.put({"party": name, "event": "exit", "code": child.wait()})

    def follow(self, show: Show) -> None:
        """Show events until every party is done. Raises :class:`FocalError` naming the party that failed."""
        running = set(self.children)
        while running:
            event = self._next()
            if time.monotonic() > self._measure_next:
                self._measure()
            if event is None:
                continue
            if event["event"] == "error":
                self.errors[event["party"]] = event["text"]
            elif event["event"] == "exit":
                running.discard(event["party"])
                if event["code"] not in (0, LEFT_OUT):  # the others go on without one that was left out
                    self._failed(event["party"], event["code"])
            show(event)

    def _next(self) -> Event | None:
        with contextlib.suppress(queue.Empty):
            return self.events.get(timeout=0.5)
        return None

    def _failed(self, name: str, code: int) -> None:
        # The others' errors may name the cause better than the first one to stop: it may only have heard of it.
        started = time.monotonic()
        while time.monotonic() - started < (10.0 if self.errors and not self._own_errors() else 1.0):
            event = self._next()
            if event is not None and event["event"] == "error":
                self.errors[event["party"]] = event["text"]
        causes = self._own_errors() or list(self.errors.items())
        if causes:
            raise PartyFailed(*causes[0])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "give the same command again: the run continues from the last finished step"
        raise FocalError(f"'{name}' {how} (its log: {self.run.party(name) / 'log.txt'})", hint=hint)

    def _own_errors(self) -> list[tuple[str, str]]:
        """Errors of parties that found them, not of those that were told that another one ended the run."""
        return [(name, text) for name, text in self.errors.items() if "ended the run:" not in text]

    def _measure(self) -> None:
        start, total = time.monotonic(), 0
        for child in self.children.values():
            with contextlib.suppress(OSError, StopIteration, ValueError), open(f"/proc/{child.pid}/smaps_rollup") as f:
                total += 1024 * int(next(line for line in f if line.startswith("Pss:")).split()[1])
        self.peak_memory = max(self.peak_memory, total)
        end = time.monotonic()
        self._measure_next = end + max(MEASURE_SECONDS, (end - start) / MEASURE_SHARE)

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
                continue
            child.kill()
            child.wait()


class PartyFailed(FocalError):
    """A party stopped with an error of its own, which is the message."""

    def __init__(self, party: str, text: str) -> None:
        message, _, hint = text.partition("\n  -> ")
        super().__init__(f"{party}: {message}" if party not in message else message, hint=hint)


def train(run: Run, show: Show, say: Say) -> Path:
    """Run (or continue) the whole consortium; returns the folder with the result."""
    started = time.monotonic()
    before = _kept(run, "spent")
    manifest = prepare(run, say, show)
    try:
        with Processes(run, manifest) as processes:
            processes.follow(show)
            memory = processes.peak_memory
    except PartyFailed as e:
        if any((run.party(m.name) / "aborted").exists() for m in manifest.members):
            private_write(
                run.folder / "failed", f"{e}\n".encode()
            )  # its keys are used up: the same command starts a new run
        raise
    finally:
        private_write(run.folder / "spent", str(before + time.monotonic() - started).encode())
    say("scoring: the plaintext twin, every institution alone, all rows pooled ...")
    finish(run, manifest, memory, say)
    return run.folder


def _kept(run: Run, file: str) -> float:
    """Seconds so far: ``spent`` by the whole run, ``learned`` by the launcher on features."""
    path = run.folder / file
    return float(path.read_text()) if path.exists() else 0.0


# --------------------------------------------------------------------------- the result


def finish(run: Run, manifest: Manifest, memory: int, say: Say) -> None:
    """Compare with the twin and the baselines, write summary, plots and model."""
    from focal.measure.summary import build_summary, write_summary
    from focal.reporting import plots
    from focal.reporting.pooled import plot_pooled

    names = [m.name for m in manifest.institutions if (run.party(m.name) / "model.pt").exists()]  # who was not left out
    scores, own = of(manifest).compare(run, manifest, say)
    facts = of(manifest).plan.facts(manifest, Scheme(manifest.ckks, "summary"))
    facts["left_out"] = own.pop("left_out", None)
    facts["params"] |= own
    facts["params"]["peak_memory_mb"] = round(memory / 1e6)
    if (compute := _verifier_compute(run, manifest)) is not None:
        facts["params"]["verifier_compute"] = round(compute, 2)
    traffic = _traffic(run, manifest)
    write_summary(
        build_summary(
            protocol=manifest.protocol,
            dataset=manifest.dataset,
            auroc=scores.auroc,
            auroc_ci95=scores.auroc_ci95,
            encrypted_minus=scores.encrypted_minus,
            max_abs_weight_error=scores.max_abs_weight_error,
            seconds={**_seconds(run, manifest), "total": _kept(run, "spent")},
            traffic=traffic,
            **facts,
        ),
        run.folder,
    )
    for file in ("model.pt", "velocity.npy"):  # the second one is an interactive run's
        if (run.party(names[0]) / file).exists():
            shutil.copy2(run.party(names[0]) / file, run.folder / file)
    plots.plot_roc(scores.labels, scores.encrypted, manifest.classes, manifest.task, run.folder / "roc.png")
    plots.plot_per_class(
        scored_classes(manifest.classes, manifest.task), scores.per_class, run.folder / "per_class.png"
    )
    spans = [
        (e["party"], e["phase"], e["start"], e["start"] + e["seconds"]) for m in manifest.members for e in _work(run, m)
    ]
    begin = min(start for _, _, start, _ in spans)
    spans = [(party, phase, start - begin, end - begin) for party, phase, start, end in spans]
    plots.plot_timeline(spans, traffic, run.folder / "timeline.png")
    for name in names:
        plot_pooled(run.party(name))


def _verifier_compute(run: Run, manifest: Manifest) -> float | None:
    """CPU seconds in training of the costliest verifying custodian, by those of the server;
    None without one, or after a kill."""

    def spent(name: str) -> float:
        return sum(e.get("cpu", 0.0) for e in timeline(run.party(name)) if e["phase"] == "train")

    verifiers = [spent(m.name) for m in manifest.custodians if m.verify == "lockstep"]
    server = spent(manifest.server.name)
    return max(verifiers) / server if verifiers and min(*verifiers, server) > 0 else None


def _work(run: Run, member: Member) -> list[Event]:
    """A party's phases in which it did something, not those in which it waited for others."""
    idle = {"gather", "train"} if member.role == "institution" else {"gather"}
    return [e for e in timeline(run.party(member.name)) if e["phase"] not in idle]


def _traffic(run: Run, manifest: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """Bytes by phase of every party, as each counted its own; the server's are everybody's together."""
    out = {m.name: journal_traffic(run.party(m.name)) for m in manifest.members if m.role != "server"}
    return {manifest.server.name: merge(*map(mirrored, out.values())), **out}


def journal_traffic(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes by phase as a party counted them."""
    from focal.net.store import Journal

    journal = Journal(folder / "journal.sqlite")
    try:
        return dict(json.loads(journal.read("traffic") or b"{}"))
    finally:
        journal.close()


def _seconds(run: Run, manifest: Manifest) -> dict[str, float]:
    """The server's clock for what happens together, the slowest institution's for what each does for itself; features
    are the launcher's too."""
    seconds = dict.fromkeys(("keys", "features", "upload", "train", "release"), 0.0)
    for event in timeline(run.party(manifest.server.name)):
        if event["phase"] in seconds:
            seconds[event["phase"]] += event["seconds"]
    for phase in of(manifest).plan.OWN_PHASES:
        for member in manifest.institutions:
            spent = sum(e["seconds"] for e in timeline(run.party(member.name)) if e["phase"] == phase)
            seconds[phase] = max(seconds[phase], spent)
    seconds["features"] += _kept(run, "learned")
    return seconds


def clean(run: Path, cache: bool, force: bool) -> list[Path]:
    """Delete what is private and no longer needed: parties' folders, cached features, pictures of patients.
    Returns what was removed."""
    if not (run / "manifest.json").exists():
        raise FocalError(f"{run} is no run's folder", hint="name a folder below runs/")
    if not force and not (run / "summary.json").exists() and not (run / "failed").exists():
        raise FocalError(
            f"{run} is not finished", hint="finish it with its own configuration, or give it up with --force"
        )
    found = [run / name for name in ("parties", "cache", "explanations", "twin", "fedavg")]
    found += [run.parent / "cache"] if cache else []
    removed = [path for path in found if path.exists()]
    for path in removed:
        shutil.rmtree(path)
    page = run / "report.html"
    if page.exists() and '<meta name="focal" content="shows patients\' images">' in page.read_text():
        page.unlink()
        removed.append(page)
    return removed
