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
from tokenizers import AddedToken

from fox.errors import UserError
from fox.formats.untrusted import read_untrusted

# Twice what the largest have or more: Gemma's file has 33 MB, 262,144 tokens, 514,906 merges and 6,415 added tokens.
_LARGEST = 64 << 20
_MOST = {b"[": 1_200_000, b"{": 100_000, b":": 800_000, b",": 3_000_000, b'"content"': 16_384}
_MOST_STEPS = 64
_LARGEST_GROWTH = 1024
_MOST_NAMED = 16_384
_LONGEST_NAME = 256
_NAMED = tuple(
    f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)  # as transformers has them
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")

# All that Unicode calls white space, which is what the library strips; Python's own notion has four characters more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


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


def add_named_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], place: str) -> list[str]:
    """Make tokens special that tokenizer_config.json alone says are, as transformers does; what to warn of.

    Raises UserError where the two files contradict each other, or where the first asks for what no tokenizer has.
    """
    known = backend.get_added_tokens_decoder()
    names = {token.content for token in known.values()}
    new: dict[str, AddedToken] = {}
    ids: dict[str, int] = {}
    next_id: int | None = None
    for token_id, stated in _stated_tokens(config, place):
        key = f"added_tokens_decoder.{token_id}"
        token = _added_token(stated, key, place, is_special=False)
        written, holder = backend.token_to_id(token.content), backend.id_to_token(token_id)
        if written is None and holder is None:
            if next_id is None:
                next_id = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
            if token_id != next_id or token.content in new:
                raise UserError(
                    key, token.content, place=place, problem=f"is no token, and the next one's id is {next_id}"
                )
            next_id += 1
        elif written != token_id:
            theirs = f"has {holder!r} there" if holder is not None else f"has it as {written}"
            raise UserError(key, token.content, place=place, problem=f"contradicts tokenizer.json, which {theirs}")
        if token_id not in known:
            new[token.content], ids[token.content] = token, token_id
            continue
        for flag in _FLAGS:
            # Special tokens are found in no text, so it matters not whether before it is normalised or after.
            matters = flag != "normalized" or not token.special
            if flag in stated and matters and getattr(token, flag) != getattr(known[token_id], flag):
                raise UserError(
                    f"{key}.{flag}",
                    stated[flag],
                    place=place,
                    problem="contradicts what tokenizer.json says of the token",
                )
    strangers: list[str] = []
    for key, stated in _named_tokens(config, place):
        token = _added_token(stated, key, place, is_special=True)
        if token.content in new:
            new[token.content].special = True
        elif token.content not in names:
            found = backend.token_to_id(token.content)
            if found is None:
                strangers.append(token.content)
            else:
                new[token.content], ids[token.content] = token, found
    with panics_as_errors():
        backend.add_tokens(list(new.values()))
    for name, token_id in ids.items():
        if backend.token_to_id(name) != token_id:
            raise UserError(
                f"added_tokens_decoder.{token_id}",
                name,
                place=place,
                problem="can't be had beside the gaps between other ids",
            )
    if not strangers:
        return []
    others = f" and {len(strangers) - 1:,} more" if len(strangers) > 1 else ""
    return [f"{strangers[0]!r}{others}, named in tokenizer_config.json, is no token of the tokenizer: it stays text"]


def check_special_tokens(backend: tokenizers.Tokenizer, place: str) -> list[str]:
    """Raise UserError for special tokens whose flags can't be followed where a chat is cut at them; what to warn of."""
    added = list(backend.get_added_tokens_decoder().values())
    spaced = [t.content for t in added if not t.special and t.content.strip(WHITE_SPACE) != t.content]
    warnings: list[str] = []
    for token in added:
        if not token.special or not token.content:
            continue
        strips = [flag for flag in ("lstrip", "rstrip") if getattr(token, flag)]
        reason = "is something that Fox can't do to a special token"
        if token.single_word:
            raise UserError("tokenizer.added_tokens.single_word", token.content, place=place, problem=reason)
        if strips and (spaced or (token.normalized and backend.normalizer is not None)):
            beside = f"beside the token {spaced[0]!r}" if spaced else "after text is normalised"
            raise UserError(
                f"tokenizer.added_tokens.{strips[0]}", token.content, place=place, problem=f"{reason} {beside}"
            )
        if not warnings and token.normalized and backend.normalizer is not None:
            with panics_as_errors():
                found = backend.normalizer.normalize_str(token.content)
            if found != token.content:
                warnings.append(
                    f"transformers looks for the special token {token.content!r} as {found[:_LONGEST_NAME]!r}, "
                    "so it misses some in chats; Fox finds them all"
                )
    return warnings


