"""Words are cut as spaCy cuts English, and in scripts without spaces by characters; what is remembered changes nothing."""

import pytest

from fox.data.filters import words as module
from fox.data.filters.words import COUNTS, HAS_LETTER, kinds_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Plain words\tand\nlines", "Plain words and lines"),
        ('He said: "No," (twice).', 'He said : " No , " ( twice ) .'),
        ("I don't, she’ll; Tom's", "I do n't , she ’ll ; Tom 's"),
        ("O'Brien rock'n'roll", "O'Brien rock'n'roll"),
        ("well-known 20-year COVID-19 1990–1995 3-2", "well - known 20 - year COVID-19 1990–1995 3 - 2"),
        ("Mr. Smith of the U.S. saw J. K. at Inc. e.g. now.", "Mr. Smith of the U.S. saw J. K. at Inc. e.g. now ."),
        ("1,000.5 $5 10% 20th 3km", "1,000.5 $ 5 10 % 20th 3 km"),
        ("wait... no…yes end.Next one,two a/b", "wait ... no … yes end . Next one , two a / b"),
        ("(see https://a.b/c-d?e=f.) me@host.org,", "( see https://a.b/c-d?e=f . ) me@host.org ,"),
        ("_bold_ snake_case --option", "_ bold _ snake_case --option"),
        ("((( !!! ...", "( ( ( ! ! ! ..."),
        ("हिन्दी कमी।", "हिन्दी कमी ।"),
        ("我们都是中国人，你好abc。", "我们 都是 中国 人 ， 你好 abc 。"),
        ("東京タワー", "東京 タワ ー"),
        ("ภาษาไทย", "ภาษา ไทย"),
        ("", ""),
    ],
)
def test_words(text, words):
    assert words_of(text) == words.split()


def test_nothing_is_lost_or_added():
    text = "A.B.C., d'e—f--g…h ((i)) ‘j’ “k.” 1.5m/s² a_b* #7 x=y <z> 你好。 don’t. Ph.D. é\u0301 \u200b\x00\x1b[0m"
    assert "".join(words_of(text)) == "".join(text.split())


def test_kinds_tell_length_and_what_is_in_a_word():
    kinds = kinds_of(["word", "12", "...", "—", "A1", "é", "²"])
    assert (kinds >> 2).tolist() == [4, 2, 3, 1, 2, 1, 1]
    assert ((kinds & COUNTS) > 0).tolist() == [True, True, False, False, True, True, True]
    assert ((kinds & HAS_LETTER) > 0).tolist() == [True, False, False, False, True, True, False]


def test_memory_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    module.forget()
    text = " ".join(f"word{number}, don't" for number in range(100)) + " " + "x" * 1000
    expected = [part for number in range(100) for part in (f"word{number}", ",", "do", "n't")] + ["x" * 1000]
    for _ in range(2):
        assert words_of(text) == expected
        assert kinds_of(expected).tolist() == [kind for word in expected for kind in kinds_of([word]).tolist()]
        assert len(module._words) <= 10 and len(module._kinds) <= 10
    words_of("(((((((((")
    assert "(((((((((" not in module._words
    assert "x" * 1000 not in module._words and "x" * 1000 not in module._kinds
