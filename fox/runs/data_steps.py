"""The steps from sources to token shards: corpus, tokenizer, data. Each reads what earlier ones made, fills its folder, and tells its facts."""

from __future__ import annotations

import contextlib
from importlib import metadata
from pathlib import Path

from rich.console import Console

from fox.artifacts import WORK, folder_made_whole, sha256_of, sha256_of_json, write_json
from fox.data.decontaminate import Questions, hashes_of, question_files
from fox.data.inventory import Inventory, contents, fingerprints, read_inventory, take_inventory
from fox.data.readers import CorpusReader, Reader, SourceReader
from fox.data.shards import shard_path, training_texts, write_shards
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.progress import meter
from fox.recipe import Recipe
from fox.runs.before_training import check_undamaged
from fox.runs.folder import STEPS, Run
from fox.runs.inputs import Facts, Inputs, recipe_inputs
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import check_template

FILES = "files.json"
"""What is kept of the sources' files beside what was made of them: the hash of each."""

_LIBRARIES = ("datatrove", "fastwarc", "numpy", "py3langid", "pyarrow", "resiliparse", "scikit-learn", "tokenizers")
"""On which the bytes of a corpus or of shards may depend."""


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
