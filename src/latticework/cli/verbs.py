"""The verbs. Each reads its options, calls the face and says what happened."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import typer.core

from latticework.core.errors import UserError, nearest

from ._federate import federate_app

# Plain help: rich would double the time of `--help`, and typer escapes brackets for it even where it is not used.
typer.core.HAS_RICH = False  # type: ignore[attr-defined]
app = typer.Typer(
    name="latticework", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Published methods for learning on networks and frames, on your own files, under one honest protocol.",
    epilog="Start with: latticework compare digits-knn -m mlp,gcn,dagnn --repeats 5 -o report.html",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, check and export data sets.")
app.add_typer(data_app, name="data")
app.add_typer(federate_app, name="federate")

Settings = Annotated[
    list[str], typer.Option("-s", "--set", metavar="FIELD=VALUE", help="A field of the method, task.FIELD or data.FIELD.")
]
Seed = Annotated[int, typer.Option(help="Seed of all draws.", min=0)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 … or auto.")]
Threads = Annotated[int, typer.Option(help="Threads of a fit; recorded, since sums depend on it.", min=1)]
Runs = Annotated[Path, typer.Option(help="Folder of finished work; what is there is not run again.")]
Nets = Annotated[list[str], typer.Option("--net", metavar="[NAME=]MODULE:FUNCTION", help="A net of your own.")]


def version(wanted: bool) -> None:
    if wanted:
        from latticework import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


# -- looking ---------------------------------------------------------------------------------------------------------
@app.command("methods", epilog="Example: latticework methods --task node-classification --search heterophily")
def methods_verb(
    task: Annotated[str | None, typer.Option(help="Only methods for this task.")] = None,
    search: Annotated[str | None, typer.Option(help="Only methods whose name or description has these words.")] = None,
) -> None:
    """List the methods."""
    from latticework.core import registry

    if task is not None:
        registry.find("task", task)
    rows = [[e.name, ", ".join(e.facts.get("tasks", ())), e.says] for e in registry.search(task, search)]
    if not rows:
        raise UserError(f"no method matches; tasks are {', '.join(e.name for e in registry.entries('task'))}")
    _table(["method", "task", "what it is"], rows)


@app.command(epilog="Example: latticework show dagnn")
def show(name: Annotated[str, typer.Argument(help="A method, task, probe, data set or paper.")]) -> None:
    """Say what a thing is, when to use it, its fields, and its evidence."""
    from ._listing import describe

    print(describe(name))


@data_app.command("list")
def data_list() -> None:
    """List the data sets that have a name."""
    from latticework.core import registry

    _table(["data", "kind", "what it is"], [[e.name, e.facts.get("kind", ""), e.says] for e in registry.entries("data")])


@data_app.command("show", epilog="Example: latticework data show planetoid-cora")
def data_show(name: Annotated[str, typer.Argument(help="A data set's name.")], settings: Settings = []) -> None:
    """Say what a named data set holds."""
    data_check(name, settings)


@data_app.command("check", epilog="Example: latticework data check my-graph/")
def data_check(what: Annotated[str, typer.Argument(help="A path or a name.")], settings: Settings = []) -> None:
    """Say what was understood of your files, and which tasks and methods fit, before any training."""
    from latticework import _face as face

    from ._listing import fitting

    given = face.dataset(what, **{k.removeprefix("data."): v for k, v in _settings(settings).items()})
    print(f"{what}: data of kind {given.kind}")
    for line in given.check():
        print(f"  {line}")
    for line in fitting(given):
        print(line)


@data_app.command("export", epilog="Example: latticework data export karate my-karate/")
def data_export(
    what: Annotated[str, typer.Argument(help="A name or path.")],
    to: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    settings: Settings = [],
) -> None:
    """Write a data set in the form that users bring."""
    from latticework import _face as face

    _fresh(to)
    face.dataset(what, **{k.removeprefix("data."): v for k, v in _settings(settings).items()}).write(to)
    print(f"wrote {to}")


# -- doing -----------------------------------------------------------------------------------------------------------
@app.command(epilog="Example: latticework fit dagnn my-graph/ -s hops=20 --time 10m -o MODEL")
def fit(
    method: Annotated[str, typer.Argument(help="NAME or NAME:PRESET, see `latticework methods`.")],
    data: Annotated[str, typer.Argument(help="Your files, or a named data set.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the model goes.")],
    settings: Settings = [],
    seed: Seed = 0,
    time: Annotated[str, typer.Option(help="Stop after this long (90s, 10m, 2h) and keep what there is.")] = "",
    tune: Annotated[int, typer.Option(help="Trials of tuning on the validation part.", min=0)] = 0,
    device: Device = "auto",
    threads: Threads = 1,
    runs: Annotated[Path | None, typer.Option(help="Folder where a fit that is cut short resumes.")] = None,
    nets: Nets = [],
    force: Annotated[bool, typer.Option("--force", help="Replace the model at the output.")] = False,
) -> None:
    """Fit a method to your data and save the model."""
    from latticework import _face as face

    task, rest = _task_of(_settings(settings))
    if not force:
        _fresh(out, ", or --force to replace it")
    with _progress(f"fitting {method}") as on_log:
        fitted = face.fit(
            method, data, task=task, settings=rest, seed=seed, time=_seconds(time), tune=tune, device=device, threads=threads,
            runs=runs, nets=_nets(nets), on_log=on_log,
        )  # fmt: skip
    fitted.save(out)
    for line in _said_of(fitted):
        print(line)
    if fitted.task.typed:
        print(f"wrote {out}; use it: latticework predict {shlex.quote(str(out))} {fitted.task.typed} -o predictions.csv")
        return
    words = [str(out), data, *(word for k, v in rest.items() if k.startswith("data.") for word in ("-s", f"{k}={v}"))]
    print(f"wrote {out}; use it: latticework predict {shlex.join(words)} -o predictions")


@app.command(
    epilog="Example: latticework predict MODEL my-graph/ -o predictions.csv --nodes all",
)
def predict(
    model: Annotated[Path, typer.Argument(help="What `fit -o` wrote.")],
    data: Annotated[str | None, typer.Argument(help="Your files.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where the answers go.")] = None,
    settings: Settings = [],
    nets: Nets = [],
) -> None:
    """Answer for your files with a saved model. Other options are the task's questions (--nodes all, --frames 100:120)."""
    from latticework import _face as face

    if out is None:
        raise UserError("predict needs -o OUT")
    fitted = face.load(model, _nets(nets))
    late = _settings(settings)
    of_data = {k[5:]: late.pop(k) for k in list(late) if k.startswith("data.")}
    if late:
        from latticework.core.value import read_text

        fitted = fitted.at(**{k: read_text(v) for k, v in late.items()})
    given = None if data is None else face.dataset(data, **of_data)
    with _spinner("predicting"):
        answers = fitted.predict(given, **_query(type(fitted.task)))
        answers.write(out)
    print(f"wrote {out}")


