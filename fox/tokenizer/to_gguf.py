"""A tokenizer as a GGUF file's metadata, if llama.cpp can cut text as it does.

llama.cpp knows a few ways to cut text by name and no others, so a tokenizer is taken apart here, compared with those, and
refused where it asks for more. What is written is read back by `fox.tokenizer.from_gguf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import tokenizers
from tokenizers import models

from fox.errors import UserError
from fox.tokenizer.llama_cpp import END_OF_TURN, ROLES, WORD_RULES, Kind, WordRule, cuts_of, ends_of_reply
from fox.tokenizer.tokenizer import Tokenizer

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
"""What GGUF metadata may be: as `fox.formats.gguf.writer.Value`, which can't be imported without torch."""

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND = {"type": "Prepend", "prepend": "▁"}
# Gemma's asks to cut at spaces too, when there are none left: its normalizer has replaced them.
_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_Merges = list[tuple[str, str]]


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Value]:
    """The tokenizer.* keys for a model of `vocab_size` rows; a row without a token gets one that is marked unused.

    Raises UserError where llama.cpp would cut text in another way. One difference can't be seen in the file and remains:
    llama.cpp normalises nothing (Qwen's tokenizers ask for NFC).
    """
    stated = json.loads(tokenizer.backend.to_str())
    model = stated["model"]
    _check_model(model)
    id_of: dict[str, int] = {token: token_id for token, token_id in model["vocab"].items() if token}
    merges: _Merges = [(left, right) for left, right in model["merges"]]
    if not merges:
        raise UserError("tokenizer.model.merges", problem="are none, and llama.cpp reads no vocabulary without")
    tokens, kinds = _tokens(tokenizer, stated, id_of, vocab_size)
    metadata: dict[str, Value]
    if model["byte_fallback"]:
        metadata = _sentencepiece(stated, id_of, merges, kinds)
    else:
        metadata = _byte_level(stated, id_of, merges, kinds)
    return {
        **metadata,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        **_roles(tokenizer),
        **_frame(tokenizer),
        **_template(tokenizer.config.get("chat_template")),
    }


def _check_model(model: dict[str, Any]) -> None:
    kind = model.get("type")
    if kind != "BPE":
        raise UserError("tokenizer.model.type", kind, problem="can't be written as GGUF", mend="BPE can.")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"tokenizer.model.{key}", model[key], problem="is something that llama.cpp can't do")


def _tokens(
    tokenizer: Tokenizer, stated: dict[str, Any], id_of: dict[str, int], vocab_size: int
) -> tuple[list[str], list[Kind]]:
    """A token and its kind for each row of the model."""
    if vocab_size < tokenizer.vocab_size:
        raise UserError(
            "vocab_size",
            vocab_size,
            problem=f"is less than the tokenizer's {tokenizer.vocab_size:,}",
            mend="Use the model's own tokenizer.",
        )
    falls_back = stated["model"]["byte_fallback"]
    has_prefix = "Prepend" in json.dumps(stated["normalizer"])
    named = {token_id: token for token, token_id in id_of.items()}
    kinds = {
        token_id: Kind.BYTE if falls_back and _BYTE.fullmatch(token) else Kind.NORMAL
        for token_id, token in named.items()
    }
    for added in stated["added_tokens"]:
        if not added["content"]:
            continue
        named[added["id"]] = added["content"]
        kinds[added["id"]] = Kind.CONTROL if added["special"] else Kind.USER_DEFINED
        for key in ("lstrip", "rstrip", "single_word"):
            if added[key]:
                raise UserError(
                    f"tokenizer.added_tokens.{key}", added["content"], problem="is something that llama.cpp can't do"
                )
        if added["special"]:
            continue  # found in no text, so it matters not how it would be
        if added["normalized"] and has_prefix:  # it would be found only where a text begins
            raise UserError(
                "tokenizer.added_tokens.normalized",
                added["content"],
                problem="can't be written beside a normalizer that puts a space in front",
            )
    if falls_back and (unk := stated["model"]["unk_token"]) in id_of:
        kinds[id_of[unk]] = Kind.UNKNOWN
    if broken := next((name for name in named.values() if "\0" in name), None):
        raise UserError("tokenizer.model.vocab", broken, problem="holds a NUL, and llama.cpp reads a token only so far")
    taken = set(named.values())
    for token_id in range(vocab_size):
        if token_id not in named:
            name = f"[PAD{token_id}]"  # as llama.cpp's own converter calls it
            while name in taken:  # llama.cpp aborts where two tokens are the same
                name = f"[{name}]"
            named[token_id], kinds[token_id] = name, Kind.UNUSED
    return [named[token_id] for token_id in range(vocab_size)], [kinds[token_id] for token_id in range(vocab_size)]


