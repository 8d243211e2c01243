"""How well the main text of a web page is found, and how fast: Fox beside the libraries that do it, over pages with a known truth.

    python bench/extraction.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data/web beside this repository where it is not given) has two sets:

pydocs       pages of documentation and the text of each one's main part. Words are counted: precision, recall and F1 of the multiset of
             words of each page, and their means over pages. The page's own table of contents is part of that truth; whether it belongs to
             the text is a matter of taste, so its words count for nobody: neither for who has them, nor against.
trafilatura  blogs and articles, mostly German, with a few segments of each that must be in the text (`with`) and must not (`without`).
             A segment that must be in and is, is right; F1 is over the segments of all pages, as that project counts it.

The score is the mean of the sets' F1; each set is shown, and what is left when it is left out. Every extractor reads each page's bytes and
finds the charset by itself; Fox does so in a process beside it, as users run it, and waits. Speed is pages of both sets a second on one core, in turns, the median of so many rounds.

Peers, each as it comes and with the switches that its page offers: resiliparse and trafilatura (`pip install trafilatura`).
Goals: at least the best peer's score, at 3 times trafilatura's speed (as it comes). Exit code 0 where both are met, 1 where one is missed,
3 where trafilatura or the pages are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from results import ROOT, record

SPEED_GOAL = 3.0
"""Times trafilatura's pages a second."""

Extractor = Callable[[bytes], str]


class Score(NamedTuple):
    precision: float
    recall: float
    f1: float


class Marked(NamedTuple):
    """A page of pydocs: its words, and those of its table of contents."""

    name: str
    page: bytes
    words: Counter[str]
    contents: Counter[str]


class Segmented(NamedTuple):
    """A page of trafilatura's: what must be in its text, and what must not."""

    name: str
    page: bytes
    within: list[str]
    without: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the speeds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "web")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not (arguments.data / "pydocs" / "ground_truth.jsonl.gz").exists():
        print(f"{arguments.data} has no pages: name a folder with --data")
        return 3
    try:
        extractors = {"fox": _fox(), **_peers()}
    except ImportError as error:
        print(f"{error.name or error} is not installed: pip install trafilatura lxml_html_clean resiliparse")
        return 3
    marked, segmented = read_pydocs(arguments.data / "pydocs"), read_trafilatura(arguments.data / "trafilatura")
    scores = {}
    for name, extract in extractors.items():
        texts = {page.name: extract(page.page) for page in (*marked, *segmented)}
        scores[name] = score_pydocs(marked, texts), score_trafilatura(segmented, texts)
    speeds = speeds_of(extractors, [p.page for p in (*marked, *segmented)], 1 if arguments.quick else arguments.rounds)
    return tell(scores, speeds, arguments)


def _fox() -> Extractor:
    """As users run it: in the process that a hostile page can end."""
    from fox.data.web.reader import PageReader

    reader = PageReader()
    return lambda page: reader.read(page).text


def _peers() -> dict[str, Extractor]:
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    def resiliparse(**options: Any) -> Extractor:
        def extract(page: bytes) -> str:
            tree = HTMLTree.parse_from_bytes(page, detect_encoding(page, from_html_meta=True) or "utf-8")
            return extract_plain_text(tree, main_content=True, **options)

        return extract

    def of_trafilatura(**options: Any) -> Extractor:
        return lambda page: trafilatura.extract(page, **options) or ""

    return {
        "resiliparse": resiliparse(),
        "resiliparse, no comments": resiliparse(comments=False, post_meta=False, alt_texts=False),
        "trafilatura": of_trafilatura(),
        "trafilatura, no comments": of_trafilatura(include_comments=False),
        "trafilatura, precision": of_trafilatura(include_comments=False, favor_precision=True),
        "trafilatura, recall": of_trafilatura(include_comments=False, favor_recall=True),
        "trafilatura, fast": of_trafilatura(include_comments=False, fast=True),
    }


