"""The ``focal`` command: what a person types, and what they see while it runs."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

import focal
from focal import api, configs
from focal.config import LayoutConfig, LayoutSpec, LocalConfig, Manifest, Name, RunConfig, printable, read, write
from focal.errors import FocalError
from focal.extras import require

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Hospitals train one model on encrypted activations."
)
keys_app = typer.Typer(no_args_is_help=True, help="This party's identity.")
manifest_app = typer.Typer(no_args_is_help=True, help="What a consortium agrees on and signs.")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements on this machine.")
app.add_typer(keys_app, name="keys")
app.add_typer(manifest_app, name="manifest")
app.add_typer(bench_app, name="bench")
console = Console(highlight=False)

ConfigOption = Annotated[
    str, typer.Option(help="A run configuration: one that comes with focal (demo, retina, ...) or a file.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
ManifestOption = Annotated[Path, typer.Option("--manifest", help="The signed manifest.")]
LocalOption = Annotated[Path, typer.Option("--local", help="This party's local file; it stays at home.")]
EventsOption = Annotated[bool, typer.Option("--events", hidden=True)]
WaitOption = Annotated[float, typer.Option("--wait", help="Seconds to look for the server.")]


def _say(text: str) -> None:
    """Print as it is: no markup, no control characters, and long lines are the terminal's to wrap."""
    console.print(printable(text, keep="\n\t"), markup=False, soft_wrap=True)


