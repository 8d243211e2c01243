"""`fox tokenizer cut` and `fox tokenizer report`: smaller vocabularies of a trained one, and how well vocabularies fit somebody's text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fox.artifacts import folder_made_whole
from fox.errors import UserError
from fox.progress import meter
from fox.report.vocabulary import Vocabulary, write_page
from fox.runs.named_text import documents_of
from fox.tokenizer import Tokenizer
from fox.tokenizer.cut import cut_tokenizer
from fox.tokenizer.fit import fit_of, unused_entries


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a run, a model's or a tokenizer's folder, or a .gguf file. Raises UserError where there is none."""
    if path.is_file():
        from fox.model.stored import open_model  # it needs torch

        return open_model(path).tokenizer
    of_run = path / "tokenizer"
    return Tokenizer.load(of_run if of_run.is_dir() else path)


def cut(source: Path, entries: int, out: Path) -> Tokenizer:
    """Write the tokenizer of the first `entries` entries into a new folder. Raises UserError where it can't be, or the folder is not new."""
    if out.exists():
        raise UserError("--out", str(out), problem="is there already", mend="Name a folder that is not.")
    made = cut_tokenizer(open_tokenizer(source), entries)
    with folder_made_whole(out) as partial:
        made.save(partial)
    return made


def report(folders: Sequence[Path], texts: Sequence[str], page: Path | None, console: Console) -> None:
    """Print how each tokenizer fits each text, and write it into a page. A text is FILE or LABEL=FILE; those of one label are counted together."""
    if not texts:
        mend = "Name a file or folder: --text FILE, or --text LABEL=FILE."
        raise UserError("--text", problem="is missing: on what are these tokenizers to be measured", mend=mend)
    labelled = [_labelled(text) for text in texts]
    vocabularies = [Vocabulary(str(folder), open_tokenizer(folder)) for folder in folders]
    with meter("tokenizer report", None, "documents", console=console) as shown:
        for label, path in labelled:
            contents = [document.content for document in documents_of(path, "text", "--text")]
            for vocabulary in vocabularies:
                vocabulary.add(label, fit_of(vocabulary.tokenizer, contents))
                shown.advance(len(contents), note=label)
    _print(vocabularies)
    if page is not None:
        write_page(page, vocabularies)


def _labelled(text: str) -> tuple[str, Path]:
    label, found, path = text.partition("=")
    named = (label, Path(path)) if found and label and not Path(text).exists() else (Path(text).name, Path(text))
    if not named[1].exists():
        raise UserError("--text", text, problem="there is no such file or folder")
    return named


def _print(vocabularies: Sequence[Vocabulary]) -> None:
    console = Console(highlight=False)
    for number, vocabulary in enumerate(vocabularies):
        unused = unused_entries(vocabulary.tokenizer, vocabulary.fits.values())
        size = vocabulary.tokenizer.vocab_size
        console.print(
            f"{chr(10) if number else ''}[bold]{escape(vocabulary.name)}[/bold]: {size:,} entries, of which {unused:,} ({unused / size:.0%}) are in none of these texts",
            soft_wrap=True,
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("text")
        for column in ("bytes", "tokens", "bytes a token", "tokens a word"):
            table.add_column(column, justify="right")
        for label, fit in vocabulary.fits.items():
            table.add_row(
                escape(label),
                f"{fit.bytes:,}",
                f"{fit.tokens:,}",
                f"{fit.bytes_per_token:.3f}",
                f"{fit.tokens_per_word:.3f}",
            )
        console.print(table)
