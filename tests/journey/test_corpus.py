"""The corpus step: the same bytes by however many it is made, wherever it was stopped, and on whatever it runs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from fox.artifacts import sha256_of
from fox.data.corpus.store import read_documents
from fox.errors import Failure
from fox.formats.token_shards import Shard
from fox.tokenizer import Tokenizer
from tests.journey.micro_run import ENVIRONMENT, HERE, fox, kill_when, start

CORPUS = Path("runs/micro/corpus")
READING = "-o", "data.mask_personal=['email']", "-o", "data.unlicensed='keep'"


ONCE = "-o", "data.duplicates.lines=true"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of a few thousand stories with addresses in them, and a few chats: five tasks."""
    folder = tmp_path_factory.mktemp("sources")
    draw = random.Random(1)
    said: dict[int, str] = {}
    words = [bytes(draw.choices(b"abcdefghijklmnop", k=draw.randint(2, 9))).decode() for _ in range(900)]
    for number in range(4):
        with (folder / f"{number}.jsonl").open("w") as file:
            for story in range(2500):
                text = " ".join(draw.choices(words, k=400)) + f" to {draw.choice(words)}@{draw.choice(words)}.org."
                if story % 1000 == 7 and number:
                    text = (
                        said[story] if number < 3 else f"{said[story][:-100]} otherwise"
                    )  # said before, and nearly so
                elif story % 1000 == 7:
                    said[story] = text
                elif story % 1000 == 8:
                    text += "\n" + "the line that stands below many of these stories again"
                row = {"text": text, "title": f"Story {story}", "url": f"https://example.org/{number}/{story}"}
                file.write(json.dumps({**row, "license": "CC0"} if story % 2 else row) + "\n")
    with (folder / "chats.jsonl").open("w") as file:
        for _ in range(50):
            turns = [{"role": role, "content": " ".join(draw.choices(words, k=9))} for role in ("user", "assistant")]
            file.write(json.dumps({"messages": turns}) + "\n")
    return folder


@pytest.fixture
def world(sources: Path, tmp_path: Path) -> Path:
    page = (HERE / "micro.toml").read_text().replace('path = "text"', f'path = "{sources}"\nfiles = "?.jsonl"')
    page = page.replace('path = "chats.jsonl"', f'path = "{sources}/chats.jsonl"')
    (tmp_path / "micro.toml").write_text(f"{page}\n[data.executor]\nworkers = 2\n")
    return tmp_path


def corpus(folder: Path, *words: str) -> dict[str, str]:
    fox(folder, "corpus", "micro.toml", *READING, *words)
    return made(folder)


def made(folder: Path) -> dict[str, str]:
    files = sorted(path for path in (folder / CORPUS).rglob("*") if path.is_file())
    return {str(path.relative_to(folder / CORPUS)): sha256_of(path) for path in files}


def in_mid_file(folder: Path) -> bool:
    """Whether a task has read a part of its file, and nothing is done yet."""
    return any((folder / CORPUS / ".work/counts").glob("*.at"))


def kill_a_worker(folder: Path, *words: str) -> None:
    """Make the corpus, and kill the first process that has a part of a file written."""
    process = start(folder, "corpus", "micro.toml", *READING, *words)
    killed = 0
    while process.poll() is None and not killed:
        if killed := worker_in_mid_file(process.pid):
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.001)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and killed, errors


def worker_in_mid_file(process: int) -> int:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(process):
            continue
        try:
            if any(os.readlink(path).endswith(".writing") for path in (entry / "fd").iterdir()):  # noqa: PTH115
                return int(entry.name)
        except OSError:  # it has ended, or is another user's
            continue
    return 0


def test_it_is_the_same_by_one_and_by_many_and_says_nothing_twice(world: Path) -> None:
    whole = corpus(world, *ONCE)
    assert corpus(world, *ONCE, "-o", "data.executor.workers=1", "--redo", "corpus") == whole
    funnel = json.loads((world / CORPUS / "funnel.json").read_bytes())["stories"]
    dropped = {step: found["said before"]["documents"] for step, found in funnel["dropped"].items()}
    assert dropped == {"exact duplicates": 6, "near duplicates": 3}
    assert funnel["kept"]["documents"] == 10_000 - 9
    line = len("\nthe line that stands below many of these stories again")
    assert funnel["cut"] == {"repeated lines": {"said before": 11 * line}}


