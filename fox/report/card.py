"""The model card: the README.md of an exported model, with the hub's metadata, written from the run's records.

What nothing recorded is not told, and what is missing is said to be missing. Names, prompts and values are foreign text:
all of it is escaped. Paths of the machine that trained it stay there.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

from fox.recipe.write import toml_page
from fox.report import markdown, quantities
from fox.report.about import About, Gate
from fox.report.card_data import data_section, its_training, tokens_drawn
from fox.report.how_to_run import Opening, how_to_run
from fox.report.hub_metadata import front_matter, license_values, scores_index
from fox.report.markdown import words
from fox.report.page import summary
from fox.report.run_files import BaseModelFacts, Results, RunFiles
from fox.report.tables import StageFacts, Table, machine, scores_table, stages_of, steps_table
from fox.report.terms import model_license, recipe_as_stated

__all__ = ["About", "Gate", "model_card"]

_ITS_STEP = {"base": "pretrain", "tuned": "tune"}
_ITS_FOLDER = {"base": "model", "tuned": "tuned"}


def model_card(about: About, run: RunFiles | None) -> str:
    """The card of the export `about`, made of a model of `run`, or of other people's model where that is None."""
    sections = [
        front_matter(_metadata(about, run)),
        f"# {words(about.name)}",
        _what_it_is(about, run),
        *([_not_there(run)] if run and run.notes else []),
        f"## Shape\n\n{_shape(about)}",
        how_to_run(about, _opening(run)),
        *(_of_run(about, run) if run else [f"## Where it comes from\n\n{_origin(about)}"]),
        f"## The conversion\n\n{_conversion(about)}",
        *([f"## Making it again\n\n{_again(about, run)}"] if run else []),
    ]
    card = "\n\n".join(sections) + "\n"
    return card.encode(errors="replace").decode()  # JSON can hold half characters, and a file can't


def _metadata(about: About, run: RunFiles | None) -> dict[str, Any]:
    base = run.facts("pretrain").base_model if run else None
    of_hub = about.converted_from if about.from_hub and not run else ""
    if base and base.from_hub:
        of_hub = base.name
    is_gguf = about.target != "hf"
    return {
        **license_values((model_license(run) or (base.license if base else "")) if run else about.license),
        "library_name": "gguf" if is_gguf else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "fox",
            *(["gguf", "llama.cpp"] if is_gguf else ["safetensors"]),
            *(["ollama"] if about.target == "ollama" else []),
            *(["conversational"] if about.chats else []),
            *([about.file_type] if about.is_quantized else []),
        ],
        "base_model": "/".join(of_hub.split("/")[:2]),
        "base_model_relation": "finetune" if of_hub and base else "quantized" if of_hub and is_gguf else "",
        "model-index": _scores_index(about, run),
    }


def _scores_index(about: About, run: RunFiles | None) -> list[dict[str, Any]]:
    """The scores of this model. One of a quantised file would not be its own: they were measured before."""
    if not run or not run.results or not about.part or about.is_quantized:
        return []
    results = run.results
    scores: dict[str, dict[str, float]] = {}
    for metric, by_model in (
        ("Bits per byte", results.bits_per_byte),
        ("Bits per byte of replies", results.assistant_bits_per_byte),
    ):
        for source, score in by_model.get(about.part, {}).items():
            if math.isfinite(score):
                scores.setdefault(source, {})[metric] = score
    return scores_index(about.name, scores)


def _what_it_is(about: About, run: RunFiles | None) -> str:
    form = {"hf": "a Hugging Face directory", "gguf": "a GGUF file", "ollama": "a GGUF file with Ollama's Modelfile"}
    written = f"as {form[about.target]} with {words(about.file_type)} weights"
    if not run:
        return (
            f"A decoder of {about.parameters:,} parameters, converted from {_source(about)} by Fox {words(about.fox)} {written}. "
            "It was trained by others: what it was trained on and how it scores is for its own card to say, and is not known "
            "here." + (f" Its files state its licence: {words(about.license)}." if about.license else "")
        )
    which = {"base": "The base model", "tuned": "The tuned model"}.get(about.part, "A model")
    license = model_license(run)
    terms = f"Its licence: {words(license)}." if license else "Its makers have not stated a licence."
    return " ".join(
        [
            f"{which} of the run {words(run.name)}, made with Fox, {written}.",
            *([_base_model(base)] if (base := run.facts("pretrain").base_model) else []),
            words(summary(run)),
            terms,
        ]
    )


