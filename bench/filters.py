"""How often Fox's rules for web documents decide as datatrove's blocks do, and how fast they are.

    python bench/filters.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data beside this repository where it is not given) has `text/`, of which every so many articles of Wikipedia and chapters of books are taken,
and `web/`, of whose pages the main text is (fox/data/web). Each rule of Fox judges each document as it is, beside datatrove's block with its
defaults, which cuts words with spaCy. A decision is to keep or to drop, whatever the reason. Where they differ, it is told what each said; where they
differ because the document is not in English, for which datatrove's blocks are set here and Fox's see to it themselves, that is told apart.

Speed is documents a second on one core, in turns, the median of so many rounds: each rule alone on every document, and all four one after another
on what the ones before have left, C4's cuts included. Fox has no memory of any word when a round begins, as datatrove has none. Beside them are Fox's
other steps: the language, a list of bad words and one of addresses. The list of addresses tells how much memory it needs and how long it is read.

Peer: datatrove (`pip install datatrove spacy regex`). Goals: at least 98 % of each rule's decisions the same, and 5 times datatrove's speed for
the four rules together. Exit code 0 where all are met, 1 where one is missed, 3 where datatrove, spaCy or the documents are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from results import ROOT, record

AGREEMENT_GOAL = 0.98
SPEED_GOAL = 5.0

RULES = ("gopher", "repetition", "c4", "fineweb")
EVERY = {"wikipedia": 12, "books": 4}
"""One of so many documents of a set is taken, a fifth of them with --quick."""


class Document(NamedTuple):
    origin: str
    text: str
    language: str


Rule = Callable[[Document], tuple[str, str]]
"""The text that is left, and why the document is dropped (empty where it is kept)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the documents, one round of the speeds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not (arguments.data / "text").is_dir():
        print(f"{arguments.data} has no text/: name a folder with --data")
        return 3
    try:
        theirs = _datatrove()
    except ImportError as error:
        print(f"{error.name or error} is not installed: pip install datatrove spacy regex")
        return 3
    documents = read_documents(arguments.data, 5 if arguments.quick else 1)
    ours = _fox()
    agreement = {rule: compare(documents, ours[rule], theirs[rule], rule) for rule in RULES}
    speeds = speeds_of({"fox": ours, "datatrove": theirs}, documents, 1 if arguments.quick else arguments.rounds)
    return tell(documents, agreement, speeds, arguments)


def _fox() -> dict[str, Rule]:
    from fox.data.filters import c4, fineweb, gopher, repetition
    from fox.data.filters.page import Page

    def of(module: Any) -> Rule:
        return lambda document: (document.text, module.fault(Page(document.text, document.language)))

    def of_c4(document: Document) -> tuple[str, str]:
        text, fault, _ = c4.clean(document.text)
        return text, fault

    def together(document: Document) -> tuple[str, str]:
        """As fox/data/filters/judge.py does it, without the steps before."""
        page = Page(document.text, document.language)
        if fault := gopher.fault(page) or repetition.fault(page):
            return document.text, fault
        text, fault, _ = c4.clean(document.text)
        return text, fault or fineweb.fault(Page(text, document.language) if text != document.text else page)

    rules = {"gopher": of(gopher), "repetition": of(repetition), "c4": of_c4, "fineweb": of(fineweb)}
    return {**rules, "together": together}


def _datatrove() -> dict[str, Rule]:
    import spacy  # noqa: F401  # the blocks import it only at work
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.text import split_into_parts

    blocks = {
        "gopher": GopherQualityFilter(),
        "repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
    }

    def of(*names: str) -> Rule:
        def judge(document: Document) -> tuple[str, str]:
            theirs = Theirs(text=document.text, id="")
            for name in names:
                kept = blocks[name].filter(theirs)
                if kept is not True:
                    return theirs.text, kept[1] if isinstance(kept, tuple) else "dropped"
            return theirs.text, ""

        return judge

    def alone(name: str) -> Rule:
        judge = of(name)

        def fresh(document: Document) -> tuple[str, str]:
            split_into_parts.cache_clear()  # the last words are kept, for the blocks of one document to share
            return judge(document)

        return fresh

    return {**{name: alone(name) for name in blocks}, "together": of(*RULES)}


def read_documents(folder: Path, fewer: int) -> list[Document]:
    from fox.data.filters.language import language_of
    from fox.data.quarantine import BadRecord
    from fox.data.web.reader import PageReader

    texts: list[tuple[str, str]] = []
    for origin, every in EVERY.items():
        lines = [
            line
            for path in sorted((folder / "text").glob(f"{origin}-*"))
            for line in gzip.decompress(path.read_bytes()).splitlines()
        ]
        texts += [(origin, json.loads(line)["text"]) for line in lines[:: every * fewer]]
    reader = PageReader()
    for path in sorted((folder / "web").glob("*/html/*.gz"))[::fewer]:
        try:
            texts.append(("web", reader.read(gzip.decompress(path.read_bytes())).text))
        except BadRecord:
            continue
    return [Document(origin, text, language_of(text)[0]) for origin, text in texts if text]


