"""The steps of a run. Each reads what earlier ones made, fills its folders, and tells its facts; `pipeline` does the rest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import fox
from fox.artifacts import WORK, folder_made_whole, sha256_of, sha256_of_json, write_json
from fox.data.decontaminate import Questions, hashes_of, question_files
from fox.data.inventory import Inventory, contents, fingerprints, read_inventory, take_inventory
from fox.data.readers import CorpusReader, Reader, SourceReader
from fox.data.shards import shard_path, training_texts, write_shards
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.progress import Meter, meter
from fox.recipe import Recipe
from fox.recipe.schema import MAY_CHANGE, Data
from fox.recipe.stage import Stage
from fox.recipe.write import toml_page
from fox.runs.before_training import check_memory, check_same_training, check_undamaged, shards_of, sources_of
from fox.runs.folder import STEPS, Run, flat, sections, without_rows
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import check_template
from fox.train.trackers import Trackers

if TYPE_CHECKING:
    from fox.train.team import Team

Facts = dict[str, Any]
Inputs = dict[str, Any]

_TABLES = {
    "corpus": ("source", "data"),
    "tokenizer": ("source", "data", "tokenizer"),
    "data": ("source", "data"),
    "pretrain": ("seed", "model", "optimizer", "schedule", "stage"),
    "tune": ("seed", "tune"),
    "eval": ("seed", "eval"),
    "report": (),
}


def recipe_inputs(recipe: Recipe, step: str) -> Inputs:
    """What a step takes from the recipe: the part of its inputs that is known before any file is read."""
    values = sections(recipe, _TABLES[step])
    if "data" in values:  # as runs of before there were such keys have it; and whoever makes a corpus, it is the same
        unsaid = json.loads(Data().model_dump_json(exclude={"heldout_fraction"}))
        table = values["data"].items()
        values["data"] = {key: value for key, value in table if key != "executor" and unsaid.get(key, ...) != value}
    if "source" in values:  # so, too
        kept = {name: _without_none(source) for name, source in values["source"].items()}
        values["source"] = kept
    if step == "corpus":
        del values["data"]["heldout_fraction"]
        for name, source in values["source"].items():
            source["license"] = recipe.source[
                name
            ].license  # each document is kept with its terms, or left out for lack of them
            del source["max_bad_fraction"]  # decides whether there is a corpus, and nothing of what is in it
    elif "source" in values and recipe.makes_corpus:
        values["makes_corpus"] = True
    if step in ("pretrain", "tune"):
        values["train"] = _how_to_train(recipe)
    if step == "pretrain":
        values["eval"] = {"heldout_tokens": recipe.eval.heldout_tokens}
        if recipe.model.start_from is None:  # as runs of before there was such a key have it
            del values["model"]["start_from"]
    return without_rows(values)


def source_inventory(run: Run) -> Inventory:
    """The files of all sources with their hashes, kept in the run so that an unchanged file is hashed once."""
    path = run.folder / "inventory.json"
    known = read_inventory(path)
    with meter("hash the sources", None, "bytes") as shown:
        inventory = take_inventory(run.recipe, known, shown)
    if inventory != known:
        write_json(path, inventory)
    return inventory


def corpus_inputs(run: Run, inventory: Inventory) -> Inputs:
    return {
        **recipe_inputs(run.recipe, "corpus"),
        "files": fingerprints(inventory),
        **_question_hashes(run.recipe),
        **_list_hashes(run.recipe),
        **_example_hashes(run.recipe),
    }


def _list_hashes(recipe: Recipe) -> Inputs:
    """The hash of each list that a filter reads, by its source."""
    from fox.data.filters.judge import filter_files

    filters = {name: source.filter for name, source in recipe.source.items() if source.filter}
    hashes = {name: [sha256_of(path) for path in filter_files(name, settings)] for name, settings in filters.items()}
    return {"lists": {name: found for name, found in hashes.items() if found}} if any(hashes.values()) else {}


def _example_hashes(recipe: Recipe) -> Inputs:
    """The hash of each file of examples from which the score of documents is learnt."""
    if recipe.data.quality is None:
        return {}
    from fox.data.quality.examples import example_hashes

    kinds = {"good": recipe.data.quality.good, "bad": recipe.data.quality.bad}
    return {"examples": {kind: example_hashes(f"data.quality.{kind}", named) for kind, named in kinds.items() if named}}


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


FILES = "files.json"
"""What is kept of the sources' files beside what was made of them: the hash of each."""

