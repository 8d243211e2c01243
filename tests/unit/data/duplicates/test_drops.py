"""From texts to what is to be left out of them: all steps, beside a plain twin that compares every pair."""

import random
import re
import time

import numpy as np
import pytest

from fox.data.duplicates import candidates, signatures
from fox.data.duplicates.candidates import plan_of, plan_verification, write_shingles
from fox.data.duplicates.drops import Drop, Drops
from fox.data.duplicates.groups import find_duplicates
from fox.data.duplicates.near import verify, verify_all
from fox.data.duplicates.signatures import num_buckets, signature_files, signature_writer
from fox.errors import Failure
from fox.recipe.schema import Duplicates

PLAIN = Duplicates()
WORDS = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "nrstlm"]


def text_of(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def edited(text: str, source: random.Random, rate: float) -> str:
    return " ".join("other" if source.random() < rate else word for word in text.split())


def corpus(seed: int, originals: int = 60) -> list[str]:
    """Texts, copies of them that are changed more or less, copies of copies, and the same texts again, all mixed."""
    source = random.Random(seed)
    texts = [text_of(source, source.choice([3, 8, 40, 200])) for _ in range(originals)]
    for _ in range(3 * originals):
        texts.append(edited(source.choice(texts), source, source.choice([0, 0, 0.01, 0.03, 0.06, 0.2])))
    source.shuffle(texts)
    return texts


def plain_jaccard(first: str, second: str) -> float:
    sets = []
    for text in (first, second):
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[place : place + 5]) for place in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / (len(sets[0] | sets[1]) or 1)


def whole(drops: list[Drops], sizes: list[int]) -> dict[int, tuple[str, int]]:
    """What goes, why and for which, all counted through."""
    first = np.cumsum([0, *sizes]).tolist()
    return {
        first[task] + index: (drop.reason, first[drop.kept_task] + drop.kept_index)
        for task, each in enumerate(drops)
        for index, drop in each.documents.items()
    }


