"""The commands about documents: into shards, and what became of them on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fox.cli.arguments import Out, Override, RecipePath, Redo, first_of
from fox.cli.training import do

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/tiny.")]


app = typer.Typer(
    cls=first_of("prepare"),
    help="Make documents into token shards: `fox data RECIPE`. Or look into what was made: report, card, verify, find, inspect.",
)


@app.command()
def prepare(recipe: RecipePath, override: Override = None, out: Out = None, redo: Redo = None) -> None:
    """Read the sources, drop exact duplicates, hold some documents out, and write token shards with a manifest.

    Where the recipe asks for a corpus, that is made of the sources first (`fox corpus`). The word `prepare` may be left out: `fox data RECIPE`.
    """
    done = do(recipe, override, out, ["corpus", "data"], redo)
    from fox.runs.summary import print_sources

    print_sources(done)


@app.command()
def report(folder: RunFolder) -> None:
    """Draw what became of the documents of a corpus: how many each rule took away, by source, with samples. One HTML file."""
    from fox.report.funnel import write_funnel

    typer.echo(f"wrote {write_funnel(folder)}")


@app.command()
def card(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the card goes.", show_default="RUN/README.md")
    ] = None,
) -> None:
    """Write the data card of a corpus: its sources, terms and languages, what was done to it and what was left out; as a dataset's README."""
    from fox.report.data_card import write_data_card

    typer.echo(f"wrote {write_data_card(folder, out)}")


@app.command(name="inspect")
def inspect_(
    folder: RunFolder,
    step: Annotated[int, typer.Option(metavar="N", help="A step of the pre-training, counted from 1.")],
    tokens: Annotated[int, typer.Option(min=1, help="Show so many tokens of each document at most.")] = 60,
) -> None:
    """Print the documents of one step, row by row: source, place, epoch, whether they are cut, their first words; and the mixture."""
    from fox.runs.inspect import inspect_step

    for line in inspect_step(folder, step, tokens):
        typer.echo(line)


@app.command(name="verify")
def verify_(folder: RunFolder) -> None:
    """Hash a run's corpus and shards again, and the sources' files: is all as it was made, and of what it was made? Exit code 1 where not."""
    from rich.console import Console

    from fox.runs.folder import kept_run
    from fox.runs.verify import verify

    found, looked = verify(kept_run(folder), Console(stderr=True))
    for finding in found:
        typer.echo(f"{'damaged' if finding.harms else 'note'}: {finding.what} {finding.problem}")
    typer.echo("looked at " + ", ".join(f"{number:,} {what}" for what, number in looked.items()))
    if any(finding.harms for finding in found):
        raise typer.Exit(1)
    typer.echo("all that was made is as it was made")


@app.command()
def find(
    document: Annotated[
        str,
        typer.Argument(
            metavar="DOCUMENT", help="A text file, - for standard input, an id or SHA-256, or the document's address."
        ),
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--runs", metavar="FOLDER", help="A run, or a folder of runs. Repeat it for more.", show_default="runs"
        ),
    ] = None,
) -> None:
    """Say which shards hold a document, and which models may have learnt from it. Exit code 1 where none does."""
    from fox.runs.find import find_document

    ids, found, without = find_document(document, runs or [Path("runs")])
    for place in found:
        learnt = f"; {', '.join(place.models)} may have learnt from it" if place.models else ""
        typer.echo(f"{place.run}: {place.place}{learnt}")
    for shard in without:
        typer.echo(
            f"note: {shard} keeps no ids: it was made by an older Fox. `fox run` with --redo data makes it anew."
        )
    if not found:
        typer.echo(f"nowhere (id {', '.join(sorted(ids)) or 'unknown'})")
        raise typer.Exit(1)
