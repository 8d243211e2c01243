"""The judge: which step speaks first, what it gives back, that it works in another process, and that no text stops it."""

import pickle
import time

import pytest

from fox.data.filters.judge import STEPS, Judge, filter_files, judge_of
from fox.errors import UserError
from fox.recipe.schema import Filter

SENTENCES = (
    "The old house stood at the end of a narrow lane, and nobody had lived in it for many years.",
    "Children from the village were told that they should not play there, but of course they did.",
    "One summer a young painter came along with two suitcases and a dog that never barked at anyone.",
    "She asked the mayor for the key, paid three months in advance, and opened all of the windows.",
    "Soon there was light behind them every night, and people began to bring her bread and apples.",
    "When winter came she had painted every room of it, and the whole village came to have a look.",
)
GOOD = "\n".join(SENTENCES)
GERMAN = (
    "Das alte Haus stand am Ende einer schmalen Gasse, und seit vielen Jahren hatte niemand mehr darin gewohnt.\n" * 3
)
RULES = ["fineweb", "c4", "repetition", "gopher"]


@pytest.fixture
def judge(tmp_path) -> Judge:
    (tmp_path / "words").write_text("Darn\nvery bad\n")
    (tmp_path / "urls").write_text("example.com\nexample.org/ads\n" + "".join(f"h{n}.example\n" for n in range(1000)))
    return judge_of(
        "web",
        Filter(
            languages=["en"],
            rules=RULES,
            bad_words=[str(tmp_path / "words")],
            max_bad_words=1,
            blocked_urls=[str(tmp_path / "urls")],
        ),
    )


def test_a_good_document_is_kept(judge):
    verdict = judge.judge(GOOD, "https://example.net/ads")
    assert verdict[:2] == (GOOD, "en") and verdict[3:] == ("", "", {})
    assert 0.65 < verdict.language_score <= 1


@pytest.mark.parametrize(
    ("text", "url", "step", "reason"),
    [
        (GERMAN, "https://example.org/ads/1", "url", "blocked address"),
        (GERMAN, "", "language", "another language"),
        ("the the of", "", "language", "no certain language"),
        (f"{GOOD} Darn! That is very bad.", "", "bad words", "more than 1 bad words"),
        (SENTENCES[0], "", "gopher", "fewer than 50 words"),
        (f"{GOOD}\n{GOOD}", "", "repetition", "repeated lines"),
        (GOOD.replace(".", "", 2), "", "c4", "fewer than 5 sentences"),
    ],
)
def test_the_first_step_with_an_objection_drops_it(judge, text, url, step, reason):
    verdict = judge.judge(text, url)
    assert (verdict.text, verdict.step, verdict.reason, verdict.cut) == (text, step, reason, {})
    assert step in STEPS
    assert bool(verdict.language) == (step != "url")


def test_one_bad_word_fewer_is_kept(judge):
    assert judge.judge(f"{GOOD} Darn.").step == ""


def test_lines_that_c4_cut_are_told(judge):
    verdict = judge.judge(f"Menu and search\n{GOOD}")
    assert (verdict.text, verdict.step, verdict.cut) == (GOOD, "", {"no end of a sentence": 16})


def test_fineweb_judges_what_c4_has_left():
    short = "\n".join(f"It is {number}." for number in range(40))
    text = f"{short}\n{GOOD}"
    both = judge_of("web", Filter(rules=["c4", "fineweb"])).judge(text)
    assert (both.step, both.reason) == ("fineweb", "short lines")
    cut = "\n".join(f"It is number {number} of those" for number in range(40))
    assert judge_of("web", Filter(rules=["fineweb"])).judge(f"{cut}\n{GOOD}").step == "fineweb"
    assert judge_of("web", Filter(rules=["c4", "fineweb"])).judge(f"{cut}\n{GOOD}").step == ""


@pytest.mark.parametrize(("rule", "text"), [("gopher", "Too short."), ("repetition", "a\na\na\na"), ("c4", "Too short."), ("fineweb", "a\nb\nc")])  # fmt: skip
def test_each_rule_alone_is_asked_only_where_it_is_named(rule, text):
    assert judge_of("web", Filter(rules=[rule])).judge(text).step == rule
    assert judge_of("web", Filter()).judge(text).step == ""