def rebuilt_otherwise(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> list[str]:
    """A warning where transformers 5 makes other ids of the same files: for these classes it takes the vocabulary alone."""
    kind = config.get("tokenizer_class")
    normalizer, cutter = (
        None if part is None else json.loads(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer)
    )
    if any(step.get("type") == "ByteLevel" for step in _objects(cutter)):
        return []  # these it leaves alone
    if kind in ("LlamaTokenizer", "LlamaTokenizerFast"):
        theirs = "always" if config.get("legacy", False) is True else "first"
        if config.get("add_prefix_space") is False:
            theirs = "never"
    elif kind in ("GemmaTokenizer", "GemmaTokenizerFast"):
        theirs = "never"
    else:
        return []
    # Gemma's asks to cut at spaces too, which changes nothing: there are none left then.
    at_spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    ours = ""
    if normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"} and cutter in (None, at_spaces):
        ours = "never"
    elif normalizer is None and cutter is not None and cutter["type"] == "Metaspace":
        ours = cutter["prepend_scheme"] if (cutter["replacement"], cutter["split"]) == ("▁", False) else ""
    if ours == theirs:
        return []
    return [
        f"transformers 5 puts spaces otherwise than tokenizer.json says, because tokenizer_config.json names {kind}; "
        "Fox goes by tokenizer.json, and what it exports is read so everywhere"
    ]


def _stated_tokens(config: dict[str, Any], place: str) -> list[tuple[int, dict[str, Any]]]:
    """What added_tokens_decoder says, in the order of its ids."""
    stated = config.get("added_tokens_decoder")
    if stated is None:
        return []
    if not isinstance(stated, dict) or len(stated) > _MOST_NAMED:
        raise UserError("added_tokens_decoder", place=place, problem=f"is no object of at most {_MOST_NAMED:,} tokens")
    for key, token in stated.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9 and isinstance(token, dict)):
            raise UserError(f"added_tokens_decoder.{key}", token, place=place, problem="is no id with a token")
    return sorted(((int(key), token) for key, token in stated.items()), key=lambda pair: pair[0])


def _named_tokens(config: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each token that is named as special, by the key that names it."""
    named = [(key, config[key]) for key in _NAMED if config.get(key) is not None]
    for key in ("additional_special_tokens", "extra_special_tokens"):  # the same, as transformers 4 and 5 call it
        more = config.get(key)
        if more is None:
            continue
        if isinstance(more, dict):
            more = list(more.values())
        if not isinstance(more, list) or len(more) > _MOST_NAMED:
            raise UserError(key, place=place, problem=f"is no list of at most {_MOST_NAMED:,} tokens")
        named += [(key, token) for token in more]
    for key, token in named:
        yield key, {"content": token} if isinstance(token, str) else token


def _added_token(stated: object, key: str, place: str, is_special: bool) -> AddedToken:
    content = stated.get("content") if isinstance(stated, dict) else None
    if not isinstance(stated, dict) or not isinstance(content, str) or not 0 < len(content) <= _LONGEST_NAME:
        raise UserError(key, stated, place=place, problem=f"is no token of 1 to {_LONGEST_NAME} characters")
    flags = {flag: stated[flag] for flag in _FLAGS if flag in stated}
    if wrong := next((flag for flag, value in flags.items() if not isinstance(value, bool)), None):
        raise UserError(f"{key}.{wrong}", flags[wrong], place=place, problem="is neither true nor false")
    special = is_special or flags.get("special", False)
    return AddedToken(content, **{"normalized": not special, **flags, "special": special})


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
