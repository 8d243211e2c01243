"""The language of a text and how sure that is."""

import pytest

from fox.data.filters.language import LOOKED_AT, known_languages, language_of

ENGLISH = "This is a plain sentence about the weather, which is fine today, and about nothing else at all. "
GERMAN = "Das ist ein einfacher Satz über das Wetter, das heute schön ist, und über sonst gar nichts. "


@pytest.mark.parametrize(
    ("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), ("我们都是中国人，今天天气很好。" * 3, "zh")]
)
def test_language(text, language):
    found, probability = language_of(text)
    assert found == language and found in known_languages()
    assert 0.65 < probability <= 1


def test_nothing_has_no_certain_language():
    for text in ("", " \n", "\x00\x01", "\ue000" * 50):
        assert 0 <= language_of(text)[1] < 0.65


def test_only_the_beginning_is_looked_at():
    english = (ENGLISH * 20)[:LOOKED_AT]
    assert language_of(english + GERMAN * 1000) == language_of(english)