def main() -> NoReturn:
    """Entry point. Errors that a person can act on are one or two lines, never a traceback."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except FocalError as e:
        print(f"error: {printable(str(e), keep=chr(10))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; give the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _version(asked: bool) -> None:
    if asked:
        print(f"focal {focal.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


# --------------------------------------------------------------------------- local runs


@app.command()
def demo(runs: RunsOption = Path("runs")) -> None:
    """The main job on generated images: nothing to download, three institutions, a few minutes."""
    _train("demo", runs)


@app.command()
def train(config: ConfigOption, runs: RunsOption = Path("runs")) -> None:
    """Start (or continue) a whole consortium on this machine and follow it to its result."""
    _train(config, runs)


def _train(config: str | Path, runs: Path) -> None:
    try:
        with Board() as board:
            api.train(config, runs=runs, say=board.line, show=board.show, done=board.done)
    except KeyboardInterrupt:  # typer would end without a word
        print("interrupted; give the same command again to continue", file=sys.stderr)
        sys.exit(130)


class Board:
    """The picture of a running consortium: one bar per stage, and lines worth reading above them."""

    STAGES = {
        "features": "features",
        "keys": "key ceremony",
        "moments": "secure sum",
        "upload": "encrypt + upload",
        "train": "encrypted training",
        "release": "release",
    }

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.state: dict[str, dict[str, float]] = {}
        self.phase_of: dict[str, str] = {}

    def _end(self) -> None:
        if self.tasks:
            self.bars.stop()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def done(self, run: api.Run) -> None:
        """The result of a run that has ended. Another one may follow, with bars of its own."""
        from focal.report.table import print_results

        self._end()
        print_results(run.summary, console)
        _say(f"result: {run.folder}/summary.json, model.pt, roc.png, per_class.png, timeline.png")
        self._begin()

    def line(self, text: str) -> None:
        self.bars.console.print(printable(text, keep="\n"), markup=False, soft_wrap=True)

    def show(self, event: dict[str, Any]) -> None:
        """Draw one event of one party."""
        kind, phase, party = event["event"], event.get("phase", ""), event["party"]
        if kind in ("say", "warn"):
            line = Text.assemble(("warning: ", "yellow"), event["text"]) if kind == "warn" else Text(event["text"])
            self.bars.console.print(line, soft_wrap=True)
        elif kind == "phase" and phase in self.STAGES:
            self._set(phase, party, 0.0)
            self.phase_of[party] = phase
        elif kind == "progress" and phase in self.STAGES:
            self._set(phase, party, event["done"] / max(event["total"], 1e-9))
        elif kind == "waiting" and event["names"]:
            stage = self.phase_of.get(party)
            if stage in self.tasks:
                self.bars.update(self.tasks[stage], note=f"{party} waits for {', '.join(event['names'][:3])}")
        if kind == "exit":
            for shares in self.state.values():
                if party in shares:
                    shares[party] = 1.0
            self._redraw()

    def _set(self, phase: str, party: str, share: float) -> None:
        if phase not in self.tasks:
            for earlier in self.tasks:  # a stage that begins ends the ones before it
                if list(self.STAGES).index(earlier) < list(self.STAGES).index(phase) and all(
                    v >= 1.0 for v in self.state[earlier].values()
                ):
                    self.bars.update(self.tasks[earlier], completed=1.0)
            self.bars.start()  # with the first stage; nothing happens for the others
            self.tasks[phase] = self.bars.add_task(self.STAGES[phase], total=1.0, note="")
        shares = self.state.setdefault(phase, {})
        shares[party] = max(share, shares.get(party, 0.0))
        before = self.phase_of.get(party)
        if before is not None and before != phase and before in self.state:
            self.state[before][party] = 1.0
        self.phase_of[party] = phase
        self._redraw()

    def _redraw(self) -> None:
        for phase, task in self.tasks.items():
            shares = self.state[phase]
            self.bars.update(
                task,
                completed=sum(shares.values()) / len(shares),
            )


# --------------------------------------------------------------------------- a finished run


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    table: Annotated[Path, typer.Option(help="CSV with filename,label[,patient][,split].")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    labels: Annotated[
        Path | None, typer.Option(help="YAML 'labels: {theirs: ours}' that translates the table's labels; null leaves out.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Also subgroups: a column (sex, institution) or bands of one (age:50,65). Repeatable.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    group: Annotated[str, typer.Option(help="Column whose rows belong together.")] = "patient",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    pool: Annotated[
        Path | None, typer.Option(help="Folder with all sites' NAME.public.json: one ROC curve over all, and no site's scores shown.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="--pool: this site's NAME.key.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as the last line, as JSON.")] = False,
) -> None:
    """Score a finished run on new data: another hospital's, by site and by subgroup."""
    with _bar("features") as progress:
        result = api.evaluate(
            run,
            table,
            images,
            labels=labels,
            by=by or (),
            weights=weights,
            group=group,
            device=device,
            pool=pool,
            key=key,
            progress=progress,
        )
    low, high = result["auroc_ci95"]
    _say(f"{result['dataset']}: macro AUROC {result['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f}) on {result['n']} images")
    if result["left_out"]:
        _say(f"  {result['left_out']} rows of the table are left out: their labels have no counterpart")
    for name, value in result["auroc_per_class"].items():
        _say(f"  {name:<12} {'not scorable' if value is None else f'{value:.3f}'}")
    for name, measure in result["measures"].items():
        if name != "auroc":
            low, high = measure["ci95"]
            _say(f"{name.replace('_', ' ')}: {measure['macro']:.3f} ({low:.3f} to {high:.3f})")
    for split, parts in result["subgroups"].items():
        _say(f"AUROC by {split}")
        for name, part in parts.items():
            _say(f"  {name:<16} {_subgroup(part)}")
    if pool is not None:
        _say(_pooled(result["pooled"], pool))
    if as_json:
        print(json.dumps(result))


def _pooled(found: dict[str, Any], folder: Path) -> str:
    head = f"exchange {found['fingerprint']} of {', '.join(found['sites'])}: compare these digits with the other sites by telephone"
    if found["missing"]:
        waiting = ", ".join(f"{name}.counts" for name in found["missing"])
        return f"{head}\n  give your .counts file in {folder} to the others; not here yet: {waiting}. Then the same command again"
    if found["auroc"] is None:
        return f"{head}\n  over all sites every class has one outcome only, so there is no ROC curve"
    auroc, picture = f"{found['auroc']:.4f} +- {found['bound']:.4f}", folder / "pooled_roc.png"
    return f"{head}\n  macro AUROC over all {len(found['sites'])} sites: {auroc} ({picture})"