_LIBRARIES = ("datatrove", "fastwarc", "numpy", "py3langid", "pyarrow", "resiliparse", "scikit-learn", "tokenizers")
"""On which the bytes of a corpus or of shards may depend."""


def _versions() -> dict[str, str]:
    installed = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[library] = metadata.version(library)
    return installed


def make_corpus(run: Run, inputs: Inputs, inventory: Inventory, console: Console) -> Facts:
    """Make the sources into a corpus, or go on with one that was begun from the same inputs. Raises RecipeError where it was begun from others."""
    from fox.data.corpus.make import make_corpus as make

    folder = run.folder / STEPS["corpus"][0]
    run.check_begun("corpus", folder / WORK / "inputs.json", inputs)
    facts = make(run.recipe, _questions(run.recipe, console), folder, console)
    _check_still(run.recipe, inventory, "corpus")
    write_json(folder / FILES, contents(inventory))
    return {**facts, "versions": _versions()}


def _check_still(recipe: Recipe, inventory: Inventory, step: str) -> None:
    """Raise Failure where a file is not as it was before it was read: nobody could say what was made of it."""
    with meter("look at the sources again", None, "bytes") as shown:
        now = take_inventory(recipe, inventory, shown)
    for name in inventory:
        then, today = contents(inventory)[name], contents(now)[name]
        changed = sorted(label for label in then.keys() | today.keys() if then.get(label) != today.get(label))
        if changed:
            raise Failure(
                f"source.{name}: {changed[0]} has changed, come or gone while the sources were read"
                + (f", and {len(changed) - 1} more" if len(changed) > 1 else "")
                + f". Let them rest, and read them again: --redo {step}."
            )


def _documents_read(run: Run, inventory: Inventory) -> Inputs:
    """What is read by those who learn from documents: the corpus, or the sources themselves."""
    if run.recipe.makes_corpus:
        return {"corpus": sha256_of_json(run.needs("corpus")["outputs"])}
    return {"files": fingerprints(inventory), **_question_hashes(run.recipe)}


def _corpus(run: Run) -> Path | None:
    """Where the documents of the sources are, if they were made into a corpus."""
    return run.folder / STEPS["corpus"][0] if run.recipe.makes_corpus else None


def tokenizer_inputs(run: Run, inventory: Inventory) -> Inputs:
    inputs = {**recipe_inputs(run.recipe, "tokenizer"), **_documents_read(run, inventory)}
    if run.recipe.model.start_from is not None:
        from fox.runs.start import files_of_start

        inputs["tokenizer_files"] = files_of_start(run, tokenizer_only=True)
    elif run.recipe.tokenizer.path is not None:
        inputs["tokenizer_files"] = _given_tokenizer(run.recipe.tokenizer.path)[1]
    return inputs


def _given_tokenizer(path: str) -> tuple[Path, dict[str, str]]:
    """The folder of a tokenizer that the recipe names, and the hash of each of its files that Fox reads."""
    try:
        folder = Path(path).expanduser()
        files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
        return folder, {file.name: sha256_of(file) for file in files if file.is_file()}
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user
        raise UserError(
            "tokenizer.path", path, problem=f"can't be read: {error}", mend="Name a folder with a tokenizer.json."
        ) from None


def make_tokenizer(run: Run, console: Console) -> Facts:
    """Train the vocabulary, or take the one that the recipe names, or that of the model which it starts from."""
    from fox.tokenizer.train import train_tokenizer

    recipe, wanted = run.recipe, run.recipe.tokenizer
    if recipe.model.start_from is not None:
        from fox.runs.start import open_start

        tokenizer = open_start(run).tokenizer
        if recipe.tune:
            check_template(tokenizer)
    elif wanted.path is not None:
        tokenizer = Tokenizer.load(_given_tokenizer(wanted.path)[0])
        check_vocabulary(tokenizer, wanted.vocab_size)
        if any(source.kind == "chat" for source in recipe.source.values()):
            check_template(tokenizer)
    else:
        with meter("tokenizer", None, "bytes", console=console) as shown:
            texts = training_texts(recipe, _reader(run, console), shown)
            tokenizer = train_tokenizer(texts, wanted.vocab_size, recipe.model.max_position_embeddings)
    with folder_made_whole(run.folder / "tokenizer") as partial:
        tokenizer.save(partial)
    return {"vocab_size": tokenizer.vocab_size, "special_tokens": tokenizer.special_ids}


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise UserError where a given tokenizer is not of the size that the recipe's model is made for, or can't mark a text's end."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            "tokenizer.vocab_size",
            vocab_size,
            problem=f"does not fit the tokenizer at tokenizer.path, which has {tokenizer.vocab_size} entries",
            mend=f"-o tokenizer.vocab_size={tokenizer.vocab_size}, or name another tokenizer.",
        )
    tokenizer.encode(b"\xff")  # raises where it has no tokens for bytes, and so can't write every text
    if tokenizer.eos_id is None:
        raise UserError(
            "tokenizer.path",
            problem="that tokenizer names no eos_token, so no text could end",
            mend="Add it to its tokenizer_config.json.",
        )