def _base_model(base: BaseModelFacts) -> str:
    name = words(markdown.last_part(base.name))
    if base.from_hub:
        owner_and_model = "/".join(base.name.split("/")[:2])
        name = f"{words(base.name)} ({markdown.link(f'https://huggingface.co/{owner_and_model}')})"
    stated = (
        f"That model's licence, as its files state: {words(base.license)}; it holds for this one too."
        if base.license
        else "That model's files state no licence: ask before you give this one away."
    )
    return f"Its training began with the weights of {name}, which others may have made, and not from nothing. {stated}"


def _source(about: About) -> str:
    named = about.converted_from
    if not named:
        return "a model without a name"
    if not about.from_hub:
        return words(markdown.last_part(named))
    owner_and_model = "/".join(named.split("/")[:2])
    return f"{words(named)} ({markdown.link(f'https://huggingface.co/{owner_and_model}')})"


def _origin(about: About) -> str:
    unknown = (
        "training data, tokens seen and scores" if about.license else "training data, tokens seen, scores, and licence"
    )
    stated = f" ({words(about.license)}, as its files state)" if about.license else ""
    return (
        f"It was converted from {_source(about)}. Not known here: {unknown}. "
        f"The licence of that model{stated} holds for this one too."
    )


def _not_there(run: RunFiles) -> str:
    return "\n".join(f"> {words(note)}" for note in run.notes)


def _shape(about: About) -> str:
    scaling = dict(about.rope_scaling or {})
    kind = scaling.pop("rope_type", "none")
    stretched = ", ".join([str(kind), *(f"{key} {value}" for key, value in scaling.items())])
    rows = [
        ("architecture", about.architecture),
        ("parameters", f"{about.parameters:,}"),
        ("layers", f"{about.num_hidden_layers:,}"),
        ("hidden size", f"{about.hidden_size:,}"),
        ("feed-forward size", f"{about.intermediate_size:,}"),
        ("attention heads", f"{about.num_attention_heads:,}"),
        ("key and value heads", f"{about.num_key_value_heads:,}"),
        ("head size", f"{about.head_dim:,}"),
        ("vocabulary", f"{about.vocab_size:,}"),
        ("context", f"{about.max_position_embeddings:,} tokens"),
        ("rotary base", f"{about.rope_theta:,.10g}"),
        ("rotary scaling", stretched),
        ("embedding and head", "one matrix" if about.tie_word_embeddings else "two matrices"),
        ("tokenizer", f"{about.tokenizer}, {about.tokenizer_entries:,} entries"),
        ("first token", about.bos or "none"),
        ("end of text", about.eos or "none"),
        ("chat template", _template(about)),
    ]
    return markdown.table(Table(["", ""], [list(row) for row in rows], text_columns=2))


def _template(about: About) -> str:
    if not about.has_chat_template:
        return "no"
    return "yes" if about.renders_chats else "yes, but it is broken: no chat could be rendered by it"


def _opening(run: RunFiles | None) -> Opening:
    asked = run.recipe.recipe.get("eval") if run else None
    settings = asked if isinstance(asked, dict) else {}
    prompts, tokens = settings.get("prompts"), settings.get("reply_tokens")
    prompt = str(prompts[0]) if isinstance(prompts, list) and prompts else ""
    prompt = " ".join("".join(sign if sign.isprintable() else " " for sign in prompt).split())
    return Opening(
        prompt or Opening.prompt, tokens if isinstance(tokens, int) and 0 < tokens < 10**6 else Opening.max_tokens
    )