def _subgroup(part: dict[str, Any]) -> str:
    size = f"{part['n']} images of {part['patients']} patients"
    if part["auroc"] is None:
        return f"not scorable: every class has one outcome only ({size})"
    interval = "no interval" if part["auroc_ci95"] is None else "{:.3f} to {:.3f}".format(*part["auroc_ci95"])
    without = [name for name, value in part["auroc_per_class"].items() if value is None]
    return f"{part['auroc']:.3f} ({interval}) on {size}" + (f", without {', '.join(without)}" if without else "")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    out: Annotated[Path, typer.Option(help="CSV to write (0600).")] = Path("predictions.csv"),
    table: Annotated[Path | None, typer.Option(help="CSV whose filename column chooses the images.")] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write the probability of every class for every image."""
    with _bar("features") as progress:
        found = api.predict(run, images, out, table=table, weights=weights, device=device, progress=progress)
    _say(f"{len(found.filenames)} images: {out}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    images: Annotated[Path, typer.Option(help="Folder or zip with the images.")],
    label: Annotated[str | None, typer.Option("--class", help="The class to explain; default: each image's most probable one.")] = None,
    table: Annotated[Path | None, typer.Option(help="CSV whose filename column chooses the images.")] = None,
    weights: Annotated[str | None, typer.Option(help="Lower segment's weights, when they moved.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 32,
    check: Annotated[bool, typer.Option(help="Compare the maps with those of a randomised model.")] = True,
) -> None:
    """Draw where the model looks (RUN/explanations), and check that this depends on what it has learned."""
    with _bar("explanations") as progress:
        found = api.explain(
            run, images, label=label, table=table, weights=weights, limit=limit, check=check, progress=progress
        )
    _say(f"{found.folder}: overlays, index.json; they are patients' images")
    for step in found.steps:
        correlation = "-" if step.correlation is None else f"{step.correlation:.2f}"
        _say(f"  random down to {step.randomised:<16} rank correlation {correlation}")
    if found.verdict is not None:
        _say(found.verdict.text)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or an institution's state folder.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (0600); default: RUN/report.html.")] = None,
    images: Annotated[bool, typer.Option(help="Show explanations on patients' images.")] = True,
) -> None:
    """Write one self-contained HTML page about a run."""
    path = api.report(run, out, images=images, say=_say)
    _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB" + ("; it may show patients' images (--no-images leaves them out)" if images else ""))


class _bar:
    """A progress bar as a ``progress(done, total)`` function."""

    def __init__(self, name: str) -> None:
        self.bars = Progress(
            TextColumn(name), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )

    def __enter__(self) -> Callable[[int, int], None]:
        self.bars.start()
        task = self.bars.add_task("")
        return lambda done, total: self.bars.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bars.stop()


@app.command()
def reproduce(
    budget: Annotated[float, typer.Option(min=0, help="Minutes; they decide how many seeds each table gets.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and pictures; the same one continues.")] = Path("experiments/results"),
) -> None:
    """The paper's tables on public data: every method beside the encrypted blind head."""
    require("study", "focal reproduce")
    from focal.reproduce.study import reproduce as study

    try:
        study(budget, out, configs.FOLDER, _say)
    except KeyboardInterrupt:  # typer would end without a word
        print("interrupted; give the same command again to continue", file=sys.stderr)
        sys.exit(130)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or the manifest with --from.")],
    store: Annotated[Path | None, typer.Option("--from", help="The server's state folder, where it lies elsewhere.")] = None,
    threads: Annotated[int | None, typer.Option(help="Worker threads; default: all processors.")] = None,
) -> None:
    """Run a finished run again from its signed messages and ciphertexts and compare every digest."""
    started = time.monotonic()
    chain = api.audit(run, store=store, threads=threads, say=_say)
    _say(f"every digest is the same; chain {chain}, {time.monotonic() - started:.0f} s")


@app.command()
def clean(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    cache: Annotated[bool, typer.Option("--cache", help="Also the features that runs share (RUNS/cache).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also a run that is not finished; it can then not go on.")] = False,
) -> None:
    """Remove features, keys, ciphertexts and per-patient rows of a run; summary, plots and model stay."""
    from focal.runs.local import clean as clean_run

    for path in clean_run(run, cache, force):
        _say(f"removed {path}")


