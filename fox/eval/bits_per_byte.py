"""Held-out bits per byte: how well a model predicts text, comparable across tokenizers.

The bits are those of a document's own tokens, each predicted from what is before it in its window; `<bos>` and the end
token are no text and are not counted. For chats there is a second figure over what the assistant says alone: there the end
token's bits do count, since ending is a part of replying, and the bytes are those of the replies.

B rows, L tokens a row
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fox.formats.token_shards import Mask, Shard, Tokens
from fox.model import Transformer
from fox.model.loss import IGNORED, loss_of_each
from fox.tokenizer import Tokenizer

_PASS_TOKENS = 8192


@dataclass(frozen=True)
class Score:
    """The bits that some documents cost, and their size."""

    bits: float
    bytes: int
    tokens: int
    documents: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents of one source, at most about `max_tokens` tokens, drawn evenly from its shard."""

    documents: list[Tokens]
    is_learnt: list[Mask] | None

    @classmethod
    def draw(cls, shard: Shard, max_tokens: int, seed: int) -> HeldOut:
        """The same documents for the same shard and seed. A last one that would pass the limit is cut, so that all sources count alike."""
        documents: list[Tokens] = []
        marks: list[Mask] = []
        left = max_tokens
        for number in np.random.default_rng(seed).permutation(len(shard)):
            start, end = shard.span(int(number))
            end = min(end, start + left)
            if end - start < 2:
                break
            documents.append(np.asarray(shard.tokens[start:end]).astype(np.int64))
            if shard.is_learnt is not None:
                marks.append(np.asarray(shard.is_learnt[start:end]))
            left -= end - start
        return cls(documents, marks if shard.is_learnt is not None else None)

    def learnt_only(self) -> list[Mask]:
        """Which tokens the assistant says."""
        assert self.is_learnt is not None
        return self.is_learnt

    def text_only(self, tokenizer: Tokenizer) -> list[Mask]:
        """Which tokens are text."""
        specials = list(tokenizer.special_ids.values())
        return [~np.isin(document, specials) for document in self.documents]


def score(model: Transformer, tokenizer: Tokenizer, heldout: HeldOut, counted: list[Mask], precision: str) -> Score:
    """The bits of the counted tokens of the held-out documents, read in windows of the model's context."""
    token_bits = model_bits(model, heldout.documents, precision)
    bits = sum(float(of_tokens[mask].sum()) for of_tokens, mask in zip(token_bits, counted, strict=True))
    return Score(
        bits=bits,
        bytes=sum(len(tokenizer.decode_bytes(d[m].tolist())) for d, m in zip(heldout.documents, counted, strict=True)),
        tokens=int(sum(mask.sum() for mask in counted)),
        documents=len(heldout.documents),
    )


def model_bits(model: Transformer, documents: list[Tokens], precision: str) -> list[np.ndarray]:
    """The bits of each token of each document (0 for its first, which nothing predicts)."""
    window = model.config.max_position_embeddings
    device = next(model.parameters()).device
    bits = [np.zeros(len(document)) for document in documents]
    for places, tokens, targets in _passes(documents, window):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            token_BL = torch.from_numpy(tokens).to(device)
            # Padding is a segment of its own: it sees only padding, and nothing sees it.
            segment_BL = torch.from_numpy(np.where(targets == IGNORED, 1, 0)).to(device)
            target_BL = torch.from_numpy(targets).to(device)
            hidden_BLD = model(token_BL, segment_BL)
            nats_N = loss_of_each(hidden_BLD.flatten(0, 1), model.output_weight_VD, target_BL.flatten())
        nats_BL = nats_N.view(target_BL.shape).double().cpu().numpy()
        for row, (document, start, count) in enumerate(places):
            bits[document][start + 1 : start + 1 + count] = nats_BL[row, :count] / math.log(2)
    return bits


def _passes(
    documents: list[Tokens], window: int
) -> Iterator[tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]]:
    """Windows in batches of similar length: (document, start, count) of each row, and the padded tokens and targets (B, L)."""
    places = [
        (number, start, min(window, len(document) - 1 - start))
        for number, document in enumerate(documents)
        for start in range(0, len(document) - 1, window)
    ]
    places.sort(key=lambda place: -place[2])
    while places:
        longest = places[0][2]
        rows = max(1, _PASS_TOKENS // longest)
        batch, places = places[:rows], places[rows:]
        tokens = np.zeros((len(batch), longest), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        for row, (number, start, count) in enumerate(batch):
            tokens[row, :count] = documents[number][start : start + count]
            targets[row, :count] = documents[number][start + 1 : start + 1 + count]
        yield batch, tokens, targets
