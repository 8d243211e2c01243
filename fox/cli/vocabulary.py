"""The commands about the vocabulary: its training, smaller ones of it, and how well it fits a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fox.cli.arguments import Out, Override, RecipePath, Redo, first_of
from fox.cli.training import do

app = typer.Typer(
    cls=first_of("train"),
    help="Train the vocabulary: `fox tokenizer RECIPE`. Or cut a smaller one of it, or report how well it fits a text.",
)


@app.command()
def train(recipe: RecipePath, override: Override = None, out: Out = None, redo: Redo = None) -> None:
    """Train the vocabulary on the sources' training text (byte-level BPE, with the chat template stored beside it).

    The same text gives the same vocabulary. The word `train` may be left out: `fox tokenizer RECIPE`.
    """
    do(recipe, override, out, ["corpus", "tokenizer"], redo)


@app.command()
def cut(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run (runs/tiny), or a folder with a tokenizer.json.")
    ],
    entries: Annotated[int, typer.Option(metavar="N", min=1, help="How many of the first entries to keep.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the smaller tokenizer goes.")],
) -> None:
    """Make a smaller vocabulary of a trained one: what a training of that size on the same text would have given.

    A recipe takes it by `tokenizer.path`.
    """
    from fox.runs import vocabulary

    made = vocabulary.cut(source, entries, out)
    typer.echo(f"wrote {out}: {made.vocab_size:,} entries")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="TOKENIZER", help="A run, a folder with a tokenizer.json, or a .gguf file. Several are compared."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]FILE",
            help="A file or folder of text to measure on; LABEL is its source or its language. Repeat it for more.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one HTML file, too.")] = None,
) -> None:
    """Tell how well vocabularies fit texts: bytes a token, tokens a word, and entries that no text has used."""
    from rich.console import Console

    from fox.runs import vocabulary

    vocabulary.report(folders, text or [], html, Console(stderr=True))
    if html is not None:
        typer.echo(f"wrote {html}")
