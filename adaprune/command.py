"""The command ``adaprune``: results on standard output, all else on standard error; its options are `Run`'s fields."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from adaprune.data import expanded
from adaprune.runs import METHODS, Run

FIRST = ("sparsity", "method", "teacher", "model", "epochs", "seed", "max_length", "max_train_examples", "data_dir")
EXIT_WRONG, EXIT_STOPPED = 1, 130  # click's own, for a wrong option, is 2


class _Fields(click.Command):
    """A command with an option for each field of `Run`; ``--help`` shows the first, ``--help-all`` all of them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        names = [*FIRST, *(name for name in Run.model_fields if name not in (*FIRST, "task", "results_dir"))]
        self.params += [_option(name, hidden=name not in FIRST) for name in names]
        self.params.append(
            click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_help_all,
                         help="Show every option and exit.")
        )  # fmt: skip


def _option(name: str, hidden: bool) -> click.Option:
    """The option for a field, with its type, choices and description. If it is not given, it is not passed on."""
    field = Run.model_fields[name]
    kind = str if get_origin(field.annotation) is Literal or field.annotation not in (int, float, bool) else None
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    choices = tuple(METHODS) if name == "method" else choices
    said = "; auto: find or train it" if name == "teacher" else ""
    shown = "" if field.default in ("", 0, True) else f"  [default: {field.default}]"
    flag = name.replace("_", "-")
    return click.Option(
        [f"--{flag}/--no-{flag}" if field.annotation is bool else f"--{flag}"],
        type=click.Choice([c for c in choices if c]) if choices else kind or field.annotation,
        metavar=None if field.annotation is bool else "NAME" if choices else "TEXT" if kind else "NUMBER",
        default=None,
        hidden=hidden,
        help=f"{field.description}{said}{shown}",
    )