def _byte_level(stated: dict[str, Any], id_of: dict[str, int], merges: _Merges, kinds: list[Kind]) -> dict[str, Value]:
    rule = _rule(stated)
    if stated["model"]["ignore_merges"] and not rule.ignores_merges:
        improper = _not_made_by_merges(
            {token: n for token, n in id_of.items() if kinds[n] == Kind.NORMAL}, id_of, merges
        )
        if improper:
            raise UserError(
                "tokenizer.model.ignore_merges",
                True,
                problem=f"is something that llama.cpp can't do with {rule.names[0]}, and no merges make {improper[0]!r}",
            )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule.names[0],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def _rule(stated: dict[str, Any]) -> WordRule:
    """What llama.cpp calls the way in which this tokenizer cuts text."""
    normalizers = _steps(stated["normalizer"], "normalizers")
    is_nfc = normalizers == [{"type": "NFC"}]
    if normalizers and not is_nfc:
        raise UserError(
            "tokenizer.normalizer",
            stated["normalizer"],
            problem="is something that llama.cpp can't do to bytes",
            mend="NFC is let pass.",
        )
    cuts = cuts_of(stated["pre_tokenizer"])
    same_cuts = [rule for rule in WORD_RULES if rule.cuts == cuts and rule.is_nfc == is_nfc]
    if not same_cuts:
        known = ", ".join(rule.names[0] + (" (with NFC)" if rule.is_nfc else "") for rule in WORD_RULES)
        raise UserError(
            "tokenizer.pre_tokenizer",
            stated["pre_tokenizer"],
            problem=f"{'after NFC ' if is_nfc else ''}is none that Fox can name to llama.cpp",
            mend=f"Those of {known} are.",
        )
    ignores = [rule for rule in same_cuts if rule.ignores_merges == stated["model"]["ignore_merges"]]
    return (ignores or same_cuts)[0]


def _sentencepiece(
    stated: dict[str, Any], id_of: dict[str, int], merges: _Merges, kinds: list[Kind]
) -> dict[str, Value]:
    has_prefix = _has_space_prefix(stated, id_of)
    missing = next((name for byte in range(256) if (name := f"<0x{byte:02X}>") not in id_of), None)
    if missing:
        raise UserError(
            "tokenizer.model.vocab", problem=f"lacks {missing}, without which llama.cpp can't fall back to bytes"
        )
    _check_merges(stated, id_of, merges)
    # A merge's rank is its token's score. Tokens that nothing is merged into come last, where SentencePiece has its letters.
    scores = [-float(len(merges)) if kind == Kind.NORMAL else 0.0 for kind in kinds]
    for token, rank in _deciding_ranks(merges).items():
        scores[id_of[token]] = -float(rank)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",  # as llama.cpp's converter writes for this kind
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": has_prefix,
    }


def _has_space_prefix(stated: dict[str, Any], id_of: dict[str, int]) -> bool:
    """Whether a space is put in front of a text. Raises UserError for any way to write spaces but SentencePiece's."""
    normalizer = _steps(stated["normalizer"], "normalizers")
    cutter = _steps(stated["pre_tokenizer"], "pretokenizers")
    if normalizer in ([_REPLACE], [_PREPEND, _REPLACE]) and cutter in ([], [_AT_SPACES]):
        return len(normalizer) == 2
    if not normalizer and len(cutter) == 1 and cutter[0].get("type") == "Metaspace" and cutter[0]["replacement"] == "▁":
        if (scheme := cutter[0]["prepend_scheme"]) != "never":
            raise UserError(
                "tokenizer.pre_tokenizer.prepend_scheme",
                scheme,
                problem="puts no space before a text that has one, or that follows a special token, and llama.cpp does",
                mend="Export it with --to hf, or use the model's own GGUF file.",
            )
        # To cut before each space changes nothing where spaces only begin tokens.
        if not cutter[0].get("split", True) or not any("▁" in token[1:] for token in id_of):
            return False
    raise UserError(
        "tokenizer.pre_tokenizer",
        stated["pre_tokenizer"],
        problem=f"with the normalizer {json.dumps(stated['normalizer'], ensure_ascii=False)} is none that Fox can name to llama.cpp",
        mend="For a tokenizer that falls back to bytes, those of Llama 2 and Gemma are.",
    )


def _check_merges(stated: dict[str, Any], id_of: dict[str, int], merges: _Merges) -> None:
    """Raise UserError where llama.cpp would merge what the tokenizer doesn't.

    llama.cpp merges any two neighbours that make a token. The last two pieces of a token are always the same (all that
    happens inside it goes as it does for the token alone), so where each token's own text becomes that token, no two
    neighbours but those of its listed merge ever make it.
    """
    for token in _not_made_by_merges(id_of, id_of, merges):
        for cut in range(1, len(token)):
            parts = (token[:cut], token[cut:])
            if all(len(part) == 1 or part in id_of for part in parts):
                raise UserError(
                    "tokenizer.model.merges",
                    token,
                    problem=f"is a token that llama.cpp makes of {parts[0]!r} and {parts[1]!r}, and this tokenizer doesn't",
                )
    if stated["model"]["ignore_merges"] and _not_made_by_merges(id_of, id_of, merges):
        raise UserError("tokenizer.model.ignore_merges", True, problem="is something that llama.cpp can't do here")