def test_the_score_from_which_a_language_counts():
    text = SENTENCES[0]
    score = judge_of("web", Filter()).judge(text).language_score
    assert judge_of("web", Filter(languages=["en"], min_language_score=score)).judge(text).step == ""
    above = Filter(languages=["de", "en"], min_language_score=min(1.0, score + 1e-6))
    assert judge_of("web", above).judge(text).reason == "no certain language"
    assert judge_of("web", Filter(min_language_score=1.0)).judge(text).step == ""


def test_the_stop_words_of_english_are_not_asked_of_others():
    german = " ".join(f"Haus{'abcdefgh'[number % 8]}straße Wetter schön heute" for number in range(30))
    assert judge_of("web", Filter(rules=["gopher"])).judge(german).reason == ""


def test_a_judge_goes_to_another_process(judge):
    sent = pickle.dumps(judge)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    for text, url in ((GOOD, ""), (GERMAN, ""), (GOOD, "http://a.example.com")):
        assert again.judge(text, url) == judge.judge(text, url)


def test_an_unknown_language_is_told():
    with pytest.raises(UserError, match="is no language that is recognised") as error:
        judge_of("web", Filter(languages=["en", "english"]))
    assert (error.value.problems[0].key, error.value.problems[0].value) == ("source.web.filter.languages", "english")


@pytest.mark.parametrize(("key", "line"), [("bad_words", "!!!"), ("blocked_urls", "/a/b")])
def test_a_bad_line_names_the_key(tmp_path, key, line):
    (tmp_path / "list").write_text(line)
    with pytest.raises(UserError, match="line 1") as error:
        judge_of("web", Filter(**{key: [str(tmp_path / "list")]}))
    assert error.value.problems[0].key == f"source.web.filter.{key}"


def test_the_files_of_a_filter(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("x.org")
    settings = Filter(bad_words=[str(tmp_path / "a")], blocked_urls=[str(tmp_path / "b")])
    assert filter_files("web", settings) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError, match="does not exist") as error:
        filter_files("web", Filter(blocked_urls=[str(tmp_path / "c")]))
    assert error.value.problems[0].key == "source.web.filter.blocked_urls"


def test_of_a_very_long_text_the_rules_see_the_beginning(monkeypatch):
    monkeypatch.setattr("fox.data.filters.page.LONGEST_PAGE", len(GOOD))
    judge = judge_of("web", Filter(rules=["gopher", "repetition", "fineweb"]))
    text = f"{GOOD}\n{GOOD}"
    assert judge.judge(text)[:1] + judge.judge(text)[3:] == (text, "", "", {})
    assert judge_of("web", Filter(rules=["c4"])).judge(text).text == text


MILLION = 10**6
HOSTILE = {
    "one word": "x" * 10 * MILLION,
    "one word of another script": "好" * 3 * MILLION,
    "empty lines": "\n" * MILLION,
    "lines of a space": " \n" * MILLION,
    "signs": "(" * MILLION,
    "signs before a letter": "(" * MILLION + "a",
    "full stops": "a." * MILLION,
    "dots and letters": ".a" * MILLION,
    "ellipses": "... " * MILLION,
    "hyphens": "a-" * MILLION,
    "apostrophes": "a'" * MILLION,
    "ats": "a@" * MILLION,
    "addresses": "http://" * MILLION,
    "control characters": "\x00\x01\x1b\x7f\x85" * (MILLION // 4),
    "accents": "e" + "\u0301" * MILLION,
    "citations": "[1" * (MILLION // 2) + "].",
    "short lines": "a b c.\n" * (MILLION // 4),
    "a word again and again": "word " * MILLION,
    "bad words": "very bad " * (MILLION // 4),
    "nearly bad words": "very " * MILLION + "bad",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_takes_much_longer_than_others(judge, text):
    everything = Judge("web", judge._settings.model_copy(update={"languages": [], "max_bad_words": 2**40}))
    alone = [Judge("web", Filter(rules=[rule])) for rule in ("repetition", "c4", "fineweb")]
    start = time.process_time()
    for one in (everything, *alone):
        one.judge(text, "http://example.net/")
    assert time.process_time() - start < 20