def cut(texts: list[str], *places: int) -> list[list[str]]:
    return [texts[first:end] for first, end in zip((0, *places), (*places, len(texts)), strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_what_goes_is_what_a_comparison_of_all_pairs_lets_go(drop, seed):
    texts = corpus(seed)
    gone = whole(drop(cut(texts, 70, 70, 150), PLAIN), [70, 0, 80, len(texts) - 150])
    expected, missed = set[int](), 0
    for index, text in enumerate(texts):
        if text in texts[:index]:
            assert gone[index] == ("exact", texts.index(text))
        elif any(
            plain_jaccard(text, texts[each]) >= PLAIN.min_jaccard for each in range(index) if each not in expected
        ):
            missed += index not in gone
        else:
            assert index not in gone
        if index in gone:
            expected.add(index)
            reason, kept = gone[index]
            assert kept < index
            if reason == "near":
                assert kept not in gone
                assert plain_jaccard(text, texts[kept]) >= PLAIN.min_jaccard
    assert any(reason == "near" for reason, _ in gone.values())
    assert missed <= 2  # about one in twenty of those that are just alike enough, none of the others


def test_same_words_in_other_clothes_always_go(drop):
    source = random.Random(3)
    texts = [text_of(source, words) for words in (5, 6, 9, 50, 700) for _ in range(20)]
    gone = whole(drop([texts, [f"{text.upper().replace(' ', ', ')}!" for text in texts]], PLAIN), [100, 100])
    assert gone == {100 + place: ("near", place) for place in range(100)}


def test_texts_that_are_too_short_for_a_run_go_only_when_they_are_the_same(drop):
    texts = ["", "one two three four", "One two three four", "one two three four", "天地玄黃", "", "+++"]
    assert whole(drop([texts], PLAIN), [7]) == {3: ("exact", 1), 5: ("exact", 0)}


@pytest.mark.parametrize("places", [(), (1, 2, 3), (100, 100, 200)])
def test_where_tasks_are_cut_and_how_many_buckets_there_are_changes_nothing(drop, monkeypatch, tmp_path, places):
    texts = [f"{text}\n{text_of(random.Random(len(text)), 9)}" for text in corpus(9)]
    settings = Duplicates(lines=True)
    one = drop([texts], settings)
    monkeypatch.setattr(signatures, "BUCKET_BYTES", 2000)
    monkeypatch.setattr(signatures, "_RUN_BYTES", 5000)
    monkeypatch.setattr(signatures, "_BATCH_SHINGLES", 100)
    monkeypatch.setattr(candidates, "PART_DOCUMENTS", 3)
    monkeypatch.setattr(candidates, "_RUN_SHINGLES", 500)
    tasks = cut(texts, *places)
    for path in (tmp_path / "work").rglob("*.parts"):
        path.unlink()
    many = drop(tasks, settings)
    sizes = [len(task) for task in tasks]
    assert num_buckets(signature_files(tmp_path / "work", settings)) > 10
    assert plan_of(tmp_path / "work").about["parts"] > 5
    assert whole(many, sizes) == whole(one, [len(texts)])
    lines = [each.lines(index).tolist() for task, each in enumerate(many) for index in range(sizes[task])]
    assert lines == [one[0].lines(index).tolist() for index in range(len(texts))]
    assert any(lines)


def test_none_goes_for_one_that_goes_itself(drop):
    """Of a chain in which each is like the next, the ends are strangers: every other link stays."""
    words = text_of(random.Random(4), 2000).split()
    chain = [" ".join(words[start : start + 1000]) for start in range(0, 600, 100)]
    assert whole(drop([chain], PLAIN), [6]) == {1: ("near", 0), 3: ("near", 2), 5: ("near", 4)}


def test_one_who_is_like_two_goes_for_the_first(drop):
    words = text_of(random.Random(4), 2000).split()
    texts = [" ".join(words[start : start + 1000]) for start in (0, 200, 100)]
    assert whole(drop([texts], PLAIN), [3]) == {2: ("near", 0)}


def test_one_who_met_only_a_copy_goes_for_the_one_that_stays(drop, monkeypatch):
    texts = [text_of(random.Random(5), 300)]
    for step in range(30):
        texts.append(f"{texts[0]} {step}")
    pairs = np.array([(index, index + 1) for index in range(30)], dtype=candidates.PAIR)
    monkeypatch.setattr("fox.data.duplicates.groups._pairs", lambda rows: pairs)
    assert whole(drop([texts], PLAIN), [31]) == {index: ("near", 0) for index in range(1, 31)}


def test_a_page_that_is_there_20000_times_takes_no_longer_than_others(drop):
    source = random.Random(6)
    page, template = text_of(source, 12), text_of(source, 40)
    texts = [page] * 20_000 + [f"{template} {number}" for number in range(1500)]
    start = time.process_time()
    gone = whole(drop([texts[:100], texts[100:9000], texts[9000:]], PLAIN), [100, 8900, len(texts) - 9000])
    assert time.process_time() - start < 5
    assert gone == {place: ("exact", 0) for place in range(1, 20_000)} | {place: ("near", 20_000) for place in range(20_001, 21_500)}  # fmt: skip


def test_a_copy_within_a_longer_text_goes_from_the_very_share_on(drop):
    words = text_of(random.Random(15), 404).split()
    for part, share in ((304, 0.75), (303, 0.7475)):
        tasks = [[" ".join(words), " ".join(words[:part])]]
        assert plain_jaccard(*tasks[0]) == share
        assert (1 in drop(tasks, PLAIN)[0].documents) == (share == 0.75)


def test_pairs_are_at_most_two_for_each_document_and_band(sign):
    template = text_of(random.Random(7), 60)
    folder = sign([[f"{template} {number}" for number in range(400)]], PLAIN)
    find_duplicates(folder, 0, PLAIN)
    plan_verification(folder, PLAIN)
    assert 0 < plan_of(folder).bytes_of("pairs") // candidates.PAIR.itemsize <= 2 * 400 * signatures.BANDS


def test_long_lines_of_earlier_documents_go(drop):
    long, other = "this line has as many words as count", "And this one is even longer than the first one is."
    tasks = [
        [f"{long}\n{other}\n{long}", "of no other document"],
        [
            f"Head\n\n\n{long.upper()}!\nshort line\n{other}\n漢字漢字漢字漢字\n{long}",
            f"{other}\nthis line is of one document and stays there\nshort line\n漢字漢字漢字漢字",
            f"{other}\r\nthis line is of another document and stays too",
        ],
    ]
    first, second = drop(tasks, Duplicates(lines=True))
    assert [first.lines(index).tolist() for index in range(2)] == [[], []]
    assert [second.lines(index).tolist() for index in range(3)] == [[3, 5, 7], [0, 3], [0]]
    assert tasks[1][0].split("\n")[3].startswith("THIS")
    assert drop(tasks, Duplicates(lines=True, near=False))[1].lines(0).tolist() == [3, 5, 7]


def test_no_lines_are_told_of_a_document_that_goes(drop):
    line = "this line has as many words as count"
    (drops,) = drop([[line, f"{line}\nmore", line]], Duplicates(lines=True, near=False))
    assert drops.documents == {2: Drop("exact", 0, 0)}
    assert [drops.lines(index).tolist() for index in range(3)] == [[], [0], []]


@pytest.mark.parametrize("settings", [Duplicates(near=False), PLAIN])
def test_near_and_lines_are_left_alone_where_they_are_not_asked_for(drop, settings):
    text = text_of(random.Random(8), 60)
    (drops,) = drop([[text, text.upper(), text, f"{text}\nmore"]], settings)
    assert {index: each.reason for index, each in drops.documents.items()} == {2: "exact"} | ({1: "near", 3: "near"} if settings.near else {})  # fmt: skip
    assert drops.lines(3).size == 0


@pytest.mark.parametrize("tasks", [[[]], [[], ["one", "two"]]])
def test_a_corpus_of_nothing_loses_nothing(drop, tasks):
    assert [each.documents for each in drop(tasks, Duplicates(lines=True))] == [{}] * len(tasks)


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "a " * 300_000, "\n" * 10**6, "a\n" * 300_000, "aaaaaaaa\n" * 60_000, "漢" * 300_000, "\ud800 \0" * 100_000],
)  # fmt: skip
def test_hostile_text_takes_no_longer_than_other_text(sign, text):
    start = time.process_time()
    sign([[text]], Duplicates(lines=True))
    assert time.process_time() - start < 3


