"""How vocabularies fit some texts, side by side: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fox.artifacts import write_atomically
from fox.report import quantities
from fox.report.html import icon_address, template
from fox.tokenizer import Tokenizer
from fox.tokenizer.fit import Fit, unused_entries


@dataclass
class Vocabulary:
    """A tokenizer, what it is called, and its fit to each text by the text's label."""

    name: str
    tokenizer: Tokenizer
    fits: dict[str, Fit] = field(default_factory=dict)

    def add(self, label: str, fit: Fit) -> None:
        """Count a fit to what was measured of this label before."""
        before = self.fits.get(label)
        self.fits[label] = fit if before is None else before.with_(fit)


def write_page(path: Path, vocabularies: Sequence[Vocabulary]) -> None:
    """Write the page. All have been measured on the same texts; names and labels are foreign text, and escaped."""
    labels = list(vocabularies[0].fits)
    page = template("vocabulary.html.jinja").render(
        icon=icon_address(),
        names=[vocabulary.name for vocabulary in vocabularies],
        sizes=[_size(vocabulary) for vocabulary in vocabularies],
        texts=[(label, quantities.size(vocabularies[0].fits[label].bytes)) for label in labels],
        bytes_per_token=_compared(vocabularies, "bytes_per_token", partial(max, key=float)),
        tokens_per_word=_compared(vocabularies, "tokens_per_word", partial(min, key=float)),
    )
    write_atomically(path, page.encode(errors="replace"))


def _size(vocabulary: Vocabulary) -> tuple[str, str, str]:
    size = vocabulary.tokenizer.vocab_size
    unused = unused_entries(vocabulary.tokenizer, vocabulary.fits.values())
    return quantities.exact(size), quantities.exact(unused), quantities.share(unused, size)


def _compared(
    vocabularies: Sequence[Vocabulary], what: str, best: Callable[[list[str]], str]
) -> list[list[tuple[str, bool]]]:
    """A row a text, with a figure a vocabulary and whether it is the best one of them."""
    rows = []
    for label in vocabularies[0].fits:
        figures = [quantities.decimal(getattr(vocabulary.fits[label], what), 3) for vocabulary in vocabularies]
        winner = best(figures)
        rows.append([(figure, figure == winner) for figure in figures])
    return rows