@app.command()
def approve(run: Annotated[Path, typer.Argument(help="A local run's folder, or one custodian's state folder.")]) -> None:
    """Let the custodians (of a run with ``approve: human``) make the release that they wait with."""
    from focal.roles.custodian import approve as approve_custodian

    if not (run / "parties").is_dir():
        if not (run / "journal.sqlite").exists():
            raise FocalError(
                f"{run} is no custodian's state folder",
                hint="name the run folder of a local run, or the 'state' of the custodian's local file",
            )
        _say(f"approved: {run} (run {approve_custodian(run).short})")
        return
    approved, waiting_not = [], []
    for folder in sorted(p for p in (run / "parties").iterdir() if p.name.startswith("custodian")):
        try:
            approved.append(f"approved: {folder} (run {approve_custodian(folder).short})")
        except FocalError:
            waiting_not.append(folder.name)
    if not approved:
        raise FocalError(
            f"{run}: no release waits for approval there", hint="when training is done a custodian says 'the release waits for'"
        )
    for line in approved:
        _say(line)
    if waiting_not:
        _say(f"not yet waiting: {', '.join(waiting_not)}; give the same command again when they do")


# --------------------------------------------------------------------------- roles


@app.command()
def server(manifest: ManifestOption, local: LocalOption, events: EventsOption = False) -> None:
    """Serve a run: relay, store, compute on ciphertexts."""
    _role("server", manifest, local, events)


@app.command()
def custodian(manifest: ManifestOption, local: LocalOption, wait: WaitOption = 60.0, events: EventsOption = False) -> None:
    """Hold one share of the secret key."""
    _role("custodian", manifest, local, events, wait)


@app.command()
def institution(manifest: ManifestOption, local: LocalOption, wait: WaitOption = 60.0, events: EventsOption = False) -> None:
    """Contribute images' encrypted activations and receive the model."""
    require("site", "focal institution")
    _role("institution", manifest, local, events, wait)


def _role(role: str, manifest: Path, local: Path, events: bool, wait: float = 60.0) -> None:
    from focal.roles.progress import json_lines
    from focal.roles.start import run_role

    if events:
        sys.exit(run_role(role, manifest, local, json_lines, wait=wait, launched=True))
    signed = read(Manifest, manifest)
    _say_who_verifies(signed)
    with Board() as board:
        status = run_role(role, manifest, local, board.show, wait=wait)
    result = read(LocalConfig, local).state / "summary.json"
    if status == 0 and role == "institution":
        from focal.report.pooled import plot_pooled

        plot_pooled(result.parent)
    if status == 0 and role == "institution" and result.exists():
        from focal.measure.summary import read_summary
        from focal.report.table import print_results

        print_results(read_summary(result), console)
        _say(f"result: {result}, {result.with_name('model.pt')}")
    sys.exit(status)


# --------------------------------------------------------------------------- provisioning


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Option(help="The party's name in the manifest.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.key.json (private, 0600) and NAME.public.json.")] = Path("."),
) -> None:
    """Make this party's identity. The private file never leaves this machine; send the public one to the coordinator."""
    from pydantic import TypeAdapter, ValidationError

    from focal.net.identity import Identity

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise FocalError(
            f"'{name}' cannot be a party's name", hint="use at most 32 lower-case letters, digits, '-' and '_', a letter or digit first"
        ) from None
    identity = Identity.new(name)
    private, public = out / f"{name}.key.json", out / f"{name}.public.json"
    out.mkdir(parents=True, exist_ok=True)
    identity.save(private)
    member = identity.member("custodian", verify="off")
    public.write_text(json.dumps({"name": name, "sign": member.sign, "seal": member.seal, "curve": member.curve}, indent=2) + "\n")
    _say(f"private: {private} (keep it)\npublic:  {public} (send it)")


