"""`fox eval MODEL`: bits per byte of somebody's model on somebody's files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fox.data.document import Document
from fox.errors import Failure, UserError
from fox.eval.bits_per_byte import HeldOut, Score, score
from fox.model import Transformer
from fox.progress import meter
from fox.runs.models import find_model, open_named
from fox.runs.named_text import documents_of
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chats
from fox.train.machine import resolve_precision


def score_model(
    name: str, texts: Sequence[Path], chats: Sequence[Path], max_tokens: int, as_json: bool, console: Console
) -> None:
    """Print what the model needs for each file or folder of texts, and of chats, on at most `max_tokens` tokens of each."""
    if not texts and not chats:
        raise UserError(
            "--text",
            problem="is missing: on what is this model to be measured",
            mend="Name a file: --text FILE, or --chats FILE.",
        )
    stored = open_named(find_model(name))
    model = stored.load(torch.float32)
    rows: list[dict[str, Any]] = []
    for kind, paths in (("text", texts), ("chat", chats)):
        for path in paths:
            with meter(f"eval {path.name}", None, "documents", console=console) as shown:
                heldout = _heldout(path, kind, stored.tokenizer, max_tokens)
                rows.append({"path": str(path), "kind": kind, **_scores(model, stored.tokenizer, heldout)})
                shown.advance(len(heldout.documents))
    if as_json:
        print(json.dumps({"model": name, "scores": rows}, indent=2))
    else:
        _print(rows)


def _heldout(path: Path, kind: str, tokenizer: Tokenizer, max_tokens: int) -> HeldOut:
    """Documents in an order that is drawn by their content, so that a file's beginning is not all that is measured."""
    option = "--chats" if kind == "chat" else "--text"
    if not path.exists():
        raise UserError(option, str(path), problem="there is no such file or folder")
    documents = sorted(documents_of(path, kind, option), key=lambda document: document.digest)
    ids: list[np.ndarray] = []
    learnt: list[np.ndarray] = []
    left = max_tokens
    for document in documents:
        tokens, is_learnt = _encoded(document, tokenizer)
        if left < 2:
            break
        ids.append(tokens[:left])
        learnt.append(is_learnt[:left])
        left -= len(ids[-1])
    if not any(len(document) > 1 for document in ids):
        raise UserError(option, str(path), problem="holds no text to measure anything on")
    return HeldOut(ids, learnt if kind == "chat" else None)


def _encoded(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    if document.messages is not None:
        (chat,) = encode_chats(tokenizer, [document.messages])
        return chat.ids, chat.is_learnt
    start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    ids = np.array(start + tokenizer.encode(document.text or ""), dtype=np.int64)
    return ids, np.zeros(len(ids), dtype=np.bool_)


def _scores(model: Transformer, tokenizer: Tokenizer, heldout: HeldOut) -> dict[str, Any]:
    counted = heldout.text_only(tokenizer)
    for mask in counted:
        mask[:1] = False  # nothing comes before it that could predict it
    precision = resolve_precision("auto")
    made = {"all_text": score(model, tokenizer, heldout, counted, precision)}
    if heldout.is_learnt is not None and any(mask.any() for mask in heldout.is_learnt):
        made["replies"] = score(model, tokenizer, heldout, heldout.learnt_only(), precision)
    if not all(math.isfinite(of.bits) for of in made.values()):
        raise Failure("The model predicts NaN or infinity: its weights are damaged. Copy or make it again.")
    return {what: _as_dict(of) for what, of in made.items()}


def _as_dict(of: Score) -> dict[str, float | int]:
    return {
        "bits_per_byte": round(of.bits_per_byte, 4),
        "perplexity": round(2 ** (of.bits / of.tokens), 4),
        "documents": of.documents,
        "tokens": of.tokens,
        "bytes": of.bytes,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measured on")
    for column in ("bits a byte", "perplexity", "documents", "tokens", "bytes"):
        table.add_column(column, justify="right")
    for row in rows:
        for what in ("all_text", "replies"):
            if what in row:
                label = row["path"] if what == "all_text" else f"{row['path']}: {what}"
                of = row[what]
                numbers = (f"{of[key]:,}" for key in ("documents", "tokens", "bytes"))
                table.add_row(label, f"{of['bits_per_byte']:.4f}", f"{of['perplexity']:.3f}", *numbers)
    Console(highlight=False).print(table)
