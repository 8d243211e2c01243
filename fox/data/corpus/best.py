"""The rounds that move the best documents of a source into a source of their own, by a score that is learnt from examples.

First each task gives a few of its documents, where these stand for the ordinary ones; the score is learnt from them here, in one process. Then
each task scores its documents; here it is found where the best ones begin; and each task writes its documents into the two sources. All of it comes after
filters and duplicates, so that the examples are held against what would be read otherwise, and the share is one of what is left.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from fox.artifacts import write_atomically, write_json
from fox.data.corpus.blocks import Each, PathOf
from fox.data.corpus.executor import Round, do_shown_round
from fox.data.corpus.funnel import SAMPLE_CHARACTERS, SAMPLES, Funnel
from fox.data.corpus.store import CorpusWriter, read_documents
from fox.data.document import Document
from fox.data.quality import examples, rank
from fox.data.quality.examples import Examples, examples_of, hash_of, read_examples
from fox.data.quality.score import Score
from fox.data.quality.train import Measures, learn
from fox.progress import meter
from fox.recipe import Recipe
from fox.recipe.schema import Executor

SCORE = "quality.safetensors"
"""Below the corpus: the score."""

RANKING = "quality.json"
"""Below the corpus: how well the score tells examples apart, and for each ranked source where the best begin, and what the first and the last are."""

WEAK_AUC = 0.7
"""Of held-out examples, below which a score says little."""

BARS = 40
"""Of the picture of a source's scores."""


class Places(NamedTuple):
    """Where the rounds find and leave things; sent to every process."""

    documents: PathOf
    """Of ranked sources: the documents that passed everything else."""
    whole: PathOf
    """Where they go."""
    before: Path
    """The counts of all tasks until now, and `counts` with what was moved."""
    counts: Path
    folder: Path
    """What the rounds leave for each other."""