def compare(documents: list[Document], ours: Rule, theirs: Rule, rule: str) -> dict[str, float]:
    """The share of the same decisions by origin, and of all; what differs is printed."""
    same, total, differences = Counter[str](), Counter[str](), Counter[str]()
    dropped = [0, 0]
    for document in documents:
        (_, our_fault), (_, their_fault) = ours(document), theirs(document)
        dropped[0] += bool(our_fault)
        dropped[1] += bool(their_fault)
        for group in (document.origin, "all", *(["English"] if document.language == "en" else [])):
            total[group] += 1
            same[group] += bool(our_fault) == bool(their_fault)
        if bool(our_fault) != bool(their_fault):
            language = "" if document.language == "en" else f", {document.language}"
            differences[
                f"{document.origin}{language}: fox {our_fault or 'keeps'}, datatrove {their_fault or 'keeps'}"
            ] += 1
    shares = {group: same[group] / total[group] for group in total}
    told = ", ".join(f"{group} {share:.2%}" for group, share in shares.items())
    print(
        f"{rule}: the same decision: {told}; dropped by fox {dropped[0]}, by datatrove {dropped[1]} of {len(documents)}"
    )
    for what, count in differences.most_common():
        print(f"    {count} x {what}")
    return shares


def speeds_of(
    rules: dict[str, dict[str, Rule]], documents: list[Document], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each rule over all documents, in turns."""
    from fox.data.filters import words

    seconds: dict[str, dict[str, list[float]]] = {who: {rule: [] for rule in (*RULES, "together")} for who in rules}
    for _ in range(rounds):
        for rule in (*RULES, "together"):
            for who, of in rules.items():
                words.forget()
                judge = of[rule]
                start = time.perf_counter()
                for document in documents:
                    judge(document)
                seconds[who][rule].append(time.perf_counter() - start)
    return seconds


def other_steps(documents: list[Document], quick: bool) -> dict[str, str]:
    """Documents a second of the steps that datatrove does otherwise, and what a list of addresses costs."""
    from fox.data.filters.bad_words import BadWords
    from fox.data.filters.blocked import BlockedUrls, blocked_url
    from fox.data.filters.language import language_of
    from fox.data.filters.lists import ListFiles

    bad_words = BadWords(
        [f"unwanted{number}" for number in range(400)] + [f"of phrase {number}" for number in range(100)]
    )
    lines = 10**5 if quick else 10**6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.txt")
        path.write_text(
            "".join(f"host{number}.example{number % 977}.com\n" for number in range(lines)), encoding="utf-8"
        )
        start = time.perf_counter()
        blocked = BlockedUrls(ListFiles("blocked_urls", [str(path)]).entries(blocked_url))
        read_s = time.perf_counter() - start
    told = {}
    for name, step in (
        ("language", language_of),
        ("bad words", lambda text: bad_words.count(text, 1)),
        ("address", lambda text: blocked.has("https://www.some.example.org/path/to/page.html?id=1")),
    ):
        start = time.perf_counter()
        for document in documents:
            step(document.text)
        told[name] = f"{len(documents) / (time.perf_counter() - start):,.0f}"
    told["address list"] = f"{blocked.bytes / lines:.1f} bytes an entry, {read_s / lines * 1e6:.1f} s a million lines"
    return told


def tell(
    documents: list[Document],
    agreement: dict[str, dict[str, float]],
    seconds: dict[str, dict[str, list[float]]],
    arguments: argparse.Namespace,
) -> int:
    """Print the table, keep the row, and judge."""
    megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    times = {who: {rule: statistics.median(rounds) for rule, rounds in of.items()} for who, of in seconds.items()}
    print(
        f"\n{len(documents)} documents, {megabytes:.1f} MB: {dict(Counter(document.origin for document in documents))}"
    )
    print(
        f"{'':12}{'same':>8}{'fox docs/s':>12}{'MB/s':>8}{'(spread)':>10}{'datatrove docs/s':>18}{'MB/s':>8}{'(spread)':>10}{'ratio':>8}"
    )
    for rule in (*RULES, "together"):
        same = f"{agreement[rule]['all']:8.2%}" if rule in agreement else " " * 8
        row = f"{rule:12}{same}"
        for who, width in (("fox", 12), ("datatrove", 18)):
            median, rounds = times[who][rule], seconds[who][rule]
            spread = (max(rounds) - min(rounds)) / median
            row += f"{len(documents) / median:{width},.0f}{megabytes / median:8.2f}{spread:10.0%}"
        print(f"{row}{times['datatrove'][rule] / times['fox'][rule]:8.1f}")
    others = other_steps(documents, arguments.quick)
    print("other steps, documents/s: " + "; ".join(f"{name} {told}" for name, told in others.items()))
    ratio = times["datatrove"]["together"] / times["fox"]["together"]
    least = min(agreement, key=lambda rule: agreement[rule]["all"])
    result = {
        "the same decision": ", ".join(f"{rule} {shares['all']:.2%}" for rule, shares in agreement.items()),
        "MB/s, fox and datatrove": ", ".join(
            f"{rule} {megabytes / times['fox'][rule]:.1f} and {megabytes / times['datatrove'][rule]:.2f}"
            for rule in (*RULES, "together")
        ),
        "other steps, documents/s": ", ".join(f"{name} {told}" for name, told in others.items()),
        "times datatrove's speed": f"{ratio:.1f}",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("filters.py", result)
    print(
        f"filters: least agreement {agreement[least]['all']:.2%}, {least} (goal {AGREEMENT_GOAL:.0%}); ratio {ratio:.1f} (goal {SPEED_GOAL})"
    )
    return 0 if agreement[least]["all"] >= AGREEMENT_GOAL and ratio >= SPEED_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