def _help_all(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        for parameter in context.command.params:
            parameter.hidden = False
        click.echo(context.get_help())
        context.exit()


EXAMPLE = """\b
adaprune fit tickets.csv --sparsity 0.5 --out tickets
adaprune predict tickets "My screen is black"
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EXAMPLE)
@click.version_option(package_name="adaprune")
def adaprune() -> None:
    """Adapts a pre-trained encoder to a table of texts by pruning it, and uses the result."""


@adaprune.command(cls=_Fields, short_help="Adapt a model to DATA.")
@click.argument("data")
@click.option("--out", default="adapted", show_default=True, metavar="PATH",
              help="folder for mask.safetensors, card.json, README.md and the records (runs/)")  # fmt: skip
def fit(data: str, out: str, **fields: Any) -> None:
    """Adapt a model to DATA: a .csv, .tsv, .jsonl or .parquet file with the columns text, (text_pair,) label; a folder
    with train.* and validation.*; or a task's name (sst2, ...).

    An interrupted fit continues when it is called again, a finished one is not run again.
    """  # noqa: D205, D415
    import adaprune as package
    from adaprune.adapted import check_folder

    check_folder(out)
    given = {name: value for name, value in fields.items() if value is not None}
    adapted = package.fit(data, **given, results_dir=str(expanded(out) / "runs"))
    adapted.save_pretrained(out)
    if not (sys.stdout.isatty() and sys.stderr.isatty()):  # a terminal has shown it on standard error
        click.echo(adapted.said)
    click.echo(f"{Path(out, 'mask.safetensors')}  {(expanded(out) / 'mask.safetensors').stat().st_size:,} bytes")


@adaprune.command(short_help="Label texts.")
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--file", "file", metavar="PATH",
              help="a table with the columns text, (text_pair); any other file: one text per line")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.option("--scores", is_flag=True, help="also give each label's probability")
@click.option("--base", help="where the base model is, if not where the card says")
def predict(model: str, texts: tuple[str, ...], file: str | None, form: str, scores: bool, base: str | None) -> None:
    """Label TEXTS with MODEL: a folder written by `adaprune fit`, a mask file, or a name from the zoo.

    "-" reads texts from standard input, one per line; for a task on pairs, a tab separates the two.
    """
    import pandas as pd

    from adaprune.adapted import Adapted
    from adaprune.data.tables import SUFFIXES

    columns, adapted = _texts(texts, file), Adapted.from_pretrained(model, base)
    if len(adapted.columns) > len(columns) and Path(file or "").suffix.lower() not in SUFFIXES:
        row, text = next((row, text) for row, text in enumerate(columns["text"], 1) if text.count("\t") != 1)
        tabs = text.count("\t") or "no"
        raise ValueError(f"text {row} has {tabs} tabs: this task reads pairs, a tab between the two, got {text[:80]!r}")
    rows = list(zip(*columns.values(), strict=True)) if len(columns) == 2 else columns["text"]
    labels, found = adapted.predict(rows, return_scores=True)
    table = pd.DataFrame({**columns, "label": pd.Series(labels, dtype=object)})
    if scores:
        table = table.join(pd.DataFrame(found, index=table.index).add_prefix("p_"))
    text = (
        table.to_csv(index=False) if form == "csv" else table.to_json(orient="records", lines=True, force_ascii=False)
    )
    click.echo(text, nl=False)


@adaprune.command(short_help="Score a model on labelled data.")
@click.argument("model")
@click.argument("data")
@click.option("--base", help="where the base model is, if not where the card says")
@click.option("--data-dir", default="", help=Run.model_fields["data_dir"].description)
def evaluate(model: str, data: str, base: str | None, data_dir: str) -> None:
    """Score MODEL on DATA, as JSON: a labelled file, a folder's validation.* or a task's validation split."""
    from adaprune.adapted import Adapted

    click.echo(json.dumps(Adapted.from_pretrained(model, base).evaluate(data, data_dir=data_dir)))


@adaprune.command(short_help="Write a model as an ONNX file.")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--base", help="where the base model is, if not where the card says")
def export(model: str, file: Path, base: str | None) -> None:
    """Write MODEL as the ONNX file FILE, leaving out heads, units and neurons that its mask has cut off."""
    from adaprune.adapted import Adapted

    path = Adapted.from_pretrained(model, base).export(file)
    click.echo(f"{path}  {path.stat().st_size:,} bytes")


@adaprune.command(short_help="Describe a mask file.")
@click.argument("file")
@click.option("--json", "whole", is_flag=True, help="the whole card, as JSON")
def inspect(file: str, whole: bool) -> None:
    """Describe FILE: a mask's base model, size, score and card. FILE can also be a folder or a name from the zoo."""
    from adaprune.deploy import find_mask, load_mask

    path = find_mask(file)
    mask = load_mask(path)
    if whole:
        click.echo(json.dumps(mask.card, indent=1))
        return
    card, metrics = mask.card, mask.card.get("metrics", {})
    said = {
        "file": f"{path}, {path.stat().st_size:,} bytes, format {card['format']}, every byte checked",
        "base model": f"{card.get('model', 'not named')} ({card.get('revision', 'no revision')})",
        "licence": card.get("licence", "unknown"),
        "task": card.get("task", "not named"),
        "reads": " and ".join(card.get("columns", [])) or "not said",
        "labels": ", ".join(card["labels"]) or "none: a regression",
        "method": card.get("method", "not named"),
        "kept": f"{mask.kept:,} of {mask.total:,} weights in scope, sparsity {mask.sparsity:.6g}",
        "head": f"{sum(tensor.numel() for tensor in mask.head.values()):,} numbers",
        **{f"dev {name}": f"{value:.4f}" for name, value in metrics.get("validation", {}).items()},
    }
    click.echo("\n".join(f"{name:18} {value}" for name, value in said.items()))


@adaprune.command(short_help="A table of all records in a folder.")
@click.argument("results_dir")
@click.option("--csv", "csv", is_flag=True, help="every column, as CSV")
def compare(results_dir: str, csv: bool) -> None:
    """Show all records below RESULTS_DIR, the best of each task first."""
    from adaprune.runs import table

    records = table(results_dir)
    if csv:
        click.echo(records.to_csv(index=False), nl=False)
        return
    columns = [
        "task",
        "method",
        "mask_sparsity",
        "seed",
        "model",
        "primary",
        "score",
        "selection_score",
        "train_seconds",
    ]
    best = records.sort_values(["task", "score"], ascending=[True, False])[columns]
    click.echo(best.to_string(index=False, na_rep="-", float_format="{:.4g}".format))


@adaprune.command(short_help="The masks that come with the package.")
@click.option("--csv", "csv", is_flag=True, help="as CSV")
def zoo(csv: bool) -> None:
    """Show the masks that come with the package; predict, evaluate and inspect take their names."""
    import adaprune as package

    masks = package.zoo()
    click.echo(masks.to_csv() if csv else masks.to_string(float_format="{:.4g}".format), nl=not csv)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. Exits with 0; with 1 and a sentence if something cannot be done; with 2 for a wrong option."""
    said = set()

    def note(message: Warning | str, *_: object) -> None:
        """Once, though a table is read more than once, and libraries change the filter that would see to it."""
        if str(message) not in said:
            click.echo(f"adaprune: note: {message}", err=True)
        said.add(str(message))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = note
            adaprune.main(arguments, prog_name="adaprune", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped: call again to continue", err=True)
        sys.exit(EXIT_STOPPED)
    except (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        fits = (arguments or sys.argv[1:])[:1] == ["fit"]  # whose results_dir is a folder in --out
        click.echo(f"adaprune: {str(error).replace('results_dir', '--out') if fits else error}", err=True)
        sys.exit(EXIT_WRONG)


def _texts(texts: tuple[str, ...], file: str | None) -> dict[str, list[str]]:
    """The columns to label, from the arguments, a file, or standard input."""
    from adaprune.data.tables import read_lines
    from adaprune.given import in_columns, texts_to_label

    if bool(texts) == (file is not None):
        raise click.UsageError("give texts, or --file FILE, or - for standard input: exactly one of the three")
    if file is not None:
        return texts_to_label(file)
    if texts == ("-",):
        return in_columns(read_lines(sys.stdin.buffer.read(), "standard input"))
    return in_columns(list(texts))
