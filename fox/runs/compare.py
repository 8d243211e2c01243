"""`fox compare`: two models on the same text."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fox.errors import UserError
from fox.eval.agreement import agreement, num_parts
from fox.formats.untrusted import open_untrusted
from fox.model.stored import StoredModel
from fox.progress import meter
from fox.runs.models import find_model, open_named

_MOST_BYTES_A_TOKEN = 32  # English has some 4; a text of nothing but spaces has the longest


def compare_models(
    name_a: str, name_b: str, text: Path, chunk_tokens: int, max_tokens: int, as_json: bool, console: Console
) -> None:
    """Let both read the same chunks of a text file, and print how far they agree."""
    a, b = (open_named(find_model(name)) for name in (name_a, name_b))
    ids = _same_ids(a, b, _read(text, max_tokens))[:max_tokens]
    chunk_tokens = min(chunk_tokens, *(model.config.max_position_embeddings for model in (a, b)))
    tokens_BT, counted_BT = _rows(a, ids, chunk_tokens)
    with meter("compare", num_parts(a, b), "blocks", console=console) as shown:
        made = agreement(a, b, tokens_BT, counted_BT, shown.advance)
    result = {"a": name_a, "b": name_b, "text": text.name, **made.as_dict()}
    if as_json:
        print(json.dumps(result, indent=2))
        return
    if len(ids) == max_tokens:
        console.print(f"[dim]the text's first {max_tokens:,} tokens[/dim]", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in (
        ("tokens compared", f"{made.tokens:,}"),
        ("same likeliest token", f"{result['same_top_token']:.2%}"),
        ("KL divergence of B from A, mean", f"{result['mean_kl_nats']:.3g} nats"),
        ("    99th percentile", f"{result['p99_kl_nats']:.3g} nats"),
        ("    largest", f"{result['max_kl_nats']:.3g} nats"),
        ("perplexity of A", f"{result['perplexity_a']:.4f}"),
        ("perplexity of B", f"{result['perplexity_b']:.4f}"),
        ("change of perplexity", f"{result['perplexity_change']:+.3%}"),
    ):
        table.add_row(label, value)
    Console(highlight=False).print(table)


def _read(path: Path, max_tokens: int) -> str:
    """The beginning of a text file, as much of it as so many tokens can take."""
    try:
        with open_untrusted(path) as file:
            raw = file.read(_MOST_BYTES_A_TOKEN * max_tokens)
        is_whole = len(raw) < _MOST_BYTES_A_TOKEN * max_tokens  # or it may end within a character, which is left out
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final=is_whole)
    except OSError as error:
        raise UserError("--text", str(path), problem=f"can't be read: {error.strerror or error}") from None
    except ValueError:
        raise UserError("--text", str(path), problem="is not UTF-8 text") from None


def _same_ids(a: StoredModel, b: StoredModel, text: str) -> list[int]:
    """The text's tokens. Raises UserError where the two models do not have the same ones, so that nothing can be compared."""
    ids = a.tokenizer.encode(text)
    if ids != b.tokenizer.encode(text) or a.tokenizer.adds_bos != b.tokenizer.adds_bos:
        raise UserError(
            "MODEL_B", str(b.path), problem=f"cuts this text into other tokens than {a.path} does",
            mend="Compare models of one tokenizer; `fox eval` gives bits per byte, which compare across tokenizers.",
        )  # fmt: skip
    if len(ids) < 2:
        raise UserError("--text", problem="is too short to compare anything on", mend="Name a longer text.")
    return ids


def _rows(model: StoredModel, ids: list[int], chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """Chunks (B, T), each after a <bos> where the model is used to one, and which of their places hold text or a <bos>."""
    tokenizer = model.tokenizer
    start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    step = max(1, chunk_tokens - len(start))
    rows = [start + ids[at : at + step] for at in range(0, len(ids), step)]
    tokens_BT = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    counted_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens_BT[number, : len(row)] = torch.tensor(row)
        counted_BT[number, : len(row)] = True
    return tokens_BT, counted_BT
