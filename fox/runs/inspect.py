"""What a step of the pre-training is made of, document by document: from the index that the run keeps, without training anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from fox.data.shards import shard_path
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.recipe import Recipe
from fox.runs.folder import kept_recipe
from fox.tokenizer import Tokenizer
from fox.train.curriculum import Chunk, StageOrder, curriculum, told
from fox.train.events import Event, read_events
from fox.train.packing import Packing, open_packing
from fox.train.trouble import passed_over

_COLUMNS = 80


def inspect_step(folder: Path, step: int, tokens: int) -> Iterator[str]:
    """The lines that tell of the `step` (from 1) of the run in `folder`; of each document its first `tokens`, decoded.

    Raises UserError where there is no such step or run, Failure where the run's files are damaged.
    """
    recipe = _recipe(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    shards = {name: Shard(shard_path(folder / "data", name, "train"), tokenizer.vocab_size) for name in recipe.source}
    orders = curriculum(recipe, recipe.stage, {name: len(shard.tokens) for name, shard in shards.items()})
    steps = orders[-1].first_step + orders[-1].steps
    if not 1 <= step <= steps:
        raise UserError("--step", step, problem="is no step of this run", mend=f"Give one from 1 to {steps}.")
    events = read_events(folder / "pretrain")
    index = open_packing(folder / "pretrain" / "packing", orders, shards, events)
    order = next(order for order in reversed(orders) if order.first_step < step).after(events)
    if not index.has(order.name):
        before = [other.name for other in orders if other.first_step < order.first_step and other.stage.mix_follows]
        raise UserError(
            "--step",
            step,
            problem=f"is of stage {order.name}, whose documents are not known yet: they are what stage {before[-1]} leaves, "
            "whose mixture follows the loss",
            mend=f"Ask again once that stage is over, or give a step up to {order.first_step}.",
        )
    lines = _lines(order, step, steps, index, tokenizer, tokens)
    yield next(lines)
    if unlearnt := _unlearnt(events, _row(folder / "pretrain" / "metrics.jsonl", step), step):
        yield from wrap(unlearnt, _COLUMNS, initial_indent="  ", subsequent_indent="  ")
    yield from lines


def _recipe(folder: Path) -> Recipe:
    if not (folder / "pretrain" / "packing" / "manifest.json").is_file():
        raise UserError(
            "RUN",
            str(folder),
            problem="has no packed documents: its pre-training has not begun",
            mend="Name a run's folder, such as runs/tiny, after `fox pretrain` or `fox run`.",
        )
    return kept_recipe(folder)


def _row(metrics: Path, step: int) -> dict[str, Any] | None:
    """What metrics.jsonl says of a step; None where that is not done yet."""
    try:
        with metrics.open("rb") as file:
            line = next(islice(file, step - 1, None), None)
        row = None if line is None else json.loads(line)
        if row is None or row["step"] == step:
            return row
        reason = f"row {step} is of step {row['step']}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)
    raise Failure(f"{metrics}: unreadable ({reason}). Put it back as it was.")


def _unlearnt(events: list[Event], row: dict[str, Any] | None, step: int) -> str | None:
    """Why nothing was learnt from a step, where that is so. The row knows best: a step that is done again may be learnt then."""
    over = passed_over(events, step)
    if over and (row is None or "passed_over" in row):
        return f"passed over by the roll-back at step {over['step']}: {over['reason']}"
    if row is not None:
        return f"skipped: {row['skipped']}" if "skipped" in row else None
    skips = [event["reason"] for event in events if event["event"] == "skip" and event["step"] == step]
    return f"skipped: {skips[-1]}" if skips else None


def _lines(
    order: StageOrder, step: int, steps: int, index: Packing, tokenizer: Tokenizer, tokens: int
) -> Iterator[str]:
    in_stage = step - 1 - order.first_step
    rows = order.rows_of_step(in_stage)
    yield f"step {step} of {steps}: stage {order.name}, its step {in_stage + 1} of {order.steps}"
    yield f"  {_count(len(rows), 'row')} of {order.stage.row_length} tokens"
    drawn = told(rows, order.stage.row_length)["mix"]
    total = sum(drawn.values())
    for source, share in order.mix_at(in_stage).items():
        yield f"  {source}: {share:.2%} of the mixture, {drawn.get(source, 0) / total:.2%} of this step"
    for number, row in enumerate(rows, start=1):
        lane = row[0].lane
        yield ""
        yield f"row {number}: {lane.source}, {_count(len(row), 'chunk')} of {lane.length}"
        for place, chunk in enumerate(row, start=1):
            epoch, again = index.epoch_of(chunk)
            yield f"  chunk {place}: epoch {epoch + 1}{', again in this stage' if again else ''}"
            yield from _chunk_lines(chunk, index, tokenizer, tokens)


def _chunk_lines(chunk: Chunk, index: Packing, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    shard = index.shards[chunk.lane.source]
    starts, lengths = index.pieces(chunk)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        document = int(np.searchsorted(shard.ends, start, side="right"))
        first, end = shard.span(document)
        kept = f"cut, its tokens {start - first + 1} to {start - first + length} of {end - first}"
        if length == end - first:
            kept = f"whole, {_count(length, 'token')}"
        yield f"    document {document}: {kept}"
        shown = min(length, tokens)
        text = _on_one_line(tokenizer.decode(shard.tokens[start : start + shown].tolist())) + " …" * (shown < length)
        yield from wrap(text, _COLUMNS, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if room := chunk.lane.length - int(lengths.sum()):
        yield f"    padding: {_count(room, 'token')}"


def _on_one_line(text: str) -> str:
    """Text as it is, but for what would move a terminal's cursor, or more."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return "".join(mark if mark.isprintable() else f"\\u{ord(mark):04x}" for mark in quoted)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
