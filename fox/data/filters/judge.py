"""Whether a web document is kept, and if not, by which step and why: the first step that has something against it ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fox.data.filters import c4, fineweb, gopher, repetition
from fox.data.filters.bad_words import BadWords, bad_word
from fox.data.filters.blocked import BlockedUrls, blocked_url
from fox.data.filters.language import known_languages, language_of
from fox.data.filters.lists import ListFiles
from fox.data.filters.page import Page
from fox.errors import UserError
from fox.recipe.schema import Filter

STEPS = ("url", "language", "bad words", "gopher", "repetition", "c4", "fineweb")
"""In the order in which they are gone through; the quickest and those that need the text as it was come first."""


class Verdict(NamedTuple):
    """What became of a document."""

    text: str
    """As it is kept, or as it was when it was dropped: C4's rules may have cut lines."""
    language: str
    """Empty where the document was dropped by its address: nobody looked at its text."""
    language_score: float
    """The probability of that language."""
    step: str
    """Which of STEPS dropped the document; empty where it is kept."""
    reason: str
    """Why, in one of a few phrases, to be counted by; empty where it is kept."""
    cut: Counter[str]
    """Bytes that C4's rules cut from the text, by reason."""


class Judge:
    """Judges one document after another. A copy in another process reads the lists anew, and is no larger to send than its settings."""

    def __init__(self, name: str, settings: Filter) -> None:
        """For the source of that name. Raises UserError where the filter's files can't be used, or there is no such language."""
        self._name, self._settings = name, settings
        if unknown := [code for code in settings.languages if code not in known_languages()]:
            raise UserError(
                f"source.{name}.filter.languages",
                unknown[0],
                problem="is no language that is recognised",
                mend=f"Write ISO 639-1 codes, such as en: {', '.join(sorted(known_languages()))}.",
            )
        self._languages, self._rules = frozenset(settings.languages), frozenset(settings.rules)
        lists = _lists(name, settings)
        self._blocked = BlockedUrls(lists["blocked_urls"].entries(blocked_url)) if settings.blocked_urls else None
        self._bad_words = BadWords(lists["bad_words"].entries(bad_word)) if settings.bad_words else None

    def __reduce__(self) -> tuple[Callable[[str, str], Judge], tuple[str, str]]:
        return _copy_of, (self._name, self._settings.model_dump_json())

    def judge(self, text: str, url: str = "") -> Verdict:
        """The verdict on a document, by its plain text (lines end in \\n) and its address."""
        if self._blocked and url and self._blocked.has(url):
            return Verdict(text, "", 0.0, "url", "blocked address", Counter())
        language, score = language_of(text)
        step, reason = self._step_before_rules(text, language, score)
        cut = Counter[str]()
        if not step:
            text, step, reason, cut = self._rules_on(text, language)
        return Verdict(text, language, score, step, reason, cut)

    def _step_before_rules(self, text: str, language: str, score: float) -> tuple[str, str]:
        if self._languages and language not in self._languages:
            return "language", "another language"
        if self._languages and score < self._settings.min_language_score:
            return "language", "no certain language"
        most = self._settings.max_bad_words
        if self._bad_words and self._bad_words.count(text, most + 1) > most:
            return "bad words", f"more than {most} bad words"
        return "", ""

    def _rules_on(self, text: str, language: str) -> tuple[str, str, str, Counter[str]]:
        """Text, step, reason, and what was cut."""
        page, cut = Page(text, language), Counter[str]()
        if "gopher" in self._rules and (reason := gopher.fault(page)):
            return text, "gopher", reason, cut
        if "repetition" in self._rules and (reason := repetition.fault(page)):
            return text, "repetition", reason, cut
        if "c4" in self._rules:
            cleaned, reason, cut = c4.clean(text)
            if reason:
                return text, "c4", reason, cut
            if cleaned != text:
                text, page = cleaned, Page(cleaned, language)
        if "fineweb" in self._rules and (reason := fineweb.fault(page)):
            return text, "fineweb", reason, cut
        return text, "", "", cut


def judge_of(name: str, settings: Filter) -> Judge:
    """The judge of the source of that name (`source.NAME.filter`). Raises UserError."""
    return Judge(name, settings)


@lru_cache(maxsize=32)
def _copy_of(name: str, settings: str) -> Judge:
    """One for all tasks that a process is sent: its lists may take seconds to read."""
    return Judge(name, Filter.model_validate_json(settings))


def filter_files(name: str, settings: Filter) -> list[Path]:
    """The files that a filter reads, for a run to notice that they changed. Raises UserError where one can't be read."""
    return [path for files in _lists(name, settings).values() for path in files.paths()]


def _lists(name: str, settings: Filter) -> dict[str, ListFiles]:
    return {
        key: ListFiles(f"source.{name}.filter.{key}", getattr(settings, key)) for key in ("bad_words", "blocked_urls")
    }