def _not_made_by_merges(of: dict[str, int], id_of: dict[str, int], merges: _Merges) -> list[str]:
    """Those tokens whose own text doesn't become them, by merges alone."""
    bare = tokenizers.Tokenizer(models.BPE(id_of, merges))
    encodings = bare.encode_batch_fast(list(of), add_special_tokens=False)
    return [token for token, encoding in zip(of, encodings, strict=True) if encoding.ids != [id_of[token]]]


def _deciding_ranks(merges: _Merges) -> dict[str, int]:
    """The rank of the merge that makes each token, where a list has several for it."""
    ranks_of: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks_of.setdefault(left + right, []).append(rank)
    rank_of: dict[tuple[str, str], int] = {}
    deciding: dict[str, int] = {}
    for token, ranks in ranks_of.items():
        deciding[token] = ranks[0]
        if ranks[-1] - ranks[0] >= len(ranks):  # another token's merge lies between, so it matters which one it is
            rank_of = rank_of or {pair: rank for rank, pair in enumerate(merges)}
            deciding[token] = _last_rank(token, rank_of)
    return deciding


def _last_rank(token: str, rank_of: dict[tuple[str, str], int]) -> int:
    """Merge a token's letters, best rank first, and tell the rank of the last merge."""
    pieces, last = list(token), -1
    while len(pieces) > 1:
        ranks = [rank_of.get(pair, len(rank_of)) for pair in pairwise(pieces)]
        if (best := min(ranks)) == len(rank_of):
            break
        last, at = best, ranks.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return last


def _roles(tokenizer: Tokenizer) -> dict[str, Value]:
    if tokenizer.eos_id is None:
        raise UserError(
            "tokenizer.eos_token",
            problem="is missing, and llama.cpp would take some other token for it",
            mend="Name the token that ends a text in tokenizer_config.json.",
        )
    names = {role: tokenizer.token_names.get(f"{role}_token") for role in ROLES}
    ids: dict[str, int] = {}
    for role, name in names.items():
        if name is not None and (token_id := tokenizer.backend.token_to_id(name)) is not None:
            ids[role] = token_id
    by_name = {tokenizer.special_ids[end] for end in ends_of_reply(set(tokenizer.special_ids))}
    unsaid = sorted(tokenizer.stop_ids - by_name - {ids.get(role) for role in ("eos", "eot", "eom")})
    for role in ("eot", "eom"):
        if role not in ids and unsaid:
            ids[role] = unsaid.pop(0)
    if unsaid:
        raise UserError(
            "tokenizer.stop_ids", unsaid, problem="end a reply too, and a GGUF file can name only two beside eos"
        )
    if "eot" not in ids and (ends := [end for end in END_OF_TURN if end in tokenizer.special_ids]):
        ids["eot"] = tokenizer.special_ids[ends[0]]
    return {ROLES[role]: token_id for role, token_id in ids.items()}


def _frame(tokenizer: Tokenizer) -> dict[str, Value]:
    """What is put around a text: <s>, </s> or both, and nothing else."""
    probe = "a"
    plain = tokenizer.encode(probe)
    framed = tokenizer.backend.encode(probe).ids
    expected = [tokenizer.bos_id] * tokenizer.adds_bos + plain + [tokenizer.eos_id] * tokenizer.adds_eos
    if framed != expected:
        names = " ".join(tokenizer.backend.id_to_token(token_id) or "?" for token_id in framed)
        raise UserError(
            "tokenizer.post_processor",
            names,
            problem=f"is what becomes of {probe!r}, and llama.cpp can only put bos_token in front of a text and eos_token behind it",
        )
    return {"tokenizer.ggml.add_bos_token": tokenizer.adds_bos, "tokenizer.ggml.add_eos_token": tokenizer.adds_eos}


def _template(template: object) -> dict[str, Value]:
    key = "tokenizer.chat_template"
    if template is None:
        return {}
    if isinstance(template, str):
        return {key: template}
    try:
        named = {entry["name"]: entry["template"] for entry in template}  # type: ignore[attr-defined]
        if not all(isinstance(text, str) for pair in named.items() for text in pair):
            raise TypeError
    except (TypeError, KeyError):
        raise UserError(
            "tokenizer.chat_template", template, problem="is neither a text nor a list of named texts"
        ) from None
    others = [name for name in named if name != "default"]
    first = {key: named["default"]} if "default" in named else {}
    return {**first, "tokenizer.chat_templates": others, **{f"{key}.{name}": named[name] for name in others}}


def _steps(stated: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the steps that it takes."""
    if stated is None:
        return []
    if stated.get("type") == "Sequence":
        return [step for each in stated[inner] for step in _steps(each, inner)]
    return [stated]
