"""recipes/data-commoncrawl.toml makes a corpus as it stands, of real archives instead of a snapshot, and says of every page what became of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.journey.micro_run import fox

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
RECIPE = ROOT / "recipes" / "data-commoncrawl.toml"

pytestmark = pytest.mark.skipif(
    not (SHARED / "web" / "warc").is_dir() or not (SHARED / "eval").is_dir(), reason="needs ../shared/data/web and eval"
)


class Made(NamedTuple):
    reading: dict[str, Any]
    funnel: dict[str, Any]
    seconds: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Only where the archives are, and by how many the work is done, is said otherwise than the recipe has it."""
    from pyarrow.parquet import read_table

    world = tmp_path_factory.mktemp("world")
    (world / "data").symlink_to(SHARED)  # where the recipe looks for the questions of the evaluations
    archives = "-o", f"source.web.path={SHARED}/web/warc", "-o", "source.web.files=*.warc*"
    fox(world, "corpus", str(RECIPE), *archives, "-o", "data.executor.workers=1")
    run = world / "runs/data-commoncrawl"
    facts = json.loads((run / "manifests/corpus.json").read_bytes())["facts"]
    of_web = facts["sources"]["web"]
    rows = [row for path in sorted((run / "corpus/web").glob("*.parquet")) for row in read_table(path).to_pylist()]
    return Made(of_web["reading"], of_web["funnel"], facts["seconds"], rows)


def test_no_page_is_dropped_in_silence(made: Made) -> None:
    dropped = sum(of["documents"] for reasons in made.funnel["dropped"].values() for of in reasons.values())
    sizes = sum(of["bytes"] for reasons in made.funnel["dropped"].values() for of in reasons.values())
    cut = sum(size for of_step in made.funnel["cut"].values() for size in of_step.values())
    read, kept = made.funnel["read"], made.funnel["kept"]
    assert read["documents"] == made.reading["good"] == 116
    assert read["documents"] == dropped + kept["documents"]
    assert made.reading["records"] == made.reading["good"] + sum(made.reading["bad"].values()) == 118
    assert sum(made.reading["left_out"].values()) == 204  # pictures, redirects, robots.txt and the like
    assert kept["bytes"] == sum(len(row["text"].encode()) for row in made.rows)
    masked = read["bytes"] - sizes - cut - kept["bytes"]  # what stands for personal data is of another length
    assert abs(masked) < 100 * sum(made.reading["masked"].values())


def test_the_pages_that_stay_are_english_prose(made: Made) -> None:
    addresses = {row["url"] for row in made.rows}
    assert len(made.rows) == made.funnel["kept"]["documents"] == 14
    assert {"http://www.archive.org/about/about.php", "http://www.iana.org/"} <= addresses
    assert not any("psb556" in address or "wikipedia" in address for address in addresses)  # Chinese, Aragonese
    assert made.funnel["languages"] == {"en": 14}
    assert all(row["language_score"] >= 0.65 and len(row["text"].split()) >= 40 for row in made.rows)


def test_terms_are_told_of_those_that_state_them(made: Made) -> None:
    assert made.funnel["licenses"] == {"not stated": 13, "CC BY-NC-ND 3.0": 1}


def test_the_time_of_each_step_is_kept(made: Made) -> None:
    assert list(made.seconds["read"]) == [
        "read",
        "licence",
        "filter",
        "evaluation texts",
        "mask personal data",
        "write",
    ]
    assert list(made.seconds) == [
        "read",
        "duplicates",
        "shingles",
        "write",
    ]  # nothing is nearly alike: no texts compared
    assert made.seconds["read"]["read"] > made.seconds["read"]["licence"]
    assert (
        made.seconds["write"]["write"] > 0.005
    )  # 14 documents are one group of rows, which is written when they have ended
