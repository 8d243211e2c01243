"""A smaller vocabulary out of a larger one: byte-level BPE learns its entries one after the other, so the first of them are the smaller one.

What is cut is what a training of that size on the same text would have given, entry by entry; so one training serves models of several sizes.
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers

from fox.errors import UserError
from fox.tokenizer.tokenizer import Tokenizer


def cut_tokenizer(tokenizer: Tokenizer, entries: int) -> Tokenizer:
    """The tokenizer of the first `entries` entries. Raises UserError where it has no more than that, or where its order is not that of its training."""
    if tokenizer.vocab_size <= entries:
        raise UserError(
            "--entries",
            entries,
            problem=f"is not less than the {tokenizer.vocab_size} entries that there are",
            mend="Name a smaller number, or use it as it is.",
        )
    stated = json.loads(tokenizer.backend.to_str())
    model = stated["model"]
    if model.get("type") != "BPE" or not tokenizer.is_byte_level:
        raise UserError(
            "tokenizer",
            model.get("type"),
            problem="is no byte-level BPE, whose entries alone are learnt in order",
            mend="Train one with `fox tokenizer RECIPE`.",
        )
    learnt_from = _first_merged(model)
    least = max(learnt_from, 1 + max((token["id"] for token in stated["added_tokens"]), default=-1))
    if entries < least:
        raise UserError(
            "--entries",
            entries,
            problem=f"is less than what comes before all that is learnt: {least} special tokens and single bytes",
            mend=f"Name at least {least}.",
        )
    vocab: dict[str, int] = model["vocab"]
    model["merges"] = model["merges"][: _merges_until(model, entries)]
    model["vocab"] = {token: token_id for token, token_id in vocab.items() if token_id < entries}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), dict(tokenizer.config))


def _first_merged(model: dict[str, Any]) -> int:
    """The id of the first entry that is made by a merge. Raises UserError where merges and ids are not in one order."""
    vocab: dict[str, int] = model["vocab"]
    ids = [vocab[left + right] for left, right in model["merges"]]
    first = expected = min(ids, default=len(vocab))
    for token_id in ids:
        if token_id > expected:
            break
        expected += token_id == expected  # one that is made a second time, of other parts, is no new entry
    if expected != 1 + max(vocab.values()):
        raise UserError(
            "tokenizer.model.merges",
            problem="don't follow the order of the ids, so that the first entries are no vocabulary of their own",
            mend="Cut one that `fox tokenizer RECIPE` has trained.",
        )
    return first


def _merges_until(model: dict[str, Any], entries: int) -> int:
    """How many merges a training of this size makes: it ends with the one that makes its last entry."""
    vocab: dict[str, int] = model["vocab"]
    last = entries - 1
    return next((n for n, (left, right) in enumerate(model["merges"], 1) if vocab[left + right] == last), 0)