def data_inputs(run: Run, inventory: Inventory) -> Inputs:
    return {
        **recipe_inputs(run.recipe, "data"),
        **_documents_read(run, inventory),
        "tokenizer": run.needs("tokenizer")["outputs"],
    }


def _question_hashes(recipe: Recipe) -> Inputs:
    files = question_files(recipe.data.decontaminate)
    return {"questions": hashes_of(files)} if files else {}


def _questions(recipe: Recipe, console: Console) -> Questions | None:
    files = question_files(recipe.data.decontaminate)
    if not files:
        return None
    with meter("questions", len(files), "files", console=console) as shown:
        return Questions(files, shown)


def _reader(run: Run, console: Console) -> Reader:
    """Who reads the documents to learn from."""
    if (corpus := _corpus(run)) is None:
        return SourceReader(run.recipe, _questions(run.recipe, console))
    check_undamaged(run, {"corpus": _documents_of(run)}, console)
    return CorpusReader(corpus, run.needs("corpus")["facts"]["sources"])


def _documents_of(run: Run) -> list[str]:
    return [name for name in run.needs("corpus")["outputs"] if name.endswith(".parquet")]


def make_data(run: Run, inputs: Inputs, inventory: Inventory, console: Console) -> Facts:
    """Read, split and tokenize every source, without copies: a corpus by many processes, the sources themselves by this one."""
    folder = run.folder / STEPS["data"][0]
    if (corpus := _corpus(run)) is not None:
        from fox.data.corpus.tokenize import tokenize_corpus

        run.check_begun("data", folder / WORK / "inputs.json", inputs)
        check_undamaged(run, {"corpus": _documents_of(run)}, console)
        read = run.needs("corpus")["facts"]["sources"]
        facts = tokenize_corpus(run.recipe, run.folder / "tokenizer", corpus, read, folder, console)
    else:
        tokenizer, reader = Tokenizer.load(run.folder / "tokenizer"), _reader(run, console)
        with folder_made_whole(folder) as partial, meter("data", None, "bytes", console=console) as shown:
            facts = write_shards(run.recipe, tokenizer, reader, partial, shown)
            _check_still(run.recipe, inventory, "data")
            write_json(partial / FILES, contents(inventory))
    return {"sources": {name: of_source.as_dict() for name, of_source in facts.items()}, "versions": _versions()}


def open_shards(run: Run, split: str, vocab_size: int) -> dict[str, Shard]:
    """The shards of a split, for each source."""
    return {name: Shard(shard_path(run.folder / "data", name, split), vocab_size) for name in run.recipe.source}


def pretrain_inputs(run: Run) -> Inputs:
    inputs = {
        **recipe_inputs(run.recipe, "pretrain"),
        "tokenizer": run.needs("tokenizer")["outputs"],
        "data": run.needs("data")["outputs"],
    }
    if run.recipe.model.start_from is not None:
        from fox.runs.start import files_of_start

        inputs["base_model"] = files_of_start(run)
    return inputs


