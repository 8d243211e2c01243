"""How many web pages a core makes into a corpus, where their time goes, and whether time and memory stay in proportion as the archives grow.

    python bench/data_throughput.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data beside this repository where it is not given) has web/, of which the pages are taken: those of pydocs and trafilatura, and the
HTML responses of web/warc. They are written as archives in which every page has an address of its own; each copy after the first has other words
here and there: of every other page so few that it is a near-duplicate, of the others half of the longer ones, so that no two are much alike. Pages
of documentation are larger than most, and there are more of them than in a crawl: compare ratios, and see the seconds a MB, too.

One chain, by Fox and by plain datatrove on the same archives, in turns, first with one process and then with two: read WARC, find the main text, keep
English, Gopher's rules on repetition and quality, C4's, FineWeb's, mask addresses, write Parquet. datatrove's blocks have their defaults, but for 5
seconds a page, as Fox gives it, where trafilatura has one, and for the language: its filter downloads a model, so here a step with py3langid
stands in for it, which asks what Fox asks. Fox is `fox corpus` with recipes/data-commoncrawl.toml, in which no duplicates and no evaluation texts
are looked for; and then with the whole of that recipe, on archives of 1, 4 and 16 times the size, with two processes.

What counts is processor time, of all processes of a side together, as /proc tells it ten times a second, without that of the same side for an archive of one page, which
is what starting takes; a core's pages a second are pages by that. The clock's is shown beside it. Memory is VmHWM of each process: the one that leads,
those that do the tasks, and those beside them that parse pages.

Peers: `pip install trafilatura lxml_html_clean spacy warcio faust-cchardet python-magic orjson`. Goals: at least twice datatrove's pages a second
of a core; 16 times the pages take at most 10 % more a page than 4 times, in at most 1.2 times the memory. Exit code 0 where all are met, 1 where one
is missed, 3 where a peer or the pages are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from results import ROOT, record

SPEED_GOAL = 2.0
GROWTH_GOAL = 0.10
MEMORY_GOAL = 1.2

LANGUAGE, LEAST_SCORE = "en", 0.65
COPIES = (1, 4, 16)
COMPARED = 4
"""Copies of the pages on which Fox is held against datatrove."""

KEPT_FOR_SURE = b"founded to build an Internet library"
"""In a page that passes every filter: a corpus must have one."""

LOOK_EVERY_S = 0.1
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Page(NamedTuple):
    content: bytes
    charset: str


class Archives(NamedTuple):
    folder: Path
    pages: int
    html_bytes: int


class Cost(NamedTuple):
    """What a side took for its archives."""

    processor_s: float
    clock_s: float
    kept: int
    blocks: dict[str, float]
    """Seconds of each step, by a clock."""
    peak_mb: dict[str, float]
    """Of the largest process of each kind."""
    made: dict[str, float] = {}  # noqa: RUF012  # bytes of text that were read and kept, documents, and bytes on disk; only of Fox


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one process, one turn, up to 4 times the pages")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--datatrove", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.datatrove:
        archives, out, workers = arguments.datatrove
        _datatrove(Path(archives), Path(out), int(workers))
        return 0
    if not (arguments.data / "web").is_dir() or not (arguments.data / "eval").is_dir():
        print(f"{arguments.data} has no web/ or eval/: name a folder with --data")
        return 3
    try:
        import cchardet  # noqa: F401
        import magic  # noqa: F401
        import orjson  # noqa: F401
        import spacy  # noqa: F401
        import trafilatura  # noqa: F401
        import warcio  # noqa: F401
    except ImportError as error:
        print(
            f"{error.name or error} is not installed: pip install trafilatura lxml_html_clean spacy warcio faust-cchardet python-magic orjson"
        )
        return 3
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").symlink_to(arguments.data.resolve())  # where the recipe looks for the evaluations
        pages = list(read_pages(arguments.data / "web"))
        copies = COPIES[:2] if arguments.quick else COPIES
        archives = {copy: write_archives(folder / f"web{copy}", pages, copy) for copy in copies}
        one = write_archives(folder / "one", [next(page for page in pages if KEPT_FOR_SURE in page.content)], 1)
        workers = (1,) if arguments.quick else (1, 2)
        chains = compare(folder, archives[COMPARED], one, workers, 1 if arguments.quick else arguments.rounds)
        start = run_fox(folder, one, 2, whole=True)
        whole = {copy: less(run_fox(folder, found, 2, whole=True), start) for copy, found in archives.items()}
        return tell(archives, chains, whole, arguments)


def read_pages(folder: Path) -> Iterator[Page]:
    """The HTML pages of all three sets, in an order that mixes them."""
    from fox.data.web.warc import Page as Response
    from fox.data.web.warc import records_of

    pages = [Page(gzip.decompress(path.read_bytes()), "utf-8") for path in sorted(folder.glob("*/html/*.gz"))]
    for path in sorted((folder / "warc").glob("*.warc.gz")):
        for _, found in records_of(path):
            if isinstance(found, Response) and found.is_html:
                pages.append(Page(found.content, found.charset or ""))
    random.Random(3).shuffle(pages)
    yield from pages


def write_archives(folder: Path, pages: list[Page], copies: int) -> Archives:
    """An archive for each copy of the pages, as Common Crawl has it: each record compressed by itself."""
    folder.mkdir()
    size = 0
    for copy in range(copies):
        with (folder / f"{copy:02}.warc.gz").open("wb") as file:
            for number, page in enumerate(pages):
                rate = 0.04 if number % 2 else 0.5
                content = edited(page.content, rate, random.Random(f"{copy} {number}")) if copy else page.content
                file.write(gzip.compress(_response(f"https://example.org/{copy}/{number}", content, page.charset), 6))
                size += len(content)
    return Archives(folder, copies * len(pages), size)


def edited(page: bytes, rate: float, draw: random.Random) -> bytes:
    """The page with so many of its longer words, by their share, in each other's place."""

    def of_text(text: re.Match[bytes]) -> bytes:
        return re.sub(rb"\b[a-z]{5,}\b", lambda word: draw.choice(words) if draw.random() < rate else word[0], text[0])

    text_between_tags = re.compile(rb">[^<>]{20,}<")
    words = [word for text in text_between_tags.findall(page) for word in re.findall(rb"\b[a-z]{5,}\b", text)]
    return text_between_tags.sub(of_text, page) if words else page