def test_buckets_grow_with_the_signatures_and_stay_below_the_budget(sign, monkeypatch):
    source = random.Random(10)
    texts = [text_of(source, 20) for _ in range(1200)]
    monkeypatch.setattr(signatures, "BUCKET_BYTES", 20_000)
    counts = []
    for size in (50, 300, 1200):
        files = signature_files(sign([texts[:size]], PLAIN), PLAIN)
        buckets = num_buckets(files)
        counts.append(buckets)
        for bucket in range(buckets):
            first, end = (place * signatures.PARTS // buckets for place in (bucket, bucket + 1))
            rows = files[0].read("band", signatures.BAND, first, end)
            assert sum(each.nbytes for each in rows) < 1.5 * 20_000
    assert counts == [1, 5, 20]  # 320 bytes a document


def texts_again(tasks):
    return lambda task, indexes: [tasks[task][index] for index in indexes.tolist()]


def test_what_is_made_is_not_made_again_unless_something_before_it_changed(sign):
    tasks = cut(corpus(11), 100)

    def run(settings):
        find_duplicates(folder, 0, settings)
        verify_all(folder, texts_again(tasks), settings)
        return {path: path.stat().st_ino for path in folder.rglob("*.parts")}

    folder = sign(tasks, PLAIN)
    made = run(PLAIN)
    assert run(PLAIN) == made
    other = run(Duplicates(min_jaccard=0.9))
    assert {path.parent.name for path in made if made[path] != other[path]} == {"near"}
    tasks[1] = tasks[1][:-50]
    sign(tasks, PLAIN)
    again = run(PLAIN)
    assert [path for path in made if made[path] == again[path]] == []
    assert max(Drops.load(folder, 1, PLAIN).documents) < len(tasks[1])


def test_a_step_that_lacks_another_says_which(sign):
    tasks = cut(corpus(12), 100)
    folder = sign(tasks, PLAIN)
    with pytest.raises(Failure, match=r"groups/000000\.parts: is missing. Find the duplicates of all buckets first"):
        plan_verification(folder, PLAIN)
    find_duplicates(folder, 0, PLAIN)
    with pytest.raises(Failure, match="Plan the verification first"):
        write_shingles(folder, 0, texts_again(tasks))
    plan_verification(folder, PLAIN)
    write_shingles(folder, 0, texts_again(tasks))
    with pytest.raises(Failure, match="Write the shingles of all tasks first"):
        verify(folder, 0, PLAIN)
    write_shingles(folder, 1, texts_again(tasks))
    with pytest.raises(Failure, match="Verify all parts first"):
        Drops.load(folder, 0, PLAIN)
    verify(folder, 0, PLAIN)
    assert Drops.load(folder, 0, PLAIN).documents
    with pytest.raises(Failure, match="other settings"):
        find_duplicates(folder, 0, Duplicates(lines=True))
    sign([tasks[0], tasks[1][1:]], PLAIN)
    with pytest.raises(Failure, match="from other signatures"):
        plan_verification(folder, PLAIN)
    find_duplicates(folder, 0, PLAIN)
    with pytest.raises(Failure, match="from other buckets"):
        Drops.load(folder, 0, PLAIN)
    plan_verification(folder, PLAIN)
    with pytest.raises(Failure, match="for another plan"):
        verify(folder, 0, PLAIN)
    (folder / "signatures" / "000000.parts").unlink()
    with pytest.raises(Failure, match=r"000000\.parts: is missing. Make the signatures"):
        find_duplicates(folder, 0, PLAIN)
    (folder / "signatures" / "000001.parts").unlink()
    with pytest.raises(Failure, match="has no signatures"):
        find_duplicates(folder, 0, PLAIN)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:60_000], lambda raw: raw[:-20_000] + bytes(50) + raw[-19_950:]])  # fmt: skip
def test_damaged_signatures_are_refused(sign, damage):
    folder = sign(cut(corpus(13), 100), PLAIN)
    path = folder / "signatures" / "000001.parts"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Failure, match=r"signatures/000001\.parts: is cut short or damaged. Remove it and run"):
        find_duplicates(folder, 0, PLAIN)


@pytest.mark.parametrize("change", [lambda texts: texts[:-1], lambda texts: [*texts, "more"], lambda texts: ["", *texts[1:]]])  # fmt: skip
def test_texts_that_are_not_those_of_the_signatures_are_refused(sign, change):
    texts = corpus(14)
    folder = sign([texts], PLAIN)
    find_duplicates(folder, 0, PLAIN)
    plan_verification(folder, PLAIN)
    with pytest.raises(Failure, match="texts are others"):
        write_shingles(folder, 0, lambda task, indexes: change([texts[index] for index in indexes]))


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), signature_writer(tmp_path, 0, PLAIN) as writer:
        writer.add("text")
        raise ZeroDivisionError
    assert list((tmp_path / "signatures").iterdir()) == []
