"""The report of a real run: what the steps write is what the page reads."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from fox.report.card import About, model_card
from fox.report.markdown import words
from fox.report.run_files import STEPS, read_run
from tests.journey.micro_run import fox


def test_what_every_step_wrote_is_on_the_page(finished: Path) -> None:
    run = finished / "runs/micro"
    page = html.unescape((run / "report/index.html").read_text("utf-8"))
    manifests = {step: json.loads((run / f"manifests/{step}.json").read_text("utf-8")) for step in STEPS}
    trained = manifests["pretrain"]["facts"]
    assert re.search('<section id="data">', page)
    for source, facts in manifests["data"]["facts"]["sources"].items():
        assert f'<td class="words">{source}</td><td>{facts["documents"]:,}</td><td>{facts["duplicates"]:,}</td>' in page
    for told in (f"{trained['parameters']:,}", trained["cpu"], trained["torch"], trained["instruction set"]):
        assert told in page
    for digest in (*manifests["data"]["inputs"]["files"].values(), *manifests["pretrain"]["outputs"].values()):
        assert digest in page
    assert "base model, after stage last" in page
    assert "left out" not in page and 'id="notes"' not in page
    assert read_run(run).notes == []


def test_what_every_step_wrote_is_on_the_model_card(finished: Path) -> None:
    run = finished / "runs/micro"
    manifests = {step: json.loads((run / f"manifests/{step}.json").read_text("utf-8")) for step in STEPS}
    config = json.loads((run / "tuned/config.json").read_text("utf-8"))
    shape = {name: config[name] for name in About.__dataclass_fields__ if name in config}
    parameters = manifests["tune"]["facts"]["parameters"]
    about = About(
        name="micro", target="hf", file_type="bf16", num_bytes=2 * parameters, fox="0", architecture="LlamaForCausalLM",
        parameters=parameters, **shape, tokenizer="byte-level BPE", tokenizer_entries=420, has_chat_template=True, part="tuned",
    )  # fmt: skip
    card = model_card(about, read_run(run))
    trained = manifests["pretrain"]["facts"]
    for source, facts in manifests["data"]["facts"]["sources"].items():
        counts = (
            facts["documents"],
            facts["duplicates"],
            facts["bad"],
            facts["train"]["tokens"],
            facts["train"]["bytes"],
        )
        assert f"| {source} | not stated | – | {' | '.join(f'{count:,}' for count in counts)} |" in card
    for told in (
        f"{parameters:,}",
        trained["cpu"],
        trained["torch"],
        trained["instruction set"],
        "Its makers have not stated",
    ):
        assert words(told) in card
    for digest in (
        *manifests["data"]["inputs"]["files"].values(),
        manifests["tune"]["outputs"]["tuned/model.safetensors"],
    ):
        assert digest in card
    assert "Not there yet" not in card and str(finished) not in card


def test_a_licence_is_told_without_doing_anything_again(copied: Path) -> None:
    _, told = fox(copied, "run", "micro.toml", "-o", "license=MIT", "-o", "source.chats.license=CC0-1.0")
    assert told.count("done before") == len(STEPS) + 1
    recipe = read_run(copied / "runs/micro").recipe.recipe
    assert (recipe["license"], recipe["source"]["chats"]["license"]) == ("MIT", "CC0-1.0")
