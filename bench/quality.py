"""Whether the score of documents finds those that are like the examples, and how fast it reads.

    python bench/quality.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data beside this repository where it is not given) has documents of known kinds. In each setting some documents are
examples, and others of the same kind are hidden among ordinary ones, one in ten. Nothing but the examples is named: ordinary documents are drawn from
those that are ranked, hidden ones among them, as where a recipe names no `bad`. A tenth is then moved, as a recipe's `share` has it.

books        chapters of two novels are the examples; hidden are chapters of others. Ordinary: articles of an encyclopedia, and
             three kinds of what a web corpus is full of: menus and notes around pages of documentation, dialogues, and articles with their words shuffled.
instructions instructions with answers are the examples; hidden are others. Ordinary: articles that are cut to the same lengths, so that the length
             tells nothing, and dialogues.

AUC is of hidden against ordinary documents: how often a hidden one is scored above an ordinary one. Found is the share of
hidden ones among those that are moved. Speed is text a second on one core, scored document by document as a task does it, the median of so many rounds.

What it does not show: that a model learns more from what is moved. Kinds of text that are this unlike are told apart by their words; what is well
or badly written within one kind is harder, and no such judgements are at hand. No model was trained for this page.
Goals: an AUC of 0.95 in both settings, at 10 MB/s. Exit code 0 where they are met, 1 where one is missed, 3 where scikit-learn or the documents are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from results import ROOT, record

from fox.data.document import Document

AUC_GOAL = 0.95
SPEED_GOAL = 10.0
"""MB/s."""

EXAMPLES, HIDDEN = 400, 400
ORDINARY = 9 * HIDDEN


class Setting(NamedTuple):
    """Documents of known kinds."""

    name: str
    good: list[Document]
    hidden: list[Document]
    ordinary: dict[str, list[Document]]
    """By kind, so that each can be told."""


class Found(NamedTuple):
    auc: float
    by_kind: dict[str, float]
    found: float
    """The share of the hidden ones among those moved."""
    seconds: float
    """For learning."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the speed, and nothing kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not (arguments.data / "text").is_dir():
        print(f"{arguments.data} has no documents: name a folder with --data")
        return 3
    try:
        import sklearn  # noqa: F401
    except ImportError:
        print("scikit-learn is not installed: pip install 'foxlm[data]'")
        return 3
    settings = [books(arguments.data), instructions(arguments.data)]
    found = {setting.name: measure(setting) for setting in settings}
    speeds = speeds_of(settings[0], 1 if arguments.quick else arguments.rounds)
    return tell(found, speeds, arguments)


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def texts_of(path: Path) -> list[str]:
    return [str(row["text"]) for row in read_rows(path)]


def chats_of(path: Path, most: int) -> list[str]:
    texts: list[str] = []
    for row in read_rows(path):
        messages = row["messages"]
        assert isinstance(messages, list)
        texts.append("\n".join(message["content"] for message in messages))
        if len(texts) == most:
            break
    return texts


def documents(texts: list[str]) -> list[Document]:
    return [Document("ranked", str(number), text=text) for number, text in enumerate(texts)]


def books(data: Path) -> Setting:
    draw = random.Random(1)
    by_title: dict[str, list[str]] = {}
    for part in ("00", "01"):
        for row in read_rows(data / f"text/books-{part}-of-02.jsonl.gz"):
            by_title.setdefault(str(row["title"]).partition(":")[0].partition(",")[0], []).append(str(row["text"]))
    titles = sorted(by_title, key=lambda title: -len(by_title[title]))
    examples = [text for title in titles[:2] for text in by_title[title]]
    others = [text for title in titles[2:] for text in by_title[title]]
    draw.shuffle(examples)
    draw.shuffle(others)
    wiki = texts_of(data / "text/wikipedia-00-of-04.jsonl.gz")
    shuffled = [" ".join(draw.sample(words, len(words))) for text in wiki[2400:2800] if (words := text.split())]
    around = list(boilerplate(data))
    dialogues = chats_of(data / "chat/sgd_multi_turn.jsonl.gz", 600)
    kinds = {"articles": wiki[: ORDINARY - 1000 - len(around)], "dialogues": dialogues, "shuffled": shuffled}
    ordinary = {kind: documents(texts) for kind, texts in {**kinds, "menus": around}.items() if texts}
    return Setting("books", documents(examples[:EXAMPLES]), documents(others[:HIDDEN]), ordinary)