@manifest_app.command("new")
def manifest_new(
    config: Annotated[
        str,
        typer.Option(help="A run configuration; its dataset needs 'classes' and 'task' unless the data is here."),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("manifest.json"),
) -> None:
    """Begin a manifest: model, training and parameters, without members. Needs the lower segment's weights to pin them."""
    require("site", "focal manifest new")
    from focal.segments.lower import build_lower, lower_spec
    from focal.segments.upper import released_digest

    if out.exists():
        raise FocalError(f"{out} exists already", hint="delete it, or choose another --out")
    c = read(RunConfig, configs.find(config))
    classes, task = c.dataset.classes, c.dataset.task
    if classes is None or task is None:
        from focal.data import load

        table = load(c.dataset, c.seed)
        classes, task = table.classes, table.task
    segment, source = build_lower(c.lower, c.lower.weights)
    blind = c.protocol == "blind"
    manifest = Manifest(
        name=c.name,
        protocol=c.protocol,
        dataset=c.dataset_name,
        members=(),
        classes=classes,
        task=task,
        lower=lower_spec(segment, c.lower),
        projection=c.projection,
        training=c.training,
        ckks=c.ckks,
        layout=LayoutSpec(class_lanes=1, feature_lanes=1) if blind else None,
        interactive=None if blind else c.interactive,
        start=released_digest(c.start) if c.start else None,
        approve=c.consortium.approve,
        accept_leak=c.consortium.accept_leak,
        share_blocks=c.consortium.share_blocks,
        pooled_roc=c.consortium.pooled_roc,
    )
    _check_features(manifest)
    write(manifest, out)
    _say(f"{out}: lower segment {manifest.lower.model}, {source}; now add the members (focal manifest add)")


def _check_features(m: Manifest) -> None:
    """As many columns as the lower segment can give: later than here the run would end when the first projection is made."""
    from focal.segments.projection import check_features

    check_features(m.projection.features if m.interactive is None else m.interactive.features, m.lower.dim)


@manifest_app.command("add")
def manifest_add(
    manifest: Annotated[Path, typer.Argument(help="The manifest.")],
    role: Annotated[Literal["server", "institution", "custodian"], typer.Option(help="server, institution or custodian")],
    public: Annotated[Path, typer.Option(help="The member's NAME.public.json.")],
    rows: Annotated[int | None, typer.Option(help="Institution: its number of training rows.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Server: tcp://host:port that the others dial.")] = None,
    verify: Annotated[Literal["off", "lockstep"], typer.Option(help="Custodian: whether it re-runs every step.")] = "off",
    guard: Annotated[bool | None, typer.Option(help="Custodian: answers last (default: the first that verifies).")] = None,
    class_lanes: Annotated[int | None, typer.Option(help="Override the planner.")] = None,
    feature_lanes: Annotated[int | None, typer.Option(help="Override the planner.")] = None,
) -> None:
    """Add a member and plan the layout again. Signatures given before are void."""
    from focal.net.identity import read_public

    m = read(Manifest, manifest)
    guards = guard if guard is not None else verify == "lockstep" and m.guard is None
    own: dict[str, dict[str, Any]] = {
        "server": {"endpoint": endpoint},
        "institution": {"rows": rows},
        "custodian": {"verify": verify, "guard": guards},
    }
    member = read_public(public, role=role, **own[role])
    grown = m.model_dump(mode="json") | {
        "members": [*(x.model_dump(mode="json") for x in m.members), member.model_dump(mode="json")],
        "signatures": {},
    }
    new = _validated(Manifest, grown, manifest)
    if new.institutions and new.custodians:
        new = _planned(new, LayoutConfig(class_lanes=class_lanes, feature_lanes=feature_lanes))
    write(new, manifest)
    void = "; earlier signatures are void" if m.signatures else ""
    _say(f"{manifest}: {', '.join(f'{x.name} ({x.role})' for x in new.members)}{void}")


def _planned(m: Manifest, wish: LayoutConfig) -> Manifest:
    """The manifest with the layout that fits its members best; an interactive one has no choice to make."""
    from focal.ckks import plan
    from focal.roles.interactive import steps

    if m.interactive is not None:
        _say(steps.describe(m))
        return m
    cost = plan.choose(
        m.ckks,
        m.projection.features,
        m.outputs,
        m.row_counts,
        len(m.custodians),
        m.training.steps,
        m.training.degree,
        wish,
        threads=os.cpu_count() or 1,
        memory_bytes=64e9,
        share_blocks=m.share_blocks,
    )
    _say(cost.describe(m.training.steps))
    return m.model_copy(update={"layout": LayoutSpec(class_lanes=cost.layout.class_lanes, feature_lanes=cost.layout.feature_lanes)})


def _validated(model: Any, fields: dict[str, Any], path: Path) -> Any:
    from pydantic import ValidationError

    from focal.config import explain

    try:
        return model.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path) from None


