"""The tokenizer that a GGUF file holds, rebuilt so that it gives the ids that llama.cpp gives.

A file has either GPT-2's kind (byte-level, with merges) or SentencePiece's (a score a token instead of merges, and tokens of
bytes for what the vocabulary lacks). Whatever stands in it is held against the rest before it reaches the tokenizers library,
which panics at some of what a damaged file may say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from fox.errors import UserError
from fox.tokenizer.llama_cpp import ROLES, WORD_RULES, Kind, WordRule, ends_of_reply
from fox.tokenizer.tokenizer import Tokenizer

_MOST_TOKENS = 1 << 19  # the largest vocabularies have 262,144
_LONGEST_PIECE = 256  # characters; SentencePiece's own limit is 16, and all places to split a piece are tried
_MOST_SPECIAL = 1 << 16


class GgufMetadata(Protocol):
    """What is read of a file's metadata: `fox.formats.gguf.reader.Metadata`, which can't be imported without torch."""

    place: str

    def __contains__(self, key: str) -> bool: ...
    def text(self, key: str, default: str | None = None) -> str: ...
    def whole(self, key: str, default: int | None = None) -> int: ...
    def yes_or_no(self, key: str, default: bool | None = None) -> bool: ...
    def texts(self, key: str, default: Sequence[str] | None = None) -> list[str]: ...
    def numbers(self, key: str, default: Sequence[float] | None = None) -> np.ndarray: ...


def tokenizer_from_gguf(metadata: GgufMetadata) -> Tokenizer:
    """The file's tokenizer with its special tokens and chat template. Raises UserError where it has none, or none that Fox knows."""
    model = metadata.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise UserError(
            "tokenizer.ggml.model",
            model,
            place=metadata.place,
            problem="is a kind of tokenizer that is not supported",
            mend="gpt2 (byte-level BPE) and llama (SentencePiece BPE) are.",
        )
    tokens = _tokens(metadata)
    id_of = {token: token_id for token_id, token in enumerate(tokens)}
    if len(id_of) != len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if id_of[token] != token_id)
        raise _wrong(metadata, "tokens", twice, "stands there twice")
    ends = {id_of[name] for name in ends_of_reply(id_of)}
    kinds = _kinds(metadata, len(tokens))
    kinds[list(ends)] = Kind.CONTROL
    roles = _roles(metadata, tokens, kinds, model)
    if model == "gpt2":
        rule = _rule(metadata)
        backend = _byte_level(metadata, id_of, rule)
        adds_bos = rule.adds_bos
    else:
        backend = _sentencepiece(metadata, tokens, id_of, kinds, roles.get("unk"))
        adds_bos = True
    _add_tokens(metadata, backend, tokens, kinds)
    _frame(metadata, backend, tokens, roles, adds_bos)

    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokens[token_id] for role, token_id in roles.items()},
    }
    if (template := _template(metadata)) is not None:
        config["chat_template"] = template
    tokenizer = Tokenizer(backend, config)
    tokenizer.stop_ids |= ends | {roles[role] for role in ("eos", "eot", "eom") if role in roles}
    return tokenizer


def _tokens(metadata: GgufMetadata) -> list[str]:
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= _MOST_TOKENS:
        raise _wrong(
            metadata, "tokens", f"{len(tokens):,} tokens", f"is no vocabulary (1 to {_MOST_TOKENS:,} are read)"
        )
    # llama.cpp's own name for a token without one
    return [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(tokens)]


def _kinds(metadata: GgufMetadata, count: int) -> np.ndarray:
    kinds = metadata.numbers("tokenizer.ggml.token_type", [Kind.NORMAL] * count)
    if len(kinds) < count:
        raise _wrong(metadata, "token_type", f"{len(kinds):,} entries", f"are too few for {count:,} tokens")
    if kinds.dtype.kind not in "iu":
        raise _wrong(metadata, "token_type", str(kinds.dtype), "are not whole numbers")
    return kinds[:count].astype(np.int64)


def _roles(metadata: GgufMetadata, tokens: list[str], kinds: np.ndarray, model: str) -> dict[str, int]:
    """The ids of <s>, </s> and their like."""
    roles: dict[str, int] = {}
    for role, key in ROLES.items():
        if key in metadata:
            token_id = metadata.whole(key)
            if not 0 <= token_id < len(tokens):
                raise UserError(key, token_id, place=metadata.place, problem=f"is no token: there are {len(tokens):,}")
            roles[role] = token_id
    if model == "llama":  # what llama.cpp falls back on, for this kind, where these tokens are such
        for role, token_id, kind in (("bos", 1, Kind.CONTROL), ("eos", 2, Kind.CONTROL), ("unk", 0, Kind.UNKNOWN)):
            if role not in roles and token_id < len(tokens) and kinds[token_id] == kind:
                roles[role] = token_id
    return roles


def _rule(metadata: GgufMetadata) -> WordRule:
    key = "tokenizer.ggml.pre"
    if key not in metadata or (name := metadata.text(key)) == "default":
        # llama.cpp goes on with a guess then, and warns that the model will write worse
        raise UserError(
            key,
            place=metadata.place,
            problem="doesn't say how text is cut into words, as in files of before May 2024",
            mend="Download a newer conversion of the model.",
        )
    for rule in WORD_RULES:
        if name in rule.names:
            return rule
    known = ", ".join(name for rule in WORD_RULES for name in rule.names)
    raise UserError(
        key,
        name,
        place=metadata.place,
        problem="is a way to cut text into words that is not supported",
        mend=f"Supported: {known}.",
    )