def words_of(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def read_pydocs(folder: Path) -> list[Marked]:
    pages = []
    for line in gzip.decompress((folder / "ground_truth.jsonl.gz").read_bytes()).splitlines():
        truth = json.loads(line)
        page = gzip.decompress((folder / "html" / f"{truth['file']}.gz").read_bytes())
        words, contents = words_of(truth["main_text"]), contents_of(page)
        pages.append(Marked(truth["file"], page, words - contents, contents))
    return pages


def contents_of(page: bytes) -> Counter[str]:
    """The words of the tables of contents within the main part: a list of links to the page's own sections, or to the pages below it."""
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse_from_bytes(page, "utf-8")
    assert tree.document
    words: Counter[str] = Counter()
    for table in tree.document.query_selector_all("div[role=main] .contents, div[role=main] .toctree-wrapper"):
        words += words_of(re.sub(r"<[^>]*>", " ", table.html))
    return words


def read_trafilatura(folder: Path) -> list[Segmented]:
    truth = json.loads((folder / "evaldata.json").read_text(encoding="utf-8"))
    return [
        Segmented(
            entry["file"],
            gzip.decompress((folder / "html" / f"{entry['file']}.gz").read_bytes()),
            entry["with"],
            entry["without"],
        )
        for entry in truth.values()
    ]


def score_page(page: Marked, text: str) -> Score | None:
    """None where nothing is left of a page without its table of contents."""
    wanted, got = page.words, words_of(text)
    if wanted.total() < 20:
        return None
    right = (wanted & got).total()
    wrong = (got - wanted - page.contents).total()
    precision, recall = right / max(1, right + wrong), right / wanted.total()
    return Score(precision, recall, 2 * right / (right + wrong + wanted.total()))


def score_pydocs(pages: list[Marked], texts: dict[str, str]) -> Score:
    scores = [score for page in pages if (score := score_page(page, texts[page.name]))]
    return Score(*(statistics.fmean(column) for column in zip(*scores, strict=True)))


def segments_of(page: Segmented, text: str) -> tuple[int, int, int]:
    """Segments that are rightly in, missing, and wrongly in."""
    text = " ".join(text.split())
    inside = [" ".join(segment.split()) in text for segment in page.within]
    outside = [" ".join(segment.split()) in text for segment in page.without]
    return sum(inside), len(inside) - sum(inside), sum(outside)


def score_trafilatura(pages: list[Segmented], texts: dict[str, str]) -> Score:
    right, missing, wrong = (
        sum(column) for column in zip(*(segments_of(page, texts[page.name]) for page in pages), strict=True)
    )
    return Score(right / max(1, right + wrong), right / (right + missing), 2 * right / (2 * right + missing + wrong))


def speeds_of(extractors: dict[str, Extractor], pages: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Pages a second of each extractor, in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in extractors}
    for _ in range(rounds):
        for name, extract in extractors.items():
            start = time.perf_counter()
            for page in pages:
                extract(page)
            speeds[name].append(len(pages) / (time.perf_counter() - start))
    return speeds


def tell(scores: dict[str, tuple[Score, Score]], speeds: dict[str, list[float]], arguments: argparse.Namespace) -> int:
    """Print the table, keep the row, and judge."""
    means = {name: statistics.fmean(score.f1 for score in both) for name, both in scores.items()}
    rates = {name: statistics.median(rounds) for name, rounds in speeds.items()}
    print(f"{'':26}{'pydocs':^24}{'trafilatura':^24}{'both':>7}{'without':>20}{'pages/s':>18}")
    print(
        f"{'':26}{'P':>8}{'R':>8}{'F1':>8}{'P':>8}{'R':>8}{'F1':>8}{'F1':>7}{'pydocs':>10}{'trafil.':>10}{'(spread)':>18}"
    )
    for name, (pydocs, blogs) in scores.items():
        spread = (max(speeds[name]) - min(speeds[name])) / rates[name]
        figures = "".join(f"{figure:8.3f}" for figure in (*pydocs, *blogs))
        print(
            f"{name:26}{figures}{means[name]:7.3f}{blogs.f1:10.3f}{pydocs.f1:10.3f}{rates[name]:11.1f} ({spread:4.0%})"
        )
    best = max((name for name in means if name != "fox"), key=means.__getitem__)
    speed = rates["fox"] / rates["trafilatura"]
    result = {
        "F1": ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()),
        "pages/s": ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()),
        "Fox's on pydocs, trafilatura": " and ".join(f"{score.f1:.3f}" for score in scores["fox"]),
        f"best peer ({best})": " and ".join(f"{score.f1:.3f}" for score in scores[best]),
        "times trafilatura's speed": f"{speed:.1f}",
        "sets on which Fox is not behind": ", ".join(_not_behind(scores)) or "none",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("extraction.py", result)
    print(
        f"extraction: F1 {means['fox']:.3f} (goal: {best}'s {means[best]:.3f}); ratio {speed:.1f} (goal {SPEED_GOAL})"
    )
    return 0 if means["fox"] >= means[best] and speed >= SPEED_GOAL else 1


def _not_behind(scores: dict[str, tuple[Score, Score]]) -> list[str]:
    """The sets of which no peer has a better F1: what is left when the other one is left out."""
    return [
        name
        for place, name in enumerate(("pydocs", "trafilatura"))
        if scores["fox"][place].f1 >= max(both[place].f1 for both in scores.values())
    ]


if __name__ == "__main__":
    sys.exit(main())