def test_it_keeps_what_is_known_of_a_document(world: Path) -> None:
    whole = corpus(world)
    assert list(whole) == [
        "chats/00004.parquet",
        "files.json",
        "funnel.json",
        *(f"stories/{n:05}.parquet" for n in range(4)),
    ]
    funnel = json.loads((world / CORPUS / "funnel.json").read_bytes())["stories"]
    assert funnel["kept"]["documents"] == 10_000 and funnel["licenses"] == {"CC0": 5000, "not stated": 5000}
    from pyarrow.parquet import read_table

    rows = read_table(world / CORPUS / "stories/00001.parquet").to_pylist()
    assert rows[9]["url"] == "https://example.org/1/9" and rows[9]["title"] == "Story 9"
    assert rows[9]["place"] == "1.jsonl:10" and rows[9]["text"].endswith("to email@example.com.")


def test_a_worker_killed_in_mid_file_is_made_good(world: Path) -> None:
    kill_a_worker(world)
    assert made(world) == corpus(world, "--redo", "corpus")


def test_a_run_killed_in_mid_file_goes_on_with_what_is_not_done(world: Path) -> None:
    marks = world / CORPUS / ".work/executor/read/completions"
    kill_when(lambda: len(list(marks.glob("*"))) >= 2, world, "corpus", "micro.toml", *READING)
    done = {path.name: path.stat().st_mtime_ns for path in (world / CORPUS / "stories").glob("*.parquet")}
    time.sleep(0.5)  # the workers see that they are alone
    finished = [f"{int(path.name):05}.parquet" for path in marks.glob("*")]
    assert finished
    again = corpus(world)
    kept = {path.name: path.stat().st_mtime_ns for path in (world / CORPUS / "stories").glob("*.parquet")}
    assert all(kept[name] == done[name] for name in finished if name in done)
    assert again == corpus(world, "--redo", "corpus")


def test_one_that_was_begun_otherwise_is_not_gone_on_with(world: Path) -> None:
    kill_when(lambda: in_mid_file(world), world, "corpus", "micro.toml", *READING)
    _, errors = fox(world, "corpus", "micro.toml", *READING, "-o", "data.mask_personal=['ip']", expect=2)
    assert "data.mask_personal" in errors and "when `corpus` was begun in runs/micro" in " ".join(errors.split())
    fox(world, "corpus", "micro.toml", *READING, "-o", "data.executor.workers=1")  # who does it may change


def test_documents_without_terms_stay_out_unless_the_recipe_keeps_them(world: Path) -> None:
    fox(world, "corpus", "micro.toml", "-o", "source.chats.license='CC0'")
    funnel = json.loads((world / CORPUS / "funnel.json").read_bytes())
    assert funnel["stories"]["dropped"]["licence"]["not stated"]["documents"] == 5000
    assert funnel["stories"]["kept"]["documents"] == 5000 and funnel["chats"]["kept"]["documents"] == 50


def test_what_ends_a_task_is_told_with_its_log(world: Path) -> None:
    (world / CORPUS).mkdir(parents=True)
    (world / CORPUS / "stories").write_text("in the way")
    (world / "runs/micro/lock").touch()
    _, errors = fox(world, "corpus", "micro.toml", *READING, expect=1)
    told = " ".join(errors.split())
    assert "read, task" in told and "(stories: " in told and "FileExistsError" in told
    log = told.partition("Its log is ")[2].partition(". What is done")[0].replace(" ", "")
    assert "FileExistsError" in (world / log).read_text()


def test_models_are_made_of_the_corpus(world: Path) -> None:
    less = *READING, "-o", "source.stories.files='0.jsonl'"
    _, errors = fox(world, "data", "micro.toml", *less, expect=2)  # makes the corpus, and lacks the vocabulary
    assert "✓ corpus" in errors and "Run `fox tokenizer` with the same recipe first" in " ".join(errors.split())
    for step in ("tokenizer", "data"):
        fox(world, step, "micro.toml", *less)
    facts = json.loads((world / "runs/micro/manifests/data.json").read_bytes())["facts"]["sources"]["stories"]
    assert facts["documents"] == 2500 and facts["reading"]["masked"] == {"email": 2500}