def _response(url: str, content: bytes, charset: str) -> bytes:
    kind = f"text/html; charset={charset}" if charset else "text/html"
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2025-05-12T05:40:01Z\r\nWARC-Record-ID: <urn:example:{url}>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http) + len(content)}\r\n\r\n"
    )
    return head.encode() + http + content + b"\r\n\r\n"


def run_fox(folder: Path, archives: Archives, workers: int, *, whole: bool = False) -> Cost:
    """`fox corpus` with the recipe for Common Crawl: the whole of it, or what datatrove does, too."""
    page = (ROOT / "recipes/data-commoncrawl.toml").read_text(encoding="utf-8")
    options = ["-o", f"source.web.path={archives.folder}", "-o", "source.web.files=*"]
    options += ["-o", f"data.executor.workers={workers}"]
    if not whole:
        page = re.sub(r"\n\[data\.duplicates\].*?(?=\n\[)", "", page, flags=re.DOTALL)
        options += ["-o", "data.decontaminate=[]", "-o", "data.mask_personal=['email','ip']"]
    (folder / "recipe.toml").write_text(page, encoding="utf-8")
    run = folder / "run"
    command = [sys.executable, "-m", "fox", "corpus", "recipe.toml", "--out", str(run), "--redo", "corpus", *options]
    cost = watched(command, folder, workers)
    facts = json.loads((run / "manifests/corpus.json").read_bytes())["facts"]
    funnel = facts["sources"]["web"]["funnel"]
    blocks = {f"{name}: {block}": took for name, of in facts["seconds"].items() for block, took in of.items()}
    before = funnel["read"]["documents"] - sum(
        dropped["documents"]
        for step, reasons in funnel["dropped"].items()
        if "duplicates" not in step
        for dropped in reasons.values()
    )
    made = {
        "read bytes": funnel["read"]["bytes"],
        "kept bytes": funnel["kept"]["bytes"],
        "documents before duplicates": before,
        "kept documents": funnel["kept"]["documents"],
        "disk bytes": sum(path.stat().st_size for path in (run / "corpus/web").glob("*.parquet")),
    }
    return cost._replace(kept=funnel["kept"]["documents"], blocks=blocks, made=made)


