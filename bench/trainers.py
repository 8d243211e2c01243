"""Who takes the steps of train_speed.py: Fox, and transformers with torch.compile, each in a process of its own.

    python bench/trainers.py TRAINER CASE < step numbers, one a line; `profile [FILE]`; `end`

Answers each line with one of JSON: seconds and the loss before the step; where the time of two steps goes (`PARTS`), with torch's own
table of it in FILE; at the end the peak of its memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fox.kernels.attention
import fox.model.transformer
from fox.model import ModelConfig, Transformer
from fox.model.loss import IGNORED, summed_loss
from fox.recipe.schema import Optimizer
from fox.train.allocator import keep_freed_memory
from fox.train.compilation import compile_blocks
from fox.train.machine import peak_memory_bytes, resolve_precision
from fox.train.optimizer import make_optimizer

_SETTINGS = Optimizer(peak_learning_rate=1e-3)
_MUON = Optimizer(peak_learning_rate=1e-3, name="muon")
_MEAN_DOCUMENT = 300
"""Tokens of a document in the rows with document masks, about those of a web page's median."""
KEPT = ", with freed memory kept"
MASKS = ", document masks"
BEFORE = ", torch's attention"
"""Without our own kernel and without products of blocks: what a step took before there were any."""
_OTHERS = "loss, embedding, copies"
PARTS = {
    "attention": ("attend", "attention"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "linear", "convolution"),
    "the rest of the compiled": ("compiled",),
    "optimiser, clipping": ("adamw", "muon", "norm", "foreach", "optimizer"),
    _OTHERS: (),
}
"""Parts of a step, and what is in the names of their operations."""
WITH_ADAMW = ("transformers", f"transformers{KEPT}", "fox", f"fox{MASKS}", f"fox{BEFORE}")
WITH_MUON = ("transformers, Muon", f"transformers, Muon{KEPT}", "fox, Muon")


@dataclass(frozen=True)
class Case:
    """A model and its batch."""

    name: str
    config: ModelConfig
    rows: int
    length: int
    groups: tuple[tuple[str, ...], ...]
    """Trainers that take turns. The first is transformers as it comes, the second the same with freed memory kept, the third Fox."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def flops(self, attention: float) -> float:
        """Of one token, forward and backward; `attention` is the share of all pairs of positions that counts."""
        config = self.config
        of_layer = config.hidden_size * config.head_dim * 2 * (config.num_attention_heads + config.num_key_value_heads)
        of_layer += 3 * config.hidden_size * config.intermediate_size
        weights = config.num_hidden_layers * of_layer + config.vocab_size * config.hidden_size
        width = config.num_attention_heads * config.head_dim
        return 6.0 * weights + attention * 12.0 * config.num_hidden_layers * width * self.length


def _config(
    width: int, feed_forward: int, layers: int, heads: int, kv_heads: int, vocab: int, chunk: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width // heads, max_position_embeddings=chunk,
        rope_theta=10_000.0, rms_norm_eps=1e-5, initializer_range=0.02, tie_word_embeddings=True,
    )  # fmt: skip


CASES = (
    Case("52 M, 2 x 1,024", _config(512, 1024, 16, 8, 2, 32_000, 1024), 2, 1024, (WITH_ADAMW,)),
    Case("nanochat's size, 32 x 512", _config(384, 1024, 6, 6, 6, 8192, 512), 32, 512, (WITH_ADAMW, WITH_MUON)),
)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, what follows each, and the documents' numbers."""

    token_BL: Tensor
    target_BL: Tensor
    segment_BL: Tensor


Step = Callable[[Batch], float]
"""Takes one step of the optimiser and gives the mean loss before it, in nats."""


