"""Which language a text is in, by py3langid (naive Bayes over byte n-grams, after Lui and Baldwin, ACL 2012). Needs py3langid.

Its probability is that of one language against its 138 others, from the sum of the logarithms over the root of the text's length in bytes, so that a long
text is no surer than its words are. Its model is read once a process: half a second and 100 MB.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

LOOKED_AT = 1000
"""Characters from the beginning. More tell nothing new of running text, and take most of a filter's time (bench/filters.py)."""


def language_of(text: str) -> tuple[str, float]:
    """The likeliest language (ISO 639-1, of a few 639-3; `zxx` is none at all) and its probability."""
    language, probability = _identifier().classify(text[:LOOKED_AT])
    return str(language), float(probability)


def known_languages() -> frozenset[str]:
    """All codes that `language_of` gives."""
    return frozenset(_identifier().labels)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
