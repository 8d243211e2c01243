"""The tokenizers library behind bounds: a tokenizer.json of unknown origin is held against what real ones have before it is used.

The library takes whatever it is given: half a minute and gigabytes for a vocabulary of some millions, texts padded to a length
of 2^40 or cut without a word, a normalizer that doubles a text thirty times; and it panics at some of what can't work.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from fox.formats.untrusted import read_untrusted

# Twice what the largest have or more: Gemma's file has 33 MB, 262,144 tokens, 514,906 merges and 6,415 added tokens.
_LARGEST = 64 << 20
_MOST = {b"[": 1_200_000, b"{": 100_000, b":": 800_000, b",": 3_000_000, b'"content"': 16_384}
_MOST_STEPS = 64
_LARGEST_GROWTH = 1024


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, tried out on a short text. Raises Exception for whatever is wrong with it."""
    raw = read_untrusted(path, _LARGEST)
    for what, most in _MOST.items():
        if raw.count(what) > most:
            raise ValueError(f"it has more than {most:,} {what.decode()}, more than any tokenizer")
    with panics_as_errors():
        backend = tokenizers.Tokenizer.from_buffer(raw)
        backend.no_padding()  # a text is encoded as it is, whatever was done to those of its maker's
        backend.no_truncation()
        _check_steps(backend)
        with contextlib.suppress(Exception):  # it may lack these letters; some panics show only in use
            backend.decode(backend.encode("a b").ids)
    return backend


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn the library's panics, which pass by every `except Exception`, into a ValueError.

    They come of a regular expression that tries too long, a table cut short, a name that a template lacks.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which can't be imported
            raise
        raise ValueError(f"the tokenizers library gave up: {error}") from None


def _check_steps(backend: tokenizers.Tokenizer) -> None:
    """Raise ValueError where a text would go through too much, or grow too much, on its way."""
    for part in (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder):
        stated = json.loads(part.__getstate__()) if part is not None else None
        num_steps, growth = 0, 1.0
        for step in _objects(stated):
            num_steps += 1
            if step.get("type") == "Replace":
                pattern = step["pattern"].get("String", "")  # a regular expression may match next to nothing
                growth *= max(1.0, len(step["content"].encode()) / max(1, len(pattern.encode())))
            elif step.get("type") == "Prepend":
                growth *= max(1.0, len(step["prepend"].encode()) / 16)
        if num_steps > _MOST_STEPS or growth > _LARGEST_GROWTH:
            raise ValueError("it does more to a text than any tokenizer")


def _objects(stated: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value. The library's own parser bounds how deep they are."""
    if isinstance(stated, dict):
        yield stated
    for value in stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else ():
        yield from _objects(value)