def _of_run(about: About, run: RunFiles) -> list[str]:
    return [
        f"## Training\n\n{_training(about, run)}",
        f"## Data\n\n{data_section(about, run)}",
        f"## Scores\n\n{_scores(about, run)}",
        f"## Limits\n\n{_limits(about, run)}",
    ]


def _training(about: About, run: RunFiles) -> str:
    stages = [
        *(("pre-training", stage) for stage in (stages_of(run.pretrain, "pre-training") if run.pretrain else [])),
        *(("tuning", stage) for stage in (stages_of(run.tune, "tuning") if run.tune else [])),
    ]
    if not stages:
        return "Nothing is recorded of it."
    head = ["part", "stage", "chunk length", "mixture, by tokens", "tokens", "steps", "tokens a step", "rows a pass",
            "peak learning rate", "loss at its end"]  # fmt: skip
    rows = [_stage_row(run, part, stage) for part, stage in stages]
    told = [
        markdown.table(Table(head, rows, text_columns=4)),
        "A chunk is what sees each other. Tuning learns from the assistant's words alone; all its tokens are counted."
        if run.tune
        else ("It is not tuned." if run.recipe.recipe and not run.recipe.recipe.get("tune") else "Tuning is not done."),
    ]
    if run.tune and about.part == "base":
        told.append("This is the model before its tuning.")
    begun = [step for step, metrics in (("pretrain", run.pretrain), ("tune", run.tune)) if metrics]
    if any(step not in run.manifests for step in begun):
        told.append("**Training was not at its end when this was written.**")
    return "\n\n".join(told)


def _stage_row(run: RunFiles, part: str, stage: StageFacts) -> list[str]:
    asked: Any = run.recipe.recipe.get("tune")
    if part == "pre-training":
        stages = run.recipe.recipe.get("stage")
        asked = stages.get(stage.name) if isinstance(stages, dict) else None
    rows = asked.get("rows") if isinstance(asked, dict) else None
    rate = stage.peak_learning_rate
    return [
        part,
        stage.name,
        stage.chunks,
        stage.mixture,
        quantities.exact(stage.tokens),
        quantities.exact(stage.steps),
        quantities.exact(stage.tokens / stage.steps),
        quantities.exact(rows if isinstance(rows, int) else None),
        f"{rate:.3g}" if math.isfinite(rate) else quantities.NONE,
        quantities.decimal(stage.last_loss, 3),
    ]


def _scores(about: About, run: RunFiles) -> str:
    made = scores_table(run.results, run.last_stage) if run.results else None
    if not run.results or not made:
        return "**Not measured yet**: the run's evaluation was not done when this was written."
    mine = {"base": "base model", "tuned": "tuned model"}.get(about.part)
    rows = [
        [f"{row[0]} (this one)" if mine and row[0].startswith(mine) and ":" not in row[0] else row[0], *row[1:]]
        for row in made.rows
    ]
    told = [
        "Bits per byte of text that was held out of training; lower is better. The bigram is counted on the same training text.",
        markdown.table(Table(made.head, rows)),
        *_replies(run.results),
        "All of it was measured on the run's own weights, before the conversion; how near this model is to them is told below.",
    ]
    return "\n\n".join(told)


def _replies(results: Results) -> list[str]:
    replies = results.replies
    if not replies or not replies.chats:
        return []
    known = (
        f", and {replies.known_words:,} of their {replies.words:,} words occur in the training text"
        if replies.words and replies.known_words is not None
        else ""
    )
    return [
        f"Of the tuned model's replies to {replies.chats:,} held-out chats {replies.ended:,} end by themselves{known}."
    ]


