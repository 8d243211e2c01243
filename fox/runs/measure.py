"""What the eval step measures: bits per byte of held-out text, the bigram beside it, and sample replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fox.engine.sampler import Sampling
from fox.errors import Failure
from fox.eval.bits_per_byte import HeldOut, score
from fox.eval.kneser_ney import KneserNeyBigram
from fox.eval.replies import Reply, opening_lines, reply_to, vocabulary_of, words_of
from fox.model import Transformer
from fox.model.directory import load_model
from fox.progress import meter
from fox.runs.data_steps import open_shards
from fox.runs.folder import Run
from fox.tokenizer import Tokenizer
from fox.train.machine import resolve_precision

AT_START = "start"
"""What the results call the model that a recipe starts from."""
AVERAGED = "base"
"""The scores of late checkpoints' mean, beside those of the last stage's end."""
NOT_TAKEN = "averaged"
"""What the results call that mean where the last stage's end was better, and stayed the model. No stage may be called by any of these."""


def heldout_scores(run: Run, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Bits per byte of each source's held-out text, and over the assistant's words alone where a source is chats."""
    precision = resolve_precision(run.recipe.train.precision)
    was_training = model.training
    model.eval()
    scores: dict[str, Any] = {"bits_per_byte": {}, "assistant_bits_per_byte": {}, "heldout": {}}
    for name, heldout in heldout_text(run, tokenizer).items():
        whole = score(model, tokenizer, heldout, heldout.text_only(tokenizer), precision)
        scores["bits_per_byte"][name] = round(whole.bits_per_byte, 4)
        scores["heldout"][name] = {"documents": whole.documents, "tokens": whole.tokens, "bytes": whole.bytes}
        if heldout.is_learnt is not None:
            said = score(model, tokenizer, heldout, heldout.learnt_only(), precision)
            if said.bytes:
                scores["assistant_bits_per_byte"][name] = round(said.bits_per_byte, 4)
    model.train(was_training)
    return scores


def heldout_text(run: Run, tokenizer: Tokenizer) -> dict[str, HeldOut]:
    """The held-out documents that are scored, for each source that has any with text in them."""
    shards = open_shards(run, "heldout", tokenizer.vocab_size)
    drawn = {
        name: HeldOut.draw(shard, run.recipe.eval.heldout_tokens, run.recipe.seed) for name, shard in shards.items()
    }
    return {
        name: heldout for name, heldout in drawn.items() if any(mask.any() for mask in heldout.text_only(tokenizer))
    }


def measure(run: Run, console: Console) -> dict[str, Any]:
    """Everything in eval/results.json. The base model was scored as the last stage ended."""
    recipe = run.recipe
    base, tokenizer = load_model(run.folder / "model")
    models = {"base": base}
    if recipe.tune:
        models["tuned"], _ = load_model(run.folder / "tuned")
    scored = [*([AT_START] if recipe.model.start_from is not None else []), *recipe.stage]
    scores = {stage: _scores_after(run.folder / "pretrain" / "heldout" / f"{stage}.json") for stage in scored}
    last = list(recipe.stage)[-1]
    if recipe.train.average_checkpoints:
        averaged = _scores_after(run.folder / "pretrain" / "heldout" / f"{AVERAGED}.json")
        facts = run.needs("pretrain")["facts"]
        if facts.get("model_is_averaged", True):  # as it always was before there was such a fact
            scores["base"] = averaged
        else:
            scores |= {NOT_TAKEN: averaged, "base": scores.pop(last)}
    else:
        scores["base"] = scores.pop(last)
    parts = 2 + (recipe.eval.reply_chats + 2 * len(recipe.eval.prompts) if recipe.tune else 0)
    with meter("eval", parts, "parts", console=console) as shown:
        if recipe.tune:
            scores["tuned"] = heldout_scores(run, models["tuned"], tokenizer)
        shown.advance(1, "scored")
        results: dict[str, Any] = {
            "bits_per_byte": {model: of_model["bits_per_byte"] for model, of_model in scores.items()},
            "assistant_bits_per_byte": {
                model: of_model["assistant_bits_per_byte"] for model, of_model in scores.items()
            },
            "kneser_ney_bits_per_byte": kneser_ney_scores(run, tokenizer),
            "heldout": scores["base"]["heldout"],
        }
        shown.advance(1, "counted")
        if recipe.tune:
            results |= _replies(run, models, tokenizer, shown)
    return results


def bits_per_byte_in_all(run: Run, name: str) -> float:
    """Of all sources' held-out text together, by the scores that were taken after stage `name`; 0 where there is no such text."""
    scores = _scores_after(run.folder / "pretrain" / "heldout" / f"{name}.json")
    sizes = {source: size["bytes"] for source, size in scores["heldout"].items()}
    return sum(scores["bits_per_byte"][source] * size for source, size in sizes.items()) / (sum(sizes.values()) or 1)


def _scores_after(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(
            f"{path}: can't be read ({error}). Put it back, or make it again with `fox run` and --redo pretrain."
        ) from error


def kneser_ney_scores(run: Run, tokenizer: Tokenizer) -> dict[str, float]:
    """What a bigram model, counted on a source's training tokens, needs for the same held-out tokens."""
    train = open_shards(run, "train", tokenizer.vocab_size)
    scores = {}
    for name, heldout in heldout_text(run, tokenizer).items():
        bigram = KneserNeyBigram(train[name], tokenizer.vocab_size)
        counted = heldout.text_only(tokenizer)
        bits = sum(float(bigram.bits(d)[mask].sum()) for d, mask in zip(heldout.documents, counted, strict=True))
        size = sum(
            len(tokenizer.decode_bytes(d[mask].tolist())) for d, mask in zip(heldout.documents, counted, strict=True)
        )
        scores[name] = round(bits / size, 4)
    return scores


def _replies(run: Run, models: dict[str, Transformer], tokenizer: Tokenizer, shown: Any) -> dict[str, Any]:
    """How the tuned model answers people who are not in the training text, and what both models say to the recipe's prompts."""
    settings = run.recipe.eval

    def answer(model: Transformer, prompt: str) -> Reply:
        shown.advance(1, "replies")
        sampling = Sampling(settings.reply_temperature, settings.reply_top_p, seed=run.recipe.seed)
        return reply_to(model, tokenizer, prompt, sampling, settings.reply_tokens)

    chats = [
        shard
        for name, shard in open_shards(run, "heldout", tokenizer.vocab_size).items()
        if run.recipe.source[name].kind == "chat"
    ]
    openings = [line for shard in chats for line in opening_lines(tokenizer, shard, settings.reply_chats)][
        : settings.reply_chats
    ]
    replies = [answer(models["tuned"], opening) for opening in openings]
    known = vocabulary_of(tokenizer, open_shards(run, "train", tokenizer.vocab_size).values())
    words = [word for reply in replies for word in words_of(reply.text)]
    samples = []
    for prompt in settings.prompts:
        base, tuned = answer(models["base"], prompt), answer(models["tuned"], prompt)
        samples.append({"prompt": prompt, "base": base.text, "tuned": tuned.text, "tuned_ended": tuned.ended})
    return {
        "replies": {
            "chats": len(replies),
            "ended": sum(reply.ended for reply in replies),
            "words": len(words),
            "known_words": sum(word in known for word in words),
        },
        "samples": samples,
        "answers": [vars(reply) for reply in replies],
    }