def boilerplate(data: Path) -> Iterator[str]:
    """What is around the main part of pages of documentation: all their words without the lines that the truth has."""
    folder = data / "web/pydocs"
    for truth in read_rows(folder / "ground_truth.jsonl.gz"):
        page = gzip.decompress((folder / "html" / f"{truth['file']}.gz").read_bytes()).decode(errors="replace")
        page = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
        main = set(str(truth["main_text"]).split("\n"))
        lines = (" ".join(line.split()) for line in re.sub(r"<[^>]*>", "\n", page).split("\n"))
        if text := "\n".join(line for line in lines if line and line not in main):
            yield text


def instructions(data: Path) -> Setting:
    draw = random.Random(2)
    asked = [text for text in chats_of(data / "chat/t0_single_turn.jsonl.gz", 10**9) if len(text) >= 200]
    draw.shuffle(asked)
    wiki = texts_of(data / "text/wikipedia-01-of-04.jsonl.gz")
    lengths = [len(text) for text in asked[:3000]]
    articles = [text[:length] for text, length in zip(wiki, lengths, strict=False)]
    kinds = {
        "articles": articles,
        "dialogues": chats_of(data / "chat/sgd_multi_turn.jsonl.gz", ORDINARY - len(articles)),
    }
    hidden = asked[EXAMPLES : EXAMPLES + HIDDEN]
    return Setting(
        "instructions", documents(asked[:EXAMPLES]), documents(hidden), {k: documents(v) for k, v in kinds.items()}
    )


def measure(setting: Setting) -> Found:
    from sklearn.metrics import roc_auc_score

    from fox.data.quality.examples import examples_of, together
    from fox.data.quality.train import learn

    ordinary = [document for kind in setting.ordinary.values() for document in kind]
    good = examples_of(setting.good)
    start = time.perf_counter()
    score, _ = learn(good, together([examples_of([*setting.hidden, *ordinary])], without=good))
    seconds = time.perf_counter() - start
    hidden = [score.of(document.content) for document in setting.hidden]
    by_kind = {kind: [score.of(d.content) for d in found] for kind, found in setting.ordinary.items()}

    def auc(others: list[float]) -> float:
        return float(roc_auc_score([1] * len(hidden) + [0] * len(others), hidden + others))

    others = [value for values in by_kind.values() for value in values]
    most = round((len(hidden) + len(others)) / 10)
    best = sorted([(value, 1) for value in hidden] + [(value, 0) for value in others], reverse=True)[:most]
    found = sum(is_hidden for _, is_hidden in best) / most
    return Found(auc(others), {kind: auc(values) for kind, values in by_kind.items()}, found, seconds)


def speeds_of(setting: Setting, rounds: int) -> list[float]:
    """MB of text a second, of documents that are looked at as a whole: of longer ones most costs nothing, and would flatter."""
    from fox.data.quality.examples import examples_of
    from fox.data.quality.score import FIRST_WORDS
    from fox.data.quality.train import learn

    ordinary = [document for kind in setting.ordinary.values() for document in kind]
    score, _ = learn(examples_of(setting.good), examples_of(ordinary))
    texts = [d.content for d in [*setting.good, *ordinary] if len(d.content.split()) < 0.9 * FIRST_WORDS]
    size = sum(len(text.encode()) for text in texts) / 1e6
    speeds = []
    for _ in range(rounds):
        start = time.process_time()
        for text in texts:
            score.of(text)
        speeds.append(size / (time.process_time() - start))
    return speeds


def tell(found: dict[str, Found], speeds: list[float], arguments: argparse.Namespace) -> int:
    """Print the table, keep the row, and judge."""
    print(f"{'':14}{'AUC':>8}{'found':>8}{'learnt in':>11}   AUC against each kind")
    for name, of in found.items():
        kinds = ", ".join(f"{kind} {auc:.3f}" for kind, auc in of.by_kind.items())
        print(f"{name:14}{of.auc:8.4f}{of.found:8.1%}{of.seconds:9.1f} s   {kinds}")
    speed = statistics.median(speeds)
    spread = (max(speeds) - min(speeds)) / speed
    print(f"{speed:.1f} MB/s on one core (spread {spread:.0%})")
    result = {
        "AUC": ", ".join(f"{name} {of.auc:.4f}" for name, of in found.items()),
        "found": ", ".join(f"{name} {of.found:.1%}" for name, of in found.items()),
        "MB/s a core": f"{speed:.1f} ({spread:.0%})",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("quality.py", result)
    least = min(of.auc for of in found.values())
    print(f"quality: least AUC {least:.4f} (goal {AUC_GOAL}); {speed:.1f} MB/s (goal {SPEED_GOAL:.0f})")
    return 0 if least >= AUC_GOAL and speed >= SPEED_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