def _limits(about: About, run: RunFiles) -> str:
    drawn = tokens_drawn(about, run)
    seen = sum(drawn.values())
    size = "It is small" if about.parameters < 10**10 else "It is a language model"
    told = [
        f"{size}: {about.parameters:,} parameters. Expect sentences that read well and are wrong, or that mean nothing. It is "
        "no source of facts and no adviser."
    ]
    if seen and run.facts("pretrain").base_model:
        told.append(
            f"It has read {seen:,.0f} tokens of {_listed(drawn)}, on top of all that its base model had read, of which nothing is on "
            "record here. It holds what is wrong or unfair in either for true, and may have forgotten some of the older."
        )
    elif seen:
        told.append(
            f"It has read {seen:,.0f} tokens in all, {seen / max(1, about.parameters):,.2f} a parameter, of {_listed(drawn)}. "
            "It knows nothing that is not in them, and holds what is wrong or unfair in them for true."
        )
    stages = [stage for metrics in its_training(about, run) for stage in stages_of(metrics, "")]
    longest = max((length for stage in stages for length in stage.chunk_lengths.values()), default=0)
    context = f"It reads at most {about.max_position_embeddings:,} tokens at a time"
    if 0 < longest < about.max_position_embeddings:
        context += f", and was trained on no more than {longest:,.0f} of them"
    told += [
        f"{context}.",
        "Its languages are those of its sources, which the recipe does not name.",
        "Its only scores are those on held-out text of its own sources. No benchmark, and no test for harm or bias, is on record."
        if run.results
        else "Nothing of what it can do has been measured.",
        "Nothing was done to make it safe: no tuning on refusals or on people's preferences, and no filter on what it says."
        if about.part == "tuned"
        else "It goes on with a text. It was not tuned to answer, nor to be safe.",
    ]
    return "\n".join(f"- {sentence}" for sentence in told)


def _listed(drawn: Counter[str]) -> str:
    return quantities.listed([words(name) for name, _ in drawn.most_common()])


def _conversion(about: About) -> str:
    bits = 8 * about.num_bytes / max(1, about.parameters)
    rows = [
        ["weights' type", about.file_type],
        ["bytes", f"{about.num_bytes:,}"],
        ["bits a parameter", f"{bits:.2f}"],
    ]
    gate = about.gate
    if gate:
        rows += [
            ["hard texts with the same token ids", f"{gate.texts:,}"],
            ["tokens with predictions compared", f"{gate.tokens:,}"],
            ["mean KL divergence, nats", f"{gate.mean_kl_nats:.3g}"],
            ["largest KL divergence, nats", f"{gate.max_kl_nats:.3g}"],
            ["same likeliest token", f"{gate.same_top_token:.2%}"],
        ]
        told = "What was written was read back and compared with the model that it was made of, and only then kept."
    else:
        told = "What was written was not compared with the model that it was made of."
    return f"{told} Written by Fox {words(about.fox)}.\n\n{markdown.table(Table(['', ''], rows))}"


def _again(about: About, run: RunFiles) -> str:
    told = []
    recipe = recipe_as_stated(run)
    if recipe:
        shown = markdown.without_local_paths(recipe)
        page = toml_page(shown)
        file = f"{about.short_name}.toml"
        digest = hashlib.sha256(page.encode(errors="replace")).hexdigest()
        told.append(
            f"Save the recipe as `{file}` and run `fox run {file}`. With the same sources, torch, threads and instruction set the "
            f"losses are the same, bit for bit. The recipe's SHA-256 is `{digest}`."
            + (" Paths of the machine that made it are cut to their last part." if shown != recipe else "")
        )
        told.append(markdown.folded("The recipe, with every value", markdown.code(page, "toml")))
    else:
        told.append("The recipe is not on record.")
    facts = machine(run)
    if facts:
        told.append(markdown.table(Table(["made on and with", ""], [list(fact) for fact in facts], text_columns=2)))
    steps = steps_table(run)
    if steps:
        told.append(markdown.table(steps))
    made = _made_files(about, run)
    return "\n\n".join([*told, *markdown.hashes(made, "SHA-256 of the model that this is made of")])


def _made_files(about: About, run: RunFiles) -> dict[str, str]:
    """The hashes of the model's own files, as the step that made them kept them."""
    manifest = run.manifests.get(_ITS_STEP.get(about.part, ""))
    folder = f"{_ITS_FOLDER.get(about.part, '')}/"
    recorded = (
        {name: digest for name, digest in manifest.outputs.items() if name.startswith(folder)} if manifest else {}
    )
    return recorded