def run_datatrove(folder: Path, archives: Archives, workers: int) -> Cost:
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, __file__, "--datatrove", str(archives.folder), str(out), str(workers)]
    cost = watched(command, folder, workers)
    from pyarrow.parquet import ParquetFile

    kept = sum(ParquetFile(path).metadata.num_rows for path in (out / "kept").rglob("*.parquet"))
    blocks: dict[str, float] = {}
    for path in (out / "logs/stats").glob("*.json"):
        for block in json.loads(path.read_bytes()):
            name = block["name"].rpartition(": ")[2]
            told = block["time_stats"]  # 0 alone, of a block that no page has come to
            blocks[name] = blocks.get(name, 0) + (told["total"] if isinstance(told, dict) else told)
            if "timeout" in block["stats"]:
                print(f"datatrove: {name}: {block['stats']['timeout']} pages took too long")
    return cost._replace(kept=kept, blocks=blocks)


def _datatrove(archives: Path, out: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.filters.lambda_filter import LambdaFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import ParquetWriter

    blocks = [
        WarcReader(str(archives), glob_pattern="*.warc.gz"),
        Trafilatura(timeout=5),
        LambdaFilter(_is_wanted),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(),
        FineWebQualityFilter(),
        PIIFormatter(),
        ParquetWriter(str(out / "kept"), compression="zstd"),
    ]
    LocalPipelineExecutor(blocks, tasks=workers, workers=workers, logging_dir=str(out / "logs")).run()


def _is_wanted(document: Any) -> bool:
    """What stands in for datatrove's LanguageFilter, whose model would have to be downloaded: what Fox asks of the language."""
    from fox.data.filters.language import language_of

    language, score = language_of(document.text)
    return language == LANGUAGE and score >= LEAST_SCORE


def watched(command: list[str], folder: Path, cores: int) -> Cost:
    """Run it on so many cores; what all of its processes took."""
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(whole)[:cores])  # it goes on to those that we start
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    finally:
        os.sched_setaffinity(0, whole)
    taken: dict[int, float] = {}
    peaks: dict[str, float] = {}
    while process.poll() is None:
        _look(process.pid, taken, peaks)
        time.sleep(LOOK_EVERY_S)
    clock = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(process.communicate()[1])
    assert process.stderr
    process.stderr.close()
    return Cost(sum(taken.values()), clock, 0, {}, peaks)