@manifest_app.command("sign")
def manifest_sign(
    manifest: Annotated[Path, typer.Argument(help="The manifest.")],
    keys: Annotated[Path, typer.Option(help="This party's NAME.key.json.")],
) -> None:
    """Sign the manifest as it stands; then pass the file on to the next member."""
    from focal.net.identity import Identity, sign_manifest

    m = read(Manifest, manifest)
    m.check_complete()
    signed = sign_manifest(m, Identity.load(keys))
    write(signed, manifest)
    left = [x.name for x in signed.members if x.name not in signed.signatures]
    _say(f"{manifest}: hash {signed.hash.hex()[:16]}, " + (f"still to sign: {', '.join(left)}" if left else "signed by all"))


@manifest_app.command("check")
def manifest_check(manifest: Annotated[Path, typer.Argument(help="The manifest.")]) -> None:
    """What is about to be signed or run: members, parameters, bytes, memory, time, who verifies, who has signed."""
    from focal.net.identity import check_signatures

    m = read(Manifest, manifest)
    check_signatures(m, need_all=False)
    _check_features(m)
    for member in m.members:
        policy = f"verify: {member.verify}{', guard' * member.guard}"
        facts = {"server": member.endpoint, "institution": f"{member.rows} training rows", "custodian": policy}
        signed = "signed" if member.name in m.signatures else "not signed yet"
        _say(f"{member.role:<12} {member.name:<16} {facts[member.role]:<28} {signed}")
    _say(f"model        {m.lower.model} up to '{m.lower.cut}', weights sha256 {m.lower.weights_sha256[:16]}")
    _say(f"classes      {', '.join(m.classes)} ({m.task})")
    m.check_complete()
    if m.interactive is None:
        _say_blind(m)
    else:
        _say_interactive(m)
    _say(f"hash         {m.hash.hex()}")
    _say_who_verifies(m)
    missing = [x.name for x in m.members if x.name not in m.signatures]
    if missing:
        console.print(f"[yellow]still to sign: {', '.join(missing)}[/] (focal manifest sign)")


def _say_blind(m: Manifest) -> None:
    from focal.ckks import plan
    from focal.roles import agreed

    _say(f"training     {m.training.steps} steps, ridge {m.training.ridge}, sigmoid of degree {m.training.degree}; release: {m.approve}")
    custodians, threads = len(m.custodians), os.cpu_count() or 1
    shape = agreed.layout(m)
    cost = plan.cost(shape, m.ckks, m.row_counts, custodians, m.training.degree, LayoutConfig().link_mbyte_s, threads)
    _say(cost.describe(m.training.steps))
    _say(f"blocks       {plan.whose(shape, m.row_counts)}")
    if m.share_blocks:
        console.print(f"[bold yellow]{plan.SHARED_BLOCKS}[/]")
    console.print(f"[bold yellow]{agreed.TRUST}[/]")


def _say_interactive(m: Manifest) -> None:
    from focal.roles.interactive import steps

    trains = steps.settings(m).trainable
    _say(f"training     interactive: '{trains}' of the lower segment trains, the head encrypted; release: {m.approve}")
    if m.start is not None:
        _say(f"start        the released model with sha256 {m.start[:16]}")
    _say(steps.describe(m))
    console.print(f"[bold yellow]{steps.TRUST}[/]")


def _say_who_verifies(m: Manifest) -> None:
    from focal.ckks import refresh
    from focal.ckks.context import Scheme
    from focal.runs.local import refreshes

    verifiers = [c.name for c in m.custodians if c.verify == "lockstep"]
    if m.guard is None:
        console.print("[bold yellow]no custodian verifies (verify: off): the server is trusted to follow the protocol[/]")
        return
    _say(f"verification {', '.join(verifiers)} re-run(s) every step and answer(s) only for identical ciphertexts")
    bounds = refresh.guard(Scheme(m.ckks, "check"), len(m.custodians))
    bounds.check()
    _say(f"guard        {m.guard.name} answers every refresh last: {bounds.describe(refreshes(m))}")


