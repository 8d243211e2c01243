"""A plan as a page of text for a terminal of 80 columns, each figure with its formula or source in a footnote."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from fox.plan.memory import (
    ADAFACTOR_STATE_BYTES,
    BF16_SAVES_BYTES,
    HEAD_GRADIENT_BYTES,
    LARGE_HEAD_WEIGHTS,
    LOGIT_BYTES,
    MOST_TOKENS_BY_PRODUCTS,
    MUON_STATE_BYTES,
    STATE_BYTES_PER_PARAMETER,
    USABLE_FRACTION,
    block_activation_bytes_per_token,
    large_head_chunk_rows,
    loss_chunk_rows,
)
from fox.plan.plan import Plan, StagePlan

WIDTH = 80


def describe(plan: Plan) -> str:
    """The plan for a reader: lines of at most 80 characters, without colour or markup."""
    parts = (_title, _parameters, _work, _curriculum, _time, _memory, _inference, _problems, _notes)
    return "\n\n".join("\n".join(part(plan)) for part in parts)


def _title(plan: Plan) -> Iterator[str]:
    if plan.gpu:
        yield f"{plan.name} on {plan.devices:,} x {plan.gpu.name}"
    elif any(stage.measured for stage in plan.stages):
        yield f"{plan.name} on this machine"
    else:
        yield f"{plan.name} on {plan.devices:,} device{'s' * (plan.devices > 1)} of no named kind"
    yield "Fox has been run on processors only so far, not on a GPU yet."


def _parameters(plan: Plan) -> Iterator[str]:
    count = plan.parameters
    yield "Parameters [1]"
    yield from _table(
        [
            ("embedding, also the output head (tied)" if count.head == 0 else "embedding", f"{count.embedding:,}"),
            (f"{plan.model.num_hidden_layers} blocks of {count.one_block:,}", f"{count.blocks:,}"),
            ("final norm", f"{count.final_norm:,}"),
            *([("output head", f"{count.head:,}")] if count.head else []),
            ("in all", f"{count.total:,}"),
        ]
    )


def _work(plan: Plan) -> Iterator[str]:
    count = plan.parameters
    yield "Work a token, forward and backward [2]"
    lookup = "the tied head's product once" if count.head == 0 else "embedding lookups left out"
    rows = [("matrix products", f"6 N = {_flops(6 * count.without_lookup)}", f"N = {count.without_lookup:,}: {lookup}")]
    if count.head:
        rows.append(("  with lookups", f"6 N = {_flops(6 * count.total)}", f"N = {count.total:,}: too much"))
    bare = count.without_embedding_and_head
    rows.append(("  blocks alone", f"6 N = {_flops(6 * bare)}", f"N = {bare:,}: Kaplan's count"))
    yield from _table(rows, left=3)
    each = plan.attention_flops_per_position
    yield f"  attention: {each:,} FLOP x chunk length; causal, half of it is needed"


def _curriculum(plan: Plan) -> Iterator[str]:
    yield "Curriculum [3]"
    rows = [("stage", "tokens", "chunks", "batch", "steps", "warm-up", "decay", "passes")]
    for stage in plan.stages:
        passes = "?" if stage.passes_per_step is None else f"{stage.passes_per_step:,}"
        batch = f"{stage.batch_tokens:,}"
        steps = (f"{stage.steps:,}", f"{stage.warmup_steps:,}", f"{stage.decay_steps:,}")
        rows.append((_name(stage), _count(stage.tokens), _chunks(stage), batch, *steps, passes))
    rows.append(("in all", _count(plan.tokens), "", "", f"{sum(stage.steps for stage in plan.stages):,}", "", "", ""))
    yield from _table(rows)
    yield "  Epochs: not known before the sources are read and counted."


def _time(plan: Plan) -> Iterator[str]:
    yield "Compute and time [4]"
    in_hours = plan.days is not None and plan.days < 2
    rows = [("stage", "FLOP/token", "if causal", "FLOP", "tokens/s", "MFU", "hours" if in_hours else "days")]
    for stage in plan.stages:
        rows.append(
            (
                _name(stage),
                _flops(stage.flops_per_token),
                _flops(stage.flops_per_token_causal),
                f"{stage.flops:.2e}",
                "?" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}",
                "?" if stage.mfu is None else f"{stage.mfu:.2f}",
                _duration(stage.days, in_hours),
            )
        )
    rows.append(("in all", "", "", f"{plan.flops:.2e}", "", "", _duration(plan.days, in_hours)))
    yield from _table(rows)
    if plan.days is None:
        yield "  tokens/s: not known. Give --gpu NAME, or --tokens-per-second of a short run."
        return
    if plan.stages[0].measured and plan.mfu is None:
        yield f"  {plan.days * 24:,.1f} hours, without data, evaluation, checkpoints and restarts."
        yield from _wrapped("  ", _how_measured(plan))
        return
    device = "GPU" if plan.gpu else "device"
    yield f"  {plan.days * 24 * plan.devices:,.1f} {device} hours, without data, evaluation, checkpoints and restarts."
    if plan.mfu is None:
        yield "  tokens/s: as given, the same in all stages; longer chunks are slower."


def _memory(plan: Plan) -> Iterator[str]:
    if plan.gpu and plan.usable_bytes is not None:
        yield f"Memory of one GPU, in GB: {plan.usable_bytes / 1e9:.1f} of {plan.gpu.memory_gb:g} usable [5]"
    else:
        yield "Memory of one device, in GB [5]"
    rows = [("stage", "rows", "state", "gather", "activ.", "loss", "in all", "recomp.")]
    for stage in plan.stages:
        told = stage.memory
        sizes = (told.state, told.gathered, told.activations, told.loss, told.total, told.total_recomputed)
        state, gathered, activations, loss, in_all, recomputed = (f"{size / 1e9:.1f}" for size in sizes)
        rows_told = f"{stage.rows:,}x{stage.row_length}"
        rows.append((_name(stage), rows_told, state, gathered, activations, loss, in_all, recomputed))
    yield from _table(rows)
    seen = [(stage, stage.measured) for stage in plan.stages if stage.measured]
    if seen:
        peaks = ", ".join(f"{_name(stage)} {found.peak_bytes / 1e9:.1f}" for stage, found in seen)
        yield from _wrapped("  ", f"Measured in small here, the whole process at its fullest: {peaks}.")
        if seen[0][1].machine_bytes:
            yield f"  The machine has {seen[0][1].machine_bytes / 1e9:.1f}."
    if plan.usable_bytes is not None:
        large = [stage.name for stage in plan.stages if stage.memory.total > plan.usable_bytes]
        yield f"  Does NOT fit: {', '.join(large)}." if large else "  It fits."


def _inference(plan: Plan) -> Iterator[str]:
    cache = plan.kv_cache_bytes_per_token
    positions = plan.model.max_position_embeddings
    yield "Inference in bfloat16 [6]"
    yield f"  weights {2 * plan.parameters.total / 1e9:.2f} GB"
    yield f"  KV cache {cache / 1024:g} KiB a token, {cache * positions / 2**20:,.0f} MiB for {positions:,} tokens"


def _problems(plan: Plan) -> Iterator[str]:
    if not plan.problems:
        yield "Problems: none found."
        return
    yield "Problems"
    for problem in plan.problems:
        yield from _wrapped("- ", str(problem))


def _notes(plan: Plan) -> Iterator[str]:
    notes = [
        "Exact. A block with hidden size h, MLP width f, query width a, key width k: 2 h a + 2 h k + 3 h f + 2 h.",
        "6 N: Kaplan et al., arXiv 2001.08361. Attention: 12 L H Q T with L layers, H heads of size Q, chunks of T "
        "(PaLM, appendix B, arXiv 2204.02311). It counts all T; a causal mask needs T/2.",
        "steps = tokens / batch, to the nearest. warm-up, decay: the steps of each stage that lie in them, by the "
        "recipe's schedule. passes = batch / (devices x rows x row length), forward and backward, on each "
        "device in each step.",
        _time_note(plan),
        _memory_note(plan),
        "2 bytes a parameter; KV cache: key and value x layers x kv heads x head size x 2 bytes.",
    ]
    for number, note in enumerate(notes, start=1):
        yield from _wrapped(f"[{number}] ", note)


def _time_note(plan: Plan) -> str:
    parts = ["FLOP = tokens x FLOP/token, from [2] with the mix's mean chunk."]
    if plan.gpu and plan.mfu is not None:
        parts.append("tokens/s = GPUs x peak x MFU / (FLOP/token), not the causal count: so MFU is reported.")
        parts.append(f"MFU {plan.mfu:.2f}:")
        parts.append(_assumed_mfu() if plan.mfu_is_assumed else "as given.")
    elif plan.days is not None:
        seen = any(stage.measured for stage in plan.stages)
        how = "measured on this machine, in small" if seen else "as given, of all devices together"
        parts.append(f"tokens/s: {how}.")
    if plan.days is not None:
        parts.append("days = tokens / (tokens/s) / 86,400.")
    if plan.gpu:
        parts.append(f"Peak: {plan.gpu.peak_tflops:g} TFLOP/s in bfloat16 ({plan.gpu.source}).")
    return " ".join(parts)


def _assumed_mfu() -> str:
    return (
        "ASSUMED, not measured; published are 0.38 to 0.41 for a 1.3B model (llm-foundry) and 0.33 to 0.39 for an 8B "
        "(torchtitan), both on H100. Measure yours and give --mfu or --tokens-per-second."
    )


def _how_measured(plan: Plan) -> str:
    """How tokens/s came about, where this machine was timed."""
    seen = [stage.measured for stage in plan.stages if stage.measured]
    parts = ["tokens/s: measured here, on one block and the head, and added up."]
    if not all(found.compiled for found in seen):
        parts.append("Blocks were not compiled; --measure compiled does that as training will, in a minute or more.")
    if any(found.timed_rows < stage.rows for found, stage in zip(seen, plan.stages, strict=False)):
        parts.append("Some passes were timed on fewer rows.")
    return " ".join(parts)


def _memory_note(plan: Plan) -> str:
    dtype = "float32" if plan.element_bytes == 4 else "bfloat16"
    if plan.devices > 1:
        gathered = f"embedding, head and two blocks, unsharded, weights and gradients in {dtype}."
    elif plan.precision == "bf16-weights":
        gathered = "nothing on one device whose weights are bfloat16."
    elif plan.element_bytes == 2:
        of = "the weights but the head's" if _has_large_head(plan) else "the weights"
        gathered = f"a bfloat16 copy of {of}, 2 bytes a parameter more."
    else:
        gathered = "nothing on one device in float32."
    per_token = block_activation_bytes_per_token(plan.model, plan.element_bytes)
    formula = f"{plan.element_bytes} (4 h + 2 a + 2 k + 4 f) + 4 heads"
    return " ".join(
        [
            f"Estimates. state: {_state_note(plan)} / devices (ZeRO-3, arXiv 1910.02054). gather: {gathered}",
            f"activ.: {formula} = {per_token:,} bytes x layers x rows x row length, after Korthikanti et al.,",
            f"arXiv 2205.05198, {_attention_note(plan)} recomp.: in all, where only each block's input is kept and the",
            "rest is made again backward, which takes up to a third more time.",
            f"loss: {_loss_note(plan)} GB = 1e9 bytes.",
            f"{1 - USABLE_FRACTION:.0%} of a GPU is set aside for all else (assumed)." if plan.gpu else "",
        ]
    ).strip()


def _loss_note(plan: Plan) -> str:
    large = _has_large_head(plan)
    rows = large_head_chunk_rows(plan.vocab_size, plan.element_bytes) if large else loss_chunk_rows(plan.vocab_size)
    logits = f"logits of at most {rows:,} tokens at a time x {plan.vocab_size:,} x"
    if large:
        gradient = "4 bytes a parameter of the head for its float32 gradient,"
        return f"{logits} {plan.element_bytes} bytes, and {gradient} with all else for one block of the head at a time."
    gradient = f"{HEAD_GRADIENT_BYTES} bytes a parameter of the head for its float32 gradient,"
    return f"{logits} {LOGIT_BYTES} bytes, and {gradient} twice as it leaves the loss."


def _has_large_head(plan: Plan) -> bool:
    """Whether its loss goes through blocks of the head."""
    weights = plan.parameters.head or plan.parameters.embedding
    return plan.precision != "bf16-weights" and weights > LARGE_HEAD_WEIGHTS


def _state_note(plan: Plan) -> str:
    narrow = plan.precision == "bf16-weights"
    saved = BF16_SAVES_BYTES if narrow else 0
    of_matrix = {"muon": MUON_STATE_BYTES, "adafactor": ADAFACTOR_STATE_BYTES}.get(
        plan.optimizer, STATE_BYTES_PER_PARAMETER
    )
    kept = "weight and gradient in bfloat16" if narrow else "weight and gradient in float32"
    moments = {
        "adamw": "AdamW's two moments in float32",
        "muon": f"Muon's one moment in float32; of all but the blocks' matrices {STATE_BYTES_PER_PARAMETER - saved}, with AdamW's two",
        "adafactor": "Adafactor's rows and columns of moments are next to nothing",
    }
    return f"{of_matrix - saved} bytes a parameter ({kept}, {moments[plan.optimizer]})"


def _attention_note(plan: Plan) -> str:
    if plan.gpu:
        return "with fused attention."
    return (
        f"and, on a CPU for which Fox has no attention of its own, for rows up to {MOST_TOKENS_BY_PRODUCTS:,} tokens the attention's weights: "
        f"{plan.element_bytes} x heads x row length x row length bytes x layers x rows; with fused attention beyond."
    )


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Columns two spaces apart; the first to the left and, beyond `left` = 1, the last too; numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 or (left > 1 and column == left - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def _wrapped(mark: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _chunks(stage: StagePlan) -> str:
    lengths = stage.chunk_lengths
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"


def _count(tokens: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if tokens >= size:
            return f"{tokens / size:.2f} {unit}"
    return f"{tokens:,.0f}"


def _flops(flops: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= size:
            return f"{flops / size:.2f} {unit}"
    return f"{flops:.0f}"


def _duration(days: float | None, in_hours: bool) -> str:
    if days is None:
        return "?"
    return f"{days * 24 if in_hours else days:,.2f}"


def _name(stage: StagePlan, limit: int = 12) -> str:
    return stage.name if len(stage.name) <= limit else f"{stage.name[: limit - 1]}…"