def move_best(
    recipe: Recipe, places: Places, labels: Sequence[str], executor: Executor, work: Path, console: Console
) -> dict[str, Any]:
    """Divide the documents of each ranked source; what is to be known of it, for the manifest. Leaves SCORE and RANKING in `places.folder`.

    Raises UserError where there are too few examples.
    """
    settings = recipe.data.quality
    assert settings
    best_of = {source.best_of: name for name, source in recipe.source.items() if source.best_of}
    for folder in (places.folder, places.counts):
        folder.mkdir(parents=True, exist_ok=True)

    def do(name: str, function: Any) -> None:
        do_shown_round(executor, Round(name, [Each(name, function)], labels, work / "executor" / name), console)

    counted = [_counted(places.before, task) for task in range(len(labels))]
    kept = [of_task["funnel"]["kept"]["documents"] for of_task in counted]
    ranked = {name: [task for task, c in enumerate(counted) if c["source"] == name] for name in best_of}
    total = sum(kept[task] for tasks in ranked.values() for task in tasks)
    if not (places.folder / SCORE).exists():
        if not settings.bad:
            limit = min(2**64, 2**64 * examples.MOST // max(1, total))
            do("sample", partial(_sample, places, limit, frozenset(best_of)))
        tasks = [task for of_source in ranked.values() for task in of_source]
        _learn(recipe, places.folder, tasks, console)
    do("score", partial(_score, places, frozenset(best_of)))
    found = {name: _ranking(places.folder, tasks, settings.share) for name, tasks in ranked.items()}
    do("move the best", partial(_move, places, {name: (best_of[name], of["least"]) for name, of in found.items()}))
    facts = json.loads((places.folder / SCORE).with_suffix(".learnt.json").read_bytes())
    sources = {name: {"best": best_of[name], **_told(places.folder, ranked[name], of)} for name, of in found.items()}
    write_json(places.folder / RANKING, {**facts, "sources": sources})
    plain = {name: {k: v for k, v in of.items() if k not in ("first", "last", "bars")} for name, of in sources.items()}
    return {**facts, "sources": plain}


def _counted(folder: Path, task: int) -> dict[str, Any]:
    counted: dict[str, Any] = json.loads((folder / f"{task:05}.json").read_bytes())
    return counted


def _documents(places: Places, source: str, task: int) -> Iterable[Document]:
    path = places.documents(source, task)
    return read_documents(path) if path.exists() else ()


def _sample(places: Places, limit: int, ranked: frozenset[str], task: int) -> None:
    source = _counted(places.before, task)["source"]
    if source in ranked:
        drawn = (document for document in _documents(places, source, task) if hash_of(document) < limit)
        examples_of(drawn).save(places.folder / f"sample/{task:05}")


def _learn(recipe: Recipe, folder: Path, tasks: Sequence[int], console: Console) -> None:
    """Leave the score and its measures, the score last: it is there once all is."""
    settings = recipe.data.quality
    assert settings
    with meter("learn what is good", None, "steps", console=console):
        good, of_good = read_examples("data.quality.good", settings.good)
        unusable = {"good": of_good.bad.total()}
        if settings.bad:
            ordinary, of_bad = read_examples("data.quality.bad", settings.bad)
            unusable["bad"] = of_bad.bad.total()
        else:
            parts = [Examples.load(folder / f"sample/{task:05}") for task in tasks]
            ordinary = examples.together(parts, without=good)
            examples.check_number("data.quality.good", settings.good, len(ordinary.hashes), "ordinary documents")
        score, measures = learn(good, ordinary)
    facts = {"examples": score.about, "unusable": unusable, "held_out": measures._asdict()}
    write_json((folder / SCORE).with_suffix(".learnt.json"), facts)
    score.save(folder / SCORE)
    _tell(measures, facts, console)


def _tell(measures: Measures, facts: dict[str, Any], console: Console) -> None:
    lines = [
        f"of {facts['examples']['good']:,} good and {facts['examples']['ordinary']:,} ordinary examples, {measures.examples:,} were held out: "
        f"the score has a good one above an ordinary one {measures.auc:.1%} of the time"
    ]
    if measures.auc < WEAK_AUC:
        lines.append("warning: that is little more than chance. Are the examples unlike the source in their words?")
    lines += [
        f"warning: {count:,} records of data.quality.{key} could not be used"
        for key, count in facts["unusable"].items()
        if count
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _keys_path(folder: Path, task: int) -> Path:
    return folder / f"keys/{task:05}.npy"


def _score(places: Places, ranked: frozenset[str], task: int) -> None:
    source = _counted(places.before, task)["source"]
    if source not in ranked:
        return
    score = _score_at(places.folder / SCORE)
    keys = (rank.key_of(score.of(document.content), document) for document in _documents(places, source, task))
    path = _keys_path(places.folder, task)
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.fromiter(keys, dtype=np.uint64), allow_pickle=False)


@lru_cache(maxsize=1)
def _score_at(path: Path) -> Score:
    return Score.load(path)


def _ranking(folder: Path, tasks: Sequence[int], share: float) -> dict[str, Any]:
    """Of one source: how many documents it has, how many are best, the key of the last of these, and how many scores there are in each bar."""

    def parts() -> Iterable[np.ndarray]:
        return (np.load(_keys_path(folder, task), allow_pickle=False) for task in tasks)

    documents = sum(keys.size for keys in parts())
    wanted = min(documents - 1, max(1, round(share * documents)))  # neither is left empty
    least = rank.least_of_best(parts, wanted)
    scores = [rank.scores_of(keys) for keys in parts() if keys.size]
    lowest = min((float(of_task.min()) for of_task in scores), default=0.0)
    highest = max((float(of_task.max()) for of_task in scores), default=0.0)
    bars = sum(
        (np.histogram(of_task, bins=BARS, range=(lowest, highest))[0] for of_task in scores), start=np.zeros(BARS, int)
    )
    threshold = float(rank.scores_of(np.array([min(least, 2**64 - 1)], dtype=np.uint64))[0])
    return {
        "documents": documents,
        "least": least,
        "threshold": threshold,
        "lowest": lowest,
        "highest": highest,
        "bars": bars.tolist(),
    }


def _move(places: Places, best_of: dict[str, tuple[str, int]], task: int) -> None:
    counted = _counted(places.before, task)
    source = counted["source"]
    if source not in best_of:
        write_json(places.counts / f"{task:05}.json", counted)
        return
    best, least = best_of[source]
    keys = np.load(_keys_path(places.folder, task), allow_pickle=False)
    funnel, of_best, ends = Funnel(), Funnel(), Ends()
    funnel.before_the_last_step(counted["funnel"])
    with (
        CorpusWriter(places.whole(source, task), source, is_chat=False) as staying,
        CorpusWriter(places.whole(best, task), best, is_chat=False) as moved,
    ):
        documents = _documents(places, source, task)
        for document, key, score in zip(documents, keys.tolist(), rank.scores_of(keys).tolist(), strict=True):
            ends.add(document, key, score)
            if key >= least:
                moved.write(document, score)
                funnel.move(document, best)
                of_best.arrive(document)
            else:
                staying.write(document, score)
                funnel.keep(document)
    write_json(places.folder / f"ends/{task:05}.json", ends.as_dict())
    counted["funnel"] = funnel.as_dict()
    write_json(places.counts / f"{task:05}.json", {**counted, "moved": {best: of_best.as_dict()}})


class Ends:
    """The best and the worst documents, to look at."""

    def __init__(self) -> None:
        self.first: list[tuple[int, dict[str, Any]]] = []
        self.last: list[tuple[int, dict[str, Any]]] = []

    def add(self, document: Document, key: int, score: float) -> None:
        is_first = len(self.first) < SAMPLES or key > self.first[-1][0]
        is_last = len(self.last) < SAMPLES or key < self.last[-1][0]
        if is_first or is_last:
            about = {"place": document.place, "url": document.about.url, "text": document.content[:SAMPLE_CHARACTERS]}
            self._take([(key, {"score": round(score, 4), **about})], [(key, {"score": round(score, 4), **about})])

    def add_part(self, part: dict[str, Any]) -> None:
        self._take(*([(key, sample) for key, sample in part[name]] for name in ("first", "last")))

    def as_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}

    def _take(self, first: list[tuple[int, dict[str, Any]]], last: list[tuple[int, dict[str, Any]]]) -> None:
        self.first = heapq.nlargest(SAMPLES, [*self.first, *first], key=_order)
        self.last = heapq.nsmallest(SAMPLES, [*self.last, *last], key=_order)


def _order(item: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    return item[0], item[1]["place"]


def _told(folder: Path, tasks: Sequence[int], ranking: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a source's ranking."""
    ends = Ends()
    for task in tasks:
        ends.add_part(json.loads((folder / f"ends/{task:05}.json").read_bytes()))
    samples = {name: [sample for _, sample in found] for name, found in ends.as_dict().items()}
    return {**{key: value for key, value in ranking.items() if key != "least"}, **samples}


def keep(folder: Path, corpus: Path) -> None:
    """Put the score and the ranking beside the documents."""
    for name in (SCORE, RANKING):
        write_atomically(corpus / name, (folder / name).read_bytes())