def test_what_was_made_is_verified_and_a_document_is_found(world: Path) -> None:
    less = *READING, "-o", "source.stories.files='0.jsonl'", "-o", "source.stories.path='own'"
    (world / "own").mkdir()
    stories = [json.dumps({"text": f"Story {n} ends well.", "url": f"https://a.example/{n}"}) for n in range(300)]
    (world / "own/0.jsonl").write_text("\n".join(stories))
    fox(world, "corpus", "micro.toml", *less)
    fox(world, "tokenizer", "micro.toml", *less, "-o", "tokenizer.vocab_size=300")
    fox(world, "data", "micro.toml", *less, "-o", "tokenizer.vocab_size=300")
    (world / "text.txt").write_text("Story 17 ends well.")
    places = []
    for wanted in ("text.txt", "https://a.example/17"):
        out, _ = fox(world, "data", "find", wanted)
        places.append(out.splitlines())
    assert places[0] == places[1] and places[0][0].startswith("runs/micro: corpus, source stories: 0.jsonl:18")
    assert re.fullmatch(r"runs/micro: data/stories.(train|heldout).ds, document \d+", places[0][1])
    shard, number = re.findall(r"data/(\S+), document (\d+)", places[0][1])[0]
    tokenizer = Tokenizer.load(world / "runs/micro/tokenizer")
    start_at, end = (held := Shard(world / "runs/micro/data" / shard, 300)).span(int(number))
    assert tokenizer.decode(held.tokens[start_at:end].tolist()).strip() == "Story 17 ends well."
    (world / "text.txt").write_text("Story 17 ends badly.")
    assert "nowhere" in fox(world, "data", "find", "text.txt", expect=1)[0]
    out, _ = fox(world, "data", "verify", "runs/micro")
    assert "all that was made is as it was made" in out
    (world / "own/0.jsonl").write_text("other")
    out, _ = fox(world, "data", "verify", "runs/micro")
    assert "note: source stories: 0.jsonl is not what was read" in out
    for name in (f"data/{shard}.documents", "corpus/stories/00000.parquet"):
        path = world / "runs/micro" / name
        content = bytearray(path.read_bytes())
        content[7] ^= 1
        path.write_bytes(content)
        out, _ = fox(world, "data", "verify", "runs/micro", expect=1)
        assert f"damaged: {name} has changed since it was made" in out


def own(world: Path, texts: list[str], *words: str, **row: str) -> dict[str, object]:
    """The funnel of a corpus of these texts, each a row of its own, with what else rows have."""
    (world / "own").mkdir(exist_ok=True)
    lines = [json.dumps({"text": text, "license": "CC0", **row}) for text in texts]
    (world / "own/0.jsonl").write_text("\n".join(lines))
    source = "-o", "source.stories.path='own'", "-o", "source.stories.files='0.jsonl'"
    fox(world, "corpus", "micro.toml", *READING, *source, *words)
    return json.loads((world / CORPUS / "funnel.json").read_bytes())["stories"]


QUESTION = "Which of the seven small foxes that live under the old mill ran over the lazy dog at night?"
LINE = "this is a line that stands in more than one document"


@pytest.mark.parametrize(
    "text",
    [
        f"It asked. {QUESTION} Nobody knew.",
        QUESTION.replace("foxes that", f"foxes that\n{LINE}\n"),  # whole once the line is cut
        QUESTION.replace("foxes", "fo\u00adxes").replace("night", "ni\u00adght"),
        "Call +1 212 555 0175, it said: who is it that answers there today?",
    ],
)
def test_a_planted_question_reaches_no_corpus(world: Path, text: str) -> None:
    questions = [QUESTION, "Call +1 212 555 0175, it said: who is it that answers there today?"]
    (world / "eval.jsonl").write_text("\n".join(json.dumps({"question": question}) for question in questions))
    words = "-o", "data.decontaminate=['eval.jsonl']", "-o", "data.mask_personal=['phone']"
    funnel = own(world, [f"First.\n{LINE}", "A story.", text], *ONCE, *words)
    assert [(step, sum(of["documents"] for of in found.values())) for step, found in funnel["dropped"].items()] == [
        ("evaluation", 1)
    ]


def test_other_terms_make_another_corpus(world: Path) -> None:
    small = "-o", "source.stories.files='0.jsonl'"
    fox(world, "corpus", "micro.toml", *small, "-o", "source.chats.license=CC0")
    _, errors = fox(world, "corpus", "micro.toml", *small, "-o", "source.chats.license=MIT", expect=2)
    assert "source.chats.license = MIT: was 'CC0' when `corpus` was done" in " ".join(
        errors.replace("'MIT'", "MIT").split()
    )
    _, errors = fox(world, "corpus", "micro.toml", *small, "--out", "runs/none", expect=2)
    assert "State its terms, -o source.chats.license" in " ".join(errors.split())
    _, errors = fox(world, "corpus", "micro.toml", *small, "--out", "runs/none", "-o", "data.unlicensed=keep", expect=2)
    assert "data.unlicensed" in errors and "was begun in runs/none" in " ".join(errors.split())