def _byte_level(metadata: GgufMetadata, id_of: dict[str, int], rule: WordRule) -> tokenizers.Tokenizer:
    letters = sum(letter in id_of for letter in tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if letters < 128:  # SmolLM2's lacks 21 of 256, which never occurred where it was learnt
        raise _wrong(
            metadata, "tokens", f"{len(id_of):,} tokens", "are no byte-level vocabulary: most single bytes are missing"
        )
    merges: list[tuple[str, str]] = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in id_of or right not in id_of or left + right not in id_of:
            raise _wrong(metadata, "merges", merge, "is no merge of two tokens into a third")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(id_of, merges, ignore_merges=rule.ignores_merges))
    if rule.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    metadata: GgufMetadata, tokens: list[str], id_of: dict[str, int], kinds: np.ndarray, unk_id: int | None
) -> tokenizers.Tokenizer:
    missing = next((name for byte in range(256) if (name := f"<0x{byte:02X}>") not in id_of), None)
    if missing:
        raise _wrong(
            metadata, "tokens", f"{len(tokens):,} tokens", f"lack {missing}, so there is text that they can't write"
        )
    scores = metadata.numbers("tokenizer.ggml.scores").astype(np.float32)
    if len(scores) < len(tokens):
        raise _wrong(metadata, "scores", f"{len(scores):,} entries", f"are too few for {len(tokens):,} tokens")
    if np.isnan(scores).any():
        raise _wrong(metadata, "scores", "nan", "is no score")
    merges = _merges(metadata, tokens, id_of, kinds, scores)
    unk = None if unk_id is None else tokens[unk_id]
    backend = tokenizers.Tokenizer(models.BPE(id_of, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    # As the tokenizer.json of Llama 2 has it, and of Gemma where no space is put in front.
    replace = normalizers.Replace(" ", "▁")
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.yes_or_no("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = replace
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(
    metadata: GgufMetadata, tokens: list[str], id_of: dict[str, int], kinds: np.ndarray, scores: np.ndarray
) -> list[tuple[str, str]]:
    """All pairs of tokens that make a third, that of the best score first.

    So does llama.cpp merge (llm_tokenizer_spm_session). Among equals it takes the pair that comes first in the text, which a
    list of merges can't say; scores that tie occur in no vocabulary that SentencePiece has learnt. It would also put control
    tokens together from text; here, as in SentencePiece, no text turns into one.
    """
    by_text = np.isin(kinds, [Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED])
    merges: list[tuple[str, str]] = []
    for token_id in np.argsort(-scores[: len(tokens)], kind="stable").tolist():
        token = tokens[token_id]
        if len(token) < 2 or not by_text[token_id]:
            continue
        if len(token) > _LONGEST_PIECE:
            if kinds[token_id] == Kind.NORMAL:
                raise _wrong(metadata, "tokens", token, f"is longer than {_LONGEST_PIECE} characters")
            continue
        pairs = [
            (id_of[left], id_of[right])
            for cut in range(1, len(token))
            if (left := token[:cut]) in id_of and (right := token[cut:]) in id_of
        ]
        merges += [(tokens[left], tokens[right]) for left, right in sorted(pairs)]
    return merges


def _add_tokens(metadata: GgufMetadata, backend: tokenizers.Tokenizer, tokens: list[str], kinds: np.ndarray) -> None:
    """Make control tokens special: no text turns into one. The user's own tokens are found in text before all else."""
    special = np.flatnonzero(np.isin(kinds, [Kind.CONTROL, Kind.UNKNOWN])).tolist()
    users = np.flatnonzero(kinds == Kind.USER_DEFINED).tolist()
    if len(special) + len(users) > _MOST_SPECIAL:
        raise _wrong(
            metadata, "token_type", f"{len(special) + len(users):,} special tokens", f"are more than {_MOST_SPECIAL:,}"
        )
    backend.add_special_tokens([AddedToken(tokens[token_id], special=True, normalized=False) for token_id in special])
    backend.add_tokens([AddedToken(tokens[token_id], special=False, normalized=False) for token_id in users])


def _frame(
    metadata: GgufMetadata, backend: tokenizers.Tokenizer, tokens: list[str], roles: dict[str, int], adds_bos: bool
) -> None:
    """Have the tokenizer put <s> and </s> around a text, where the file asks for it."""
    around: dict[str, list[str]] = {"bos": [], "eos": []}
    for role, default in (("bos", adds_bos), ("eos", False)):
        if not metadata.yes_or_no(f"tokenizer.ggml.add_{role}_token", default):
            continue
        if role not in roles:
            raise UserError(ROLES[role], place=metadata.place, problem="is missing, and is to be added to each text")
        name = tokens[roles[role]]
        if name.startswith("$") or ":" in name:  # these mean something else in a template of the tokenizers library
            raise UserError(ROLES[role], name, place=metadata.place, problem="can't be added to each text")
        around[role] = [name]
    if any(around.values()):
        first, last = around["bos"], around["eos"]
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=[(name, roles[role]) for role, names in around.items() for name in names],
        )


def _template(metadata: GgufMetadata) -> str | list[dict[str, str]] | None:
    """The chat template; a list of named ones where the file has several."""
    key = "tokenizer.chat_template"
    names = metadata.texts("tokenizer.chat_templates", [])
    named = [
        {"name": name, "template": metadata.text(f"{key}.{name}")} for name in names if f"{key}.{name}" in metadata
    ]
    if named and key in metadata:
        return [{"name": "default", "template": metadata.text(key)}, *named]
    return named or (metadata.text(key) if key in metadata else None)


def _wrong(metadata: GgufMetadata, key: str, value: str, problem: str) -> UserError:
    return UserError(
        f"tokenizer.ggml.{key}",
        value,
        place=metadata.place,
        problem=problem,
        mend="Download the file or make it again.",
    )