@app.command(epilog="Example: latticework update MODEL new-events.csv")
def update(
    model: Annotated[Path, typer.Argument(help="A saved model that keeps a memory.")],
    data: Annotated[str, typer.Argument(help="New data, or - for standard input.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where the changed model goes; left out: in place.")] = None,
) -> None:
    """Feed a model that has a memory with new data."""
    from latticework import _face as face

    fitted = face.load(model)
    if out is not None and out.resolve() != model.resolve():
        _fresh(out)
    with TemporaryDirectory() as folder, _spinner("taking in"):
        if data == "-":
            given = sys.stdin.buffer.read()
            if not given.strip():
                raise UserError(
                    "standard input is empty; pipe a table with a header into it: source,target,time and what the model knows"
                )
            data = str(Path(folder) / "standard-input.csv")
            Path(data).write_bytes(given)
        said = fitted.update(data)
        fitted.save(out or model)
    print(said)
    print(f"wrote {out or model}")


@app.command(epilog="Example: latticework embed edges.csv -m fastrp -s dim=128 -o embedding.npy")
def embed(
    data: Annotated[str, typer.Argument(help="Your files, or a named data set.")],
    method: Annotated[str, typer.Option("-m", "--method", help="A method that gives vectors, or a model that `fit -o` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".npy (ids beside it), .csv or .parquet.")],
    settings: Settings = [],
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Write a vector for every node (or whatever the data hold)."""
    from latticework import _face as face

    from ._listing import write_vectors

    if out.suffix not in (".npy", ".csv", ".parquet"):
        raise UserError(f"{out}: vectors are written as .npy, .csv or .parquet")
    with _progress(f"embedding with {method}") as on_log:
        vectors, part, _ = face.embed(
            method, data, settings=_settings(settings), seed=seed, device=device, threads=threads, on_log=on_log
        )
    for path in write_vectors(vectors, part.query.ids, out):
        print(
            f"wrote {path}: {vectors.shape[0]} vectors of length {vectors.shape[1]}"
            if path == out
            else f"wrote {path}: their ids"
        )


@app.command(epilog="Example: latticework score node-classification predictions.csv truth/nodes.csv")
def score(
    task: Annotated[str, typer.Argument(help="A task's name.")],
    answers: Annotated[Path, typer.Argument(help="Predictions, made here or elsewhere.")],
    truth: Annotated[Path, typer.Argument(help="A file or folder with the truth.")],
    settings: Settings = [],
) -> None:
    """Judge predictions made elsewhere."""
    from latticework import _face as face

    scores = face.score(task, answers, truth, _settings(settings))
    rows = [
        [s.metric, ", ".join(f"{k} {v}" for k, v in s.at.items()), "none" if s.value is None else f"{s.value:.4f}", s.why]
        for s in scores
        if not s.at.get("slice")
    ]
    _table(["metric", "at", "value", ""], rows)


@app.command(epilog="Example: latticework compare my-graph/ -m mlp,gcn,dagnn --repeats 10 --tune 20 --jobs 2 -o report.html")
def compare(
    data: Annotated[list[str], typer.Argument(help="Your files or named data sets; several make one board with ranks.")],
    methods: Annotated[
        list[str], typer.Option("-m", "--methods", help="Names, presets or name(field=value;…), with commas; may be repeated.")
    ] = [],
    task: Annotated[str | None, typer.Option(help="The task; left out, the first that fits.")] = None,
    repeats: Annotated[int, typer.Option(help="Splits, folds or seeds, as the task's plan says.", min=1)] = 5,
    tune: Annotated[int, typer.Option(help="Trials of tuning, the same for every method; 0: as published.", min=0)] = 0,
    tune_once: Annotated[bool, typer.Option("--tune-once", help="Tune on the first split, keep it for the rest.")] = False,
    jobs: Annotated[int, typer.Option(help="Cells at the same time on this machine.", min=1)] = 1,
    cluster: Annotated[str | None, typer.Option(help="ray: cells as Ray tasks.")] = None,
    time: Annotated[str, typer.Option(help="Longest time of one fit (90s, 10m, 2h).")] = "",
    out: Annotated[list[Path], typer.Option("-o", "--out", help="report.html, .csv, .json, .md or .tex; may be repeated.")] = [],
    runs: Runs = Path("runs"),
    settings: Settings = [],
    device: Device = "auto",
    threads: Threads = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed cells again.")] = False,
    baselines: Annotated[bool, typer.Option(help="Add the task's trivial and its tuned classic baseline.")] = True,
    classic: Annotated[int, typer.Option(help="Trials for the unasked classic baseline when --tune is 0.", min=0)] = 5,
    nets: Nets = [],
) -> None:
    """Compare methods on data under one honest protocol."""
    from latticework import _face as face

    from ._board import run_and_show

    chosen, rest = _task_of(_settings(settings))
    for path in out:
        _writer(path)
    run_and_show(
        face, data=data, methods=",".join(methods), task=task or chosen, repeats=repeats, tune=tune,
        tune_once=tune_once, jobs=jobs, cluster=cluster, time=_seconds(time), out=out, runs=runs, settings=rest, device=device,
        threads=threads, retry=retry, baselines=baselines, classic=classic, nets=_nets(nets), command=shlex.join(["latticework", *_words]),
    )  # fmt: skip


@app.command(epilog="Example: latticework probe amud my-graph/")
def probe(
    name: Annotated[str, typer.Argument(help="A probe's name.")],
    data: Annotated[str | None, typer.Argument(help="Your files, or a named data set.")] = None,
    settings: Settings = [],
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Findings as .json; or a folder for them and all files.")
    ] = None,
    threads: Threads = 2,
) -> None:
    """Measure data or nets."""
    from latticework import _face as face

    from ._listing import findings_text, write_findings

    folder = out if out is not None and not out.suffix else None
    if folder is not None:
        _fresh(folder)
    with _progress(f"probing with {name}") as on_log:
        found = face.probe(name, data, settings=_settings(settings), seed=seed, threads=threads, folder=folder, on_log=on_log)
    print(findings_text(found))
    if out is not None:
        write_findings(found, out if folder is None else folder / "findings.json")
        print(f"wrote {out}" + (f": findings.json and {len(found.files)} files" if found.files else ""))


@app.command(epilog="Example: latticework report runs -o report.html")
def report(
    runs: Annotated[Path, typer.Argument(help="The folder of a comparison.")] = Path("runs"),
    out: Annotated[list[Path], typer.Option("-o", "--out", help="report.html, .csv, .json, .md or .tex.")] = [
        Path("report.html")
    ],
) -> None:
    """Write the newest comparison of a folder again, from what is finished."""
    from latticework import _face as face

    from ._board import show_board

    for path in out:
        _writer(path)
    show_board(face.report(runs), out)


@app.command(
    epilog="Example: latticework reproduce dagnn --claim cora-fixed. A table: latticework reproduce nodes --resume --record"
)
def reproduce(
    papers: Annotated[list[str], typer.Argument(help="Papers, or a Grid named in a wing's TOML.")],
    claim: Annotated[list[str], typer.Option(help="Only these claims, with commas; may be repeated.")] = [],
    record: Annotated[bool, typer.Option("--record", help="Write what was measured beside the claims.")] = False,
    runs: Runs = Path("runs/evidence"),
    on: Annotated[list[str], typer.Option(help="Of a Grid: only these of its data sets, with commas; may be repeated.")] = [],
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="Of a Grid: only these of its entries, with commas; may be repeated.")
    ] = [],
    repeats: Annotated[int | None, typer.Option(help="Of a Grid: so many folds or seeds first.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Of a Grid: take over its recorded cells, run the rest.")] = False,
    jobs: Annotated[int, typer.Option(help="Cells at the same time.", min=1)] = 1,
    device: Device = "cpu",
) -> None:
    """Run a paper's claims: its figure beside ours. Claims are made for one thread of a CPU; --device runs them elsewhere."""
    from latticework.core.registry import split_outside

    from ._reproduce import Wanted, reproduce_papers

    claim, on, method = ([name for given in words for name in split_outside(given, ",")] for words in (claim, on, method))
    reproduce_papers(papers, Wanted(claim, on, method, repeats, resume, record, runs, jobs, device))


# -- reading options -------------------------------------------------------------------------------------------------
_words: list[str] = []
_questions: dict[str, str] = {}


def expand(words: list[str]) -> list[str]:
    """A wing's own words for a verb (`nets stitch …`) as that verb; others as they are."""
    from latticework.core import registry

    _words[:] = words
    if not words or words[0].startswith("-"):
        return words
    if words[0] == "predict":
        return [words[0], *_without_questions(words[1:])]
    aliases = registry.wing_facts("aliases")
    if words[0] not in aliases:
        return words
    table = aliases[words[0]]
    if len(words) < 2 or words[1] not in table:
        known = ", ".join(table)
        if len(words) < 2 or words[1] in ("-h", "--help"):
            lines = [f"  {words[0]} {name}  is  {table[name]}" for name in table]
            print("\n".join([f"Aliases of the verbs for {words[0]}:", *lines]))
            raise typer.Exit
        raise UserError(f"{words[0]} has no command {words[1]!r}; {nearest(words[1], table) or known}")
    made = fill_alias(table[words[1]], words[2:], f"{words[0]} {words[1]}")
    return [made[0], *_without_questions(made[1:])] if made[0] == "predict" else made


def _without_questions(words: list[str]) -> list[str]:
    """A task's questions (``--frames 2:5``) set aside for `predict`, which alone knows its model's task."""
    own = {"--out", "--set", "--net", "--help"}
    left, i = [], 0
    _questions.clear()
    while i < len(words):
        name, equals, value = words[i].partition("=")
        if name.startswith("--") and name not in own:
            if not equals:
                if i + 1 >= len(words):
                    raise UserError(f"{name} needs a value")
                value = words[i + 1]
                i += 1
            _questions[name[2:]] = value
        else:
            left.append(words[i])
        i += 1
    return left


def fill_alias(template: str, words: list[str], name: str) -> list[str]:
    """The template's ``{0}``, ``{1}`` … are positional words, ``{-m}`` an option's value (``{-m:default}``); the rest follows."""
    places, options, rest, i = [], {}, [], 0
    named = re.findall(r"\{(-[^}:]+)(?::[^}]*)?\}", template)
    while i < len(words):
        if words[i] in named and i + 1 < len(words):
            options[words[i]] = words[i + 1]
            i += 2
        elif words[i].startswith("-") and len(words[i]) > 1:
            rest += words[i : i + 2] if i + 1 < len(words) and not words[i + 1].startswith("-") else [words[i]]
            i += 2 if i + 1 < len(words) and not words[i + 1].startswith("-") else 1
        else:
            places.append(words[i])
            i += 1
    made = []
    for part in shlex.split(template):
        found = re.fullmatch(r"\{([^}:]+)(?::([^}]*))?\}", part)
        if not found:
            made.append(part)
        elif found[1].isdigit():
            if int(found[1]) >= len(places):
                if found[2] is None:
                    raise UserError(f"{name} needs {int(found[1]) + 1} names; it stands for: latticework {template}")
                made.append(found[2])
            else:
                made.append(places[int(found[1])])
        else:
            value = options.get(found[1], found[2])
            if value is None:
                raise UserError(f"{name} needs {found[1]}; it stands for: latticework {template}")
            made.append(value)
    return made + rest


def _settings(items: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"-s {item!r}: write FIELD=VALUE")
        if key in found:
            raise UserError(f"-s {key} is given twice")
        found[key] = value
    return found


def _task_of(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    rest = dict(settings)
    return rest.pop("task", None), rest


def _nets(items: list[str]) -> dict[str, str]:
    found = {}
    for item in items:
        name, equals, spec = item.rpartition("=")
        found[name if equals else spec] = spec
    return found


def _seconds(text: str) -> float | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise UserError(f"--time {text!r}: write 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _query(task: Any) -> dict[str, Any]:
    """The questions of the command line, checked against the task's Query."""
    fields = task.Query.model_fields
    for key in _questions:
        if key not in fields:
            raise UserError(f"predict has no option --{key} for {task.name}; {nearest(key, fields)}")
    return dict(_questions)


def _fresh(path: Path, hint: str = "") -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists; choose another name{hint}")


def _writer(path: Path) -> None:
    known = (".html", ".csv", ".json", ".md", ".tex")
    if path.suffix not in known:
        raise UserError(f"{path}: a board is written as {', '.join(known)}")


# -- showing ---------------------------------------------------------------------------------------------------------
def _table(columns: list[str], rows: list[list[str]]) -> None:
    """Aligned columns; the last one is folded to the width of the terminal. Plain: rich alone would take a third of the time."""
    import shutil
    import textwrap

    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(shutil.get_terminal_size((100, 24)).columns - indent, 30)
    for row in [columns, *rows]:
        head = "".join(cell.ljust(width + 2) for cell, width in zip(row, widths, strict=False))
        for i, line in enumerate(textwrap.wrap(row[-1], room) or [""]):
            print(((head if i == 0 else " " * indent) + line).rstrip())


def _said_of(fitted: Any) -> list[str]:
    facts = fitted.facts
    lines = [f"{fitted.method.row()}: {facts['parameters']:,} numbers, fitted in {facts['fit_s'] + facts['refs_s']:.1f} s"]
    lines += [f"  {note}" for note in fitted.run.notes]
    if fitted.run.stopped:
        lines.append("  stopped by --time: usable, but not what the full fit would give")
    lines += [f"  {line}" for line in (fitted.data.check() if fitted.data else []) if ":" not in line]
    return lines


@contextlib.contextmanager
def _spinner(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[str, int, Mapping[str, float]], None]]:
    """Steps and the newest values, on a terminal; nothing where output goes to a file."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what)

        def on_log(label: str, step: int, values: Mapping[str, float]) -> None:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
            bar.update(task, description=f"{what} · {label} · step {step + 1}  {shown}")

        yield on_log


if __name__ == "__main__":
    from . import main

    main(sys.argv[1:])