def test_samples_show_no_personal_data_and_addresses_move_no_cursor(world: Path) -> None:
    url = "https://a.example/\x1b]0;x\x07"
    long = "It is the story of the fox that ran over the hill, and of the dog that did not see it. " * 9
    words = "-o", "source.stories.filter.rules=['gopher']"
    own(world, ["Write to jane.doe@fox-mail.org or do not write.", long], *words, url=url)
    page = (world / "runs/micro/corpus.html").read_text()
    assert "jane.doe" not in page and "email@example.com" in page
    (world / "text.txt").write_text(long)
    out, _ = fox(world, "data", "find", "text.txt")
    assert "a.example" in out and "\x1b" not in out


def test_a_file_that_changes_while_it_is_read_is_told(world: Path) -> None:
    process = start(world, "corpus", "micro.toml", *READING, "-o", "data.executor.workers=1")
    source = Path(re.findall(r'path = "(\S+)"\nfiles', (world / "micro.toml").read_text())[0]) / "0.jsonl"
    stamp = source.stat()
    while process.poll() is None and not in_mid_file(world):
        time.sleep(0.001)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))  # its content is hashed anew, and is the same
    new = source.with_name("9.jsonl")
    new.write_text(json.dumps({"text": "new"}))
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        new.unlink()
        os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert process.returncode == 1
    assert "source.stories: 9.jsonl has changed, come or gone while the sources were read" in " ".join(errors.split())


def test_a_lost_bit_of_a_corpus_is_never_learnt_from(world: Path) -> None:
    own(world, [f"Story {number} of the fox and the hill and the dog." for number in range(200)])
    path = world / CORPUS / "stories/00000.parquet"
    stamp, whole = path.stat(), path.read_bytes()
    read = [document.text for document in read_documents(path)]
    source = "-o", "source.stories.path='own'", "-o", "source.stories.files='0.jsonl'"
    for place in (100, len(whole) // 2, len(whole) - 30):
        content = bytearray(whole)
        content[place] ^= 16
        path.write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        _, errors = fox(world, "tokenizer", "micro.toml", *READING, *source, expect=1)
        assert "stories/00000.parquet: has changed since `corpus` made it" in " ".join(errors.split())
    for place in range(40, len(whole) // 4, 7):  # where the documents are
        content = bytearray(whole)
        content[place] ^= 16
        path.write_bytes(content)
        try:
            assert [document.text for document in read_documents(path)] == read
        except Failure:
            continue


@pytest.mark.slow
def test_ray_makes_the_same_also_when_a_worker_is_killed_in_mid_file(world: Path) -> None:
    pytest.importorskip("ray")
    kill_a_worker(world, *ONCE, "-o", "data.executor.kind='ray'")
    assert made(world) == corpus(world, *ONCE, "--redo", "corpus")


SBATCH = """#!/bin/sh
# Stands in for Slurm: takes an array of jobs and runs each task of it behind the scenes, one after another.
for script; do :; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" "$SPOOL/job.sh"
echo "$script" >>"$SPOOL/submitted"
(for task in $(seq 0 "$last"); do SLURM_NODELIST=localhost SLURM_ARRAY_TASK_ID=$task sh "$SPOOL/job.sh"; done; rm "$SPOOL/running") >"$SPOOL/log" 2>&1 &
touch "$SPOOL/running"
echo "Submitted batch job 1"
"""
SQUEUE = """#!/bin/sh
# The first time it is asked, the controller is busy.
[ -e "$SPOOL/asked" ] || { touch "$SPOOL/asked"; echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
[ -e "$SPOOL/running" ] && echo 1
exit 0
"""
SCONTROL = "#!/bin/sh\necho localhost\n"
SRUN = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n'


@pytest.mark.slow
def test_slurm_makes_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = world / "bin"
    programs.mkdir()
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "srun": SRUN, "scontrol": SCONTROL}
    for name, script in scripts.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "SPOOL", str(world))
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    slurm = "-o", "data.executor.kind='slurm'"
    _, errors = fox(world, "corpus", "micro.toml", *READING, *slurm, expect=2)
    assert "data.executor.partition" in errors
    by_slurm = corpus(world, *slurm, "-o", "data.executor.partition='cpu'")
    assert by_slurm == corpus(world, "--redo", "corpus")
    assert len((world / "submitted").read_text().splitlines()) == 1