def make_pretrain(run: Run, inputs: Inputs, console: Console) -> Facts:
    """Train the base model through the curriculum, scoring held-out text after each stage, and before where it is not new."""
    from fox.model.directory import save_model
    from fox.runs.measure import AT_START, AVERAGED, heldout_scores
    from fox.runs.start import base_model_facts, open_start, trainable
    from fox.train.stages import new_model, pretrain, total_tokens, what_was_read

    recipe = run.recipe
    check_same_training(run, "pretrain", recipe.stage, inputs)
    tokenizer = Tokenizer.load(run.folder / "tokenizer")
    check_memory(recipe, {f"stage.{name}": stage for name, stage in recipe.stage.items()}, tokenizer.vocab_size)
    read = [*shards_of(run, sources_of(recipe, recipe.stage), "train"), *shards_of(run, recipe.source, "heldout")]
    check_undamaged(run, {"tokenizer": inputs["tokenizer"], "data": read}, console)
    start = open_start(run) if recipe.model.start_from is not None else None
    model = trainable(start) if start else new_model(recipe, tokenizer.vocab_size)
    folder = run.folder / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)

    def after_stage(stage: str, trained: Any) -> None:
        when = {AT_START: "before training", AVERAGED: "with averaged weights"}.get(stage, f"after stage {stage}")
        console.print(f"[dim]scoring held-out text {when}[/dim]")
        write_json(folder / "heldout" / f"{stage}.json", heldout_scores(run, trained, tokenizer))

    shards = open_shards(run, "train", tokenizer.vocab_size)
    _pack(recipe, recipe.stage, shards, folder, console)
    if start:
        tokenizer.stop_ids |= start.tokenizer.stop_ids
        if not ((folder / "checkpoints").exists() and (folder / "heldout" / f"{AT_START}.json").exists()):
            after_stage(AT_START, model)
    team = followed("pretrain", inputs, tokenizer.vocab_size)
    tokens = total_tokens(recipe.stage)
    with _watched(run, folder) as watch, meter("pretrain", tokens, "tokens", console=console) as shown:
        outcome = pretrain(recipe, model, shards, folder, flat(inputs), shown, after_stage, team, watch.on_row)
    averaged = _average(run, model, after_stage, console) if recipe.train.average_checkpoints else {}
    save_model(run.folder / "model", model, tokenizer, advised=start.generation if start else None)
    facts = {
        **_training_facts(recipe, recipe.stage, model, vars(outcome)),
        **what_was_read(recipe, recipe.stage, shards, folder),
        **averaged,
    }
    return {**facts, "base_model": base_model_facts(run, start)} if start else facts


def _average(run: Run, model: Any, after_stage: Callable[[str, Any], None], console: Console) -> Facts:
    """Give `model` the mean of its late checkpoints' weights, or leave it the last ones where these need fewer bits for the held-out
    text. Both are scored."""
    from fox.runs.measure import AVERAGED, bits_per_byte_in_all
    from fox.train.averaging import average_checkpoints, averaged_steps

    recipe, checkpoints = run.recipe, run.folder / "pretrain" / "checkpoints"
    steps = averaged_steps(recipe.stage.values(), recipe.schedule, recipe.train)
    average_checkpoints(checkpoints, steps, model)
    model.eval()
    after_stage(AVERAGED, model)
    mean, last = (bits_per_byte_in_all(run, name) for name in (AVERAGED, list(recipe.stage)[-1]))
    told = f"the mean of the checkpoints of steps {', '.join(map(str, steps))} needs {mean:.4f} bits per byte of held-out text"
    if mean > last:
        average_checkpoints(checkpoints, steps[-1:], model)  # of one alone: its weights
        told = f"note: {told}, and the last weights {last:.4f}: these stay the model."
    console.print(told, highlight=False, soft_wrap=True)
    return {"averaged_steps": steps, "model_is_averaged": mean <= last}


def tune_inputs(run: Run) -> Inputs:
    return {
        **recipe_inputs(run.recipe, "tune"),
        "model": _below("model", run.needs("pretrain")["outputs"]),
        "data": run.needs("data")["outputs"],
    }


def make_tune(run: Run, inputs: Inputs, console: Console) -> Facts:
    """Tune the base model on chats."""
    from fox.model.directory import save_model
    from fox.model.stored import open_model
    from fox.train.stages import total_tokens, tune, what_was_read

    recipe = run.recipe
    assert recipe.tune
    stages = {"tune": recipe.tune}
    check_same_training(run, "tune", stages, inputs)
    base = open_model(run.folder / "model")
    check_memory(recipe, stages, base.tokenizer.vocab_size)
    read = shards_of(run, sources_of(recipe, stages), "train")
    check_undamaged(run, {"pretrain": inputs["model"], "data": read}, console)
    model, tokenizer = base.load(), base.tokenizer
    shards = open_shards(run, "train", tokenizer.vocab_size)
    folder = run.folder / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    _pack(recipe, {"tune": recipe.tune}, shards, folder, console)
    team = followed("tune", inputs, tokenizer.vocab_size)
    tokens = total_tokens({"tune": recipe.tune})
    with _watched(run, folder) as watch, meter("tune", tokens, "tokens", console=console) as shown:
        outcome = tune(recipe, model, shards, folder, flat(inputs), shown, lambda *_: None, team, watch.on_row)
    save_model(run.folder / "tuned", model, tokenizer, advised=base.generation)
    facts = _training_facts(recipe, {"tune": recipe.tune}, model, vars(outcome))
    return {**facts, **what_was_read(recipe, {"tune": recipe.tune}, shards, folder)}