@app.command()
def check(manifest: ManifestOption, local: LocalOption, wait: WaitOption = 10.0) -> None:
    """Test this party's keys, data, weights and link without starting a run."""
    import numpy as np

    from focal.net.identity import Identity, check_signatures
    from focal.net.link import Link

    m, mine = read(Manifest, manifest), read(LocalConfig, local)
    check_signatures(m)
    identity = Identity.load(mine.keys)
    me = identity.entry(m)
    _say(f"keys     '{me.name}' is {me.role} of '{m.name}'; all {len(m.members)} members have signed")
    if me.role == "institution":
        require("site", "focal check of an institution")
        from focal.data import load
        from focal.segments.lower import build_lower

        if mine.data is None or mine.weights is None:
            raise FocalError(
                f"{local}: an institution needs 'data' and 'weights'", hint="name its own images and the lower segment's weights"
            )
        table = load(mine.data.model_copy(update={"classes": m.classes, "task": m.task}), mine.seed)
        train = int(np.sum(table.split == "train"))
        table.images.read(0)
        if train != me.rows:
            raise FocalError(
                f"{local}: {train} training rows, the manifest declares {me.rows}", hint="use the declared data, or agree on a new manifest"
            )
        _say(f"data     {len(table)} images, {train} training rows, as declared")
        _, source = build_lower(m.lower, mine.weights)
        _say(f"weights  {str(source).removeprefix('weights ')}, as pinned")
        if m.start is not None:
            from focal.segments.upper import released_digest

            if mine.start is None or released_digest(mine.start) != m.start:
                raise FocalError(f"{local}: 'start' is not the released model that the manifest begins with", hint="name that run's folder")
            _say(f"start    {mine.start}, as pinned")
    if me.role == "server":
        _say("link     the server is dialled; start it with: focal server")
        return
    link = Link(m, identity)
    link.phase = "keys"
    try:
        link.open(wait)
    finally:
        link.close()
    _say(f"link     {m.server.endpoint} answers, keys are accepted on both sides")


# --------------------------------------------------------------------------- benchmarks


@bench_app.command("head")
def bench_head(
    rows: int = 1024,
    features: int = 64,
    classes: int = 8,
    threads: int = 1,
    steps: int = 3,
    class_lanes: Annotated[int | None, typer.Option(help="k; default: all classes")] = None,
    feature_lanes: int = 1,
    degree: int = 3,
    reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_REFERENCE", help="A reference script to run in turn and compare with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as the last line, as JSON.")] = False,
) -> None:
    """Time the encrypted training step, all custodians in one process."""
    from focal.bench import head

    result = head(rows, features, classes, threads, steps, class_lanes, feature_lanes, degree, reference)
    _say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("interactive")
def bench_interactive(
    features: int = 64,
    classes: int = 8,
    owners: int = 4,
    threads: int = 2,
    steps: int = 3,
    reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_INTERACTIVE_REFERENCE", help="A reference script to run in turn and compare with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as the last line, as JSON.")] = False,
) -> None:
    """Time the encrypted joint step of interactive training, owners and custodians in one process."""
    from focal.bench import interactive

    result = interactive(features, classes, owners, threads, steps, reference)
    _say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("split")
def bench_split(
    config: Annotated[str, typer.Option(help="An interactive run configuration.")] = "finetune-retina",
    steps: int = 8,
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as the last line, as JSON.")] = False,
) -> None:
    """Time interactive training over sockets, encrypted and in plaintext."""
    require("site", "focal bench split")
    from focal.bench import split

    result = split(configs.find(config), runs, steps)
    _say(result.text)
    if as_json:
        print(json.dumps(result.numbers))


@bench_app.command("all")
def bench_all(
    reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_REFERENCE", help="A reference script to run in turn and compare with.")
    ] = None,
    interactive_reference: Annotated[
        Path | None, typer.Option(envvar="FOCAL_INTERACTIVE_REFERENCE", help="Likewise for the joint step.")
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Every layout of the head, the joint step, then whole runs on the data that is here; prints targets beside what was measured."""
    require("site", "focal bench all")
    from focal.bench import everything

    started = time.monotonic()
    everything(reference, interactive_reference, runs, configs.FOLDER, _say, _train)
    _say(f"all measured in {time.monotonic() - started:.0f} s")