def _look(session: int, taken: dict[int, float], peaks: dict[str, float]) -> None:
    """Put down the processor time and the peak memory of each process of a session, as far as they have come."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            peak = re.search(r"VmHWM:\s+(\d+) kB", (entry / "status").read_text())
            words = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        taken[int(entry.name)] = (int(fields[11]) + int(fields[12])) * TICK_S
        leads, reads = int(entry.name) == session, b"fox.data.web.worker" in words
        kind = "leads" if leads else "parses" if reads else "works"
        peaks[kind] = max(peaks.get(kind, 0), int(peak[1]) / 1024 if peak else 0)


def less(cost: Cost, start: Cost) -> Cost:
    """Without what starting takes."""
    return cost._replace(processor_s=cost.processor_s - start.processor_s, clock_s=cost.clock_s - start.clock_s)


def compare(
    folder: Path, archives: Archives, one: Archives, workers: tuple[int, ...], turns: int
) -> dict[tuple[str, int], list[Cost]]:
    """Each side by each number of processes, in turns."""
    sides = {"fox": run_fox, "datatrove": run_datatrove}
    costs: dict[tuple[str, int], list[Cost]] = {}
    for number in workers:
        starts = {side: run(folder, one, number) for side, run in sides.items()}
        for _ in range(turns):
            for side, run in sides.items():
                costs.setdefault((side, number), []).append(less(run(folder, archives, number), starts[side]))
    return costs


def tell(
    archives: dict[int, Archives],
    chains: dict[tuple[str, int], list[Cost]],
    whole: dict[int, Cost],
    arguments: argparse.Namespace,
) -> int:
    """Print the tables, keep the row, and judge."""
    compared = archives[COMPARED]
    rates = {
        key: compared.pages / statistics.median(cost.processor_s for cost in costs) for key, costs in chains.items()
    }
    print(f"{compared.pages} pages, {compared.html_bytes / 1e6:.1f} MB of HTML, one chain by both")
    print(
        f"{'':24}{'pages/s a core':>16}{'(spread)':>10}{'MB/s a core':>13}{'pages/s by a clock':>20}{'kept':>7}{'peak MB':>9}"
    )
    for (side, number), costs in chains.items():
        rate, took = rates[side, number], [cost.processor_s for cost in costs]
        spread = (max(took) - min(took)) / statistics.median(took)
        clock = compared.pages / statistics.median(cost.clock_s for cost in costs)
        size, peak = compared.html_bytes / compared.pages * rate / 1e6, max(costs[0].peak_mb.values())
        processes = f"{side}, {number} process{'es' * (number > 1)}"
        print(f"{processes:24}{rate:16.1f}{spread:10.0%}{size:13.2f}{clock:20.1f}{costs[0].kept:7}{peak:9.0f}")
    for side in ("fox", "datatrove"):
        _print_blocks(f"{side}, one process", chains[side, 1][0].blocks, compared.pages)
    last = max(whole)
    _print_blocks(f"fox, the whole recipe, {last} times the pages", whole[last].blocks, archives[last].pages)
    print(
        f"\n{'the whole recipe':24}{'pages':>8}{'pages/s a core':>16}{'by a clock':>12}{'kept':>7}"
        + "".join(f"{kind:>9}" for kind in whole[1].peak_mb)
        + "  peak MB"
    )
    for copies, cost in whole.items():
        pages = archives[copies].pages
        peaks = "".join(f"{peak:9.0f}" for peak in cost.peak_mb.values())
        print(
            f"{f'{copies} times':24}{pages:8}{pages / cost.processor_s:16.1f}{pages / cost.clock_s:12.1f}{cost.kept:7}{peaks}"
        )
    ratio = min(rates["fox", number] / rates["datatrove", number] for number in {number for _, number in chains})
    before = sorted(whole)[-2]
    growth = whole[last].processor_s / archives[last].pages / (whole[before].processor_s / archives[before].pages) - 1
    memory = max(whole[last].peak_mb[kind] / whole[before].peak_mb[kind] for kind in whole[last].peak_mb)
    figures = {
        "pages": archives[last].pages,
        "html_bytes": archives[last].html_bytes,
        "archive_bytes": sum(path.stat().st_size for path in archives[last].folder.iterdir()),
        "processor_s": round(whole[last].processor_s, 2),
        "block_s": {name: round(took, 2) for name, took in whole[last].blocks.items()},
        "peak_mb": {kind: round(peak) for kind, peak in whole[last].peak_mb.items()},
        **{key.replace(" ", "_"): value for key, value in whole[last].made.items()},
    }
    result = {
        "pages/s a core": ", ".join(f"{side} {rates[side, number]:.1f} ({number})" for side, number in chains),
        "MB/s a core": ", ".join(
            f"{side} {compared.html_bytes / compared.pages * rate / 1e6:.2f} ({number})"
            for (side, number), rate in rates.items()
        ),
        "whole recipe, pages/s a core": ", ".join(
            f"{copies}x {archives[copies].pages / cost.processor_s:.1f}" for copies, cost in whole.items()
        ),
        "peak MB": ", ".join(
            f"{copies}x {' and '.join(f'{kind} {peak:.0f}' for kind, peak in cost.peak_mb.items())}"
            for copies, cost in whole.items()
        ),
        "seconds by step": ", ".join(f"{name} {took:.1f}" for name, took in whole[last].blocks.items()),
        "times datatrove's speed": f"{ratio:.1f}",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if not arguments.quick:
        record("data_throughput.py", result)
    print(
        f"data_throughput: growth from {before} to {last} times {growth:+.1%} a page (goal within {GROWTH_GOAL:.0%});"
        f" memory {memory:.2f} times (goal {MEMORY_GOAL}); ratio {ratio:.1f} (goal {SPEED_GOAL})"
    )
    return 0 if ratio >= SPEED_GOAL and growth <= GROWTH_GOAL and memory <= MEMORY_GOAL else 1


def _print_blocks(title: str, blocks: dict[str, float], pages: int) -> None:
    total = sum(blocks.values())
    print(f"\n{title}: {total:.1f} s by a clock in its steps")
    for name, took in blocks.items():
        print(f"{name:>40}{took:9.2f} s{took / total:6.0%}{1e3 * took / pages:9.2f} ms a page")


if __name__ == "__main__":
    sys.exit(main())