def main(name: str, case: Case) -> None:
    """Be a trainer: answer each line with a line."""
    model = Transformer(case.config)
    model.initialise(torch.Generator().manual_seed(0))
    precision = resolve_precision("auto")
    settings = _MUON if name in WITH_MUON else _SETTINGS
    with_documents = name.endswith(MASKS)
    if name.startswith("transformers"):
        if name.endswith(KEPT):
            keep_freed_memory()
        step = _their_step(_theirs(case, model), precision, settings, with_documents)
    else:
        if name.endswith(BEFORE):
            fox.model.transformer.can_attend = lambda *_: False
            fox.kernels.attention._MOST_TOKENS_BY_PRODUCTS = 0
        step = _our_step(model, precision, settings, with_documents)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "end":
            print(json.dumps({"memory": peak_memory_bytes()}), flush=True)
            return
        if word == "profile":
            print(json.dumps(_profile(step, _batch(case, 0), Path(rest) if rest else None)), flush=True)
            continue
        batch = _batch(case, int(word))
        began = time.perf_counter()
        loss = step(batch)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


def _our_step(model: Transformer, precision: str, settings: Optimizer, with_documents: bool) -> Step:
    keep_freed_memory()
    optimizer = make_optimizer(model, settings, precision)
    compile_blocks(model)

    def step(batch: Batch) -> float:
        target_BL = _targets_within_documents(batch) if with_documents else batch.target_BL
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden_BLD = model(batch.token_BL, batch.segment_BL if with_documents else None)
            loss = summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, target_BL.flatten())
            loss = loss / (target_BL != IGNORED).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _theirs(case: Case, ours: Transformer) -> Any:
    """transformers' Llama with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {key: value for key, value in vars(case.config).items() if key not in ("rope_scaling", "qk_norm")}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa", use_cache=False))
    missing, unexpected = theirs.model.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return theirs


def _their_step(model: Any, precision: str, settings: Optimizer, with_documents: bool) -> Step:
    compiled = model if with_documents else torch.compile(model)  # with documents it is a check, of a few steps
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim > 1]
    of_muon = inner if settings.name == "muon" else []
    decayed = [one for one in model.parameters() if one.ndim > 1 and not any(one is other for other in of_muon)]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.peak_learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
    ]
    if of_muon:
        optimizers.append(
            torch.optim.Muon(
                of_muon,
                lr=settings.peak_learning_rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )

    def step(batch: Batch) -> float:
        target_BL, mask_B1LL = batch.target_BL, None
        if with_documents:
            target_BL = _targets_within_documents(batch)
            mask_B1LL = (batch.segment_BL[:, None, :, None] == batch.segment_BL[:, None, None, :]).tril()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = compiled(batch.token_BL, attention_mask=mask_B1LL, labels=target_BL, shift_labels=target_BL).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def _targets_within_documents(batch: Batch) -> Tensor:
    """What each token is to be followed by; nothing at a document's end, whose next token is another's first."""
    ends_BL = batch.segment_BL[:, 1:] != batch.segment_BL[:, :-1]
    target_BL = batch.target_BL.clone()
    target_BL[:, :-1][ends_BL] = IGNORED
    return target_BL


def _batch(case: Case, number: int) -> Batch:
    """Tokens as frequent as words are (Zipf), the same for all trainers, in documents of random lengths."""
    generator = torch.Generator().manual_seed(number)
    frequency_V = 1.0 / torch.arange(2, case.config.vocab_size + 2)
    token_BL = torch.multinomial(frequency_V, case.rows * (case.length + 1), replacement=True, generator=generator)
    token_BL = token_BL.view(case.rows, case.length + 1)
    ends_BL = torch.rand(case.rows, case.length, generator=generator) < 1 / _MEAN_DOCUMENT
    return Batch(token_BL[:, :-1].contiguous(), token_BL[:, 1:].contiguous(), ends_BL.cumsum(1))


def _profile(step: Step, batch: Batch, path: Path | None) -> dict[str, float]:
    """Each part's share of the time of two steps, by the names of torch's operations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(2):
            step(batch)
    averages = profiled.key_averages()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
        path.write_text(table, encoding="utf-8")
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in averages:
        name = event.key.lower()
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), _OTHERS)
        seconds[part] += event.self_cpu_time_total
    return {part: each / sum(seconds.values()) for part, each in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1], CASES[int(sys.argv[2])])