def _watched(run: Run, folder: Path) -> Trackers:
    """Whoever else watches the training in `folder`. They see the resolved recipe."""
    page = run.recipe.model_dump(mode="json")
    return Trackers(run.watchers, folder, f"{run.recipe.name}-{folder.name}", page, toml_page(page))


def _pack(recipe: Recipe, stages: dict[str, Any], shards: dict[str, Shard], folder: Path, console: Console) -> None:
    """Pack the documents into chunks, where that is not done; tell where their mixtures will be missed."""
    from fox.train.curriculum import mixture_warnings
    from fox.train.readings import padding_warnings
    from fox.train.stages import pack

    with meter("pack", None, "tokens", console=console) as shown:
        orders, index = pack(recipe, stages, shards, folder, shown)
    for warning in (*mixture_warnings(recipe, orders), *padding_warnings(index.facts, orders)):
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


def followed(step: str, inputs: Inputs, vocab_size: int) -> Team:
    """The team that trains, after all the others of it were told to do this step, too (`follow`)."""
    from fox.train.team import current_team

    team = current_team()
    team.from_leader(lambda: {"step": step, "inputs": flat(inputs), "vocab_size": vocab_size})
    return team


def follow(run: Run, team: Team) -> None:
    """What every rank but the leader does: train whenever the leader does, until that has nothing more to do. It writes nothing but
    its part of each checkpoint."""
    from fox.train.stages import pretrain, tune

    while (told := team.from_leader(lambda: None)) is not None:
        step, silent = told["step"], Meter(told["step"], None, "tokens")
        train = {"pretrain": pretrain, "tune": tune}[step]
        shards = open_shards(run, "train", told["vocab_size"])
        train(run.recipe, None, shards, run.folder / step, told["inputs"], silent, lambda *_: None, team)


def eval_inputs(run: Run) -> Inputs:
    base = run.needs("pretrain")["outputs"]
    inputs = {
        **recipe_inputs(run.recipe, "eval"),
        "model": _below("model", base) | _below("pretrain/heldout", base),
        "data": run.needs("data")["outputs"],
    }
    if run.recipe.tune:
        inputs["tuned"] = _below("tuned", run.needs("tune")["outputs"])
    return inputs


def make_eval(run: Run, console: Console) -> Facts:
    """Score base and tuned model on held-out text, and read their replies."""
    from fox.runs.measure import measure

    results = measure(run, console)
    with folder_made_whole(run.folder / "eval") as partial:
        write_json(partial / "results.json", results)
    return {
        key: results[key]
        for key in ("bits_per_byte", "assistant_bits_per_byte", "kneser_ney_bits_per_byte", "replies")
        if key in results
    }


def report_inputs(run: Run) -> Inputs:
    done = {step: run.needs(step)["outputs"] for step in ("data", "pretrain", "eval")}
    return {"fox": fox.__version__, **done}


def make_report(run: Run, console: Console) -> Facts:
    """Draw the report."""
    from fox.report.page import write_report

    return {"page": str(write_report(run.folder).relative_to(run.folder))}


def _below(folder: str, outputs: dict[str, str]) -> dict[str, str]:
    """Of the files that a step made, those in one folder: a later step's inputs are what it reads, and no more."""
    return {name: digest for name, digest in outputs.items() if name.startswith(f"{folder}/")}


def _how_to_train(recipe: Recipe) -> dict[str, Any]:
    """[train] without what may change while a run goes on."""
    return recipe.train.model_dump(exclude=set(MAY_CHANGE))


def _training_facts(recipe: Recipe, stages: Mapping[str, Stage], model: Any, outcome: dict[str, Any]) -> Facts:
    from fox.train.machine import losses_depend_on, processor, resolve_precision
    from fox.train.team import current_team

    return {
        "parameters": model.num_parameters(),
        **outcome,
        "precision": resolve_precision(recipe.train.precision),
        "rows": {name: stage.rows for name, stage in stages.items()},
        "ranks": current_team().size,
        "cpu": processor(),
        **losses_depend_on(),
    }
