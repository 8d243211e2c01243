"""`fox report`: one page from whatever a run left."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fox.errors import UserError
from fox.report import quantities
from fox.report.page import reproduce_command, write_report
from fox.report.plots import bits_limits, draw_bits_of, mixture_shares, smoothed, thinned
from fox.report.run_files import Band, Results, RunFiles, SavedRecipe, read_run
from fox.report.tables import scores_table
from tests.unit.report.made_up_run import HOSTILE, STAGES, training_rows, write_lines


@pytest.fixture(scope="module")
def whole_page(whole_run: Path) -> str:
    return write_report(whole_run).read_text("utf-8")


class Elements(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_section_and_every_chart(whole_page: str, whole_run: Path) -> None:
    ids = {attributes.get("id") for _, attributes in Elements(whole_page).tags}
    sections = {
        "summary",
        "training",
        "tuning",
        "scores",
        "samples",
        "data",
        "stages",
        "reproduce",
        "machine",
        "recipe",
    }
    charts = {
        *(
            "loss-by-tokens",
            "loss-by-time",
            "loss-by-source",
            "gradient-norm",
            "learning-rate",
            "chunk-length",
            "mixture",
        ),
        *("epochs", "speed", "share-of-peak", "memory"),
        *("bits-per-byte", "tuning-loss", "tuning-learning-rate"),
    }
    assert sections | charts | {"hashes"} <= ids
    assert "notes" not in ids
    assert {file.stem for file in (whole_run / "report").glob("*.png")} == charts | {"overview"}


def test_the_summary_tells_the_headline_figures(whole_page: str) -> None:
    text = Elements(whole_page).text.replace("\N{NO-BREAK SPACE}", " ")
    for told in (
        "7.74 M parameters",
        "2.00 M tokens in 3 stages and 6 min 31 s",
        "2.07 bits per byte of speeches (a Kneser-Ney bigram: 2.44)",
        "from 2.52 to 2.09 bits per byte",
        "Of 20 replies to held-out chats 19 end by themselves",
    ):
        assert told in text


def test_what_the_manifests_hold_is_on_the_page(whole_page: str) -> None:
    text = Elements(whole_page).text.replace("\N{NO-BREAK SPACE}", " ")
    for told in ("7,739,392", "AMD EPYC 9R14", "AVX512", "2.13.0", "7,168", "10.1 MB", "1.14 GB"):
        assert told in text
    for told in ("after stage foundation", "base model, after stage quality", "tuned model: replies alone"):
        assert told in text
    assert "Peak memory so far" in text and "left out" not in text
    assert text.count("ab" * 32) == 2, "what is read of a source, by both steps that read it"
    assert text.count("cd" * 32) == 1, "what one step makes and others read is named once"


def test_the_page_tells_how_documents_lie_in_chunks(whole_page: str) -> None:
    text = Elements(whole_page).text.replace("\N{NO-BREAK SPACE}", " ")
    told = text[text.index("Documents in chunks") :]
    assert "qualityspeeches2561,2500.42 %2011731.44" in "".join(told.split("\n"))
    assert "0c" * 32 not in text
    read = told[told.index("How often the text was read") :]
    assert "pretrainspeeches0.0 %56.2 %43.8 %0.0 %" in "".join(read.split("\n"))


def test_the_bigrams_name_covers_neither_the_curve_nor_its_numbers() -> None:
    for values, bigram in (([2.3, 2.1, 2.0, 2.1], 2.4), ([2.9, 2.1, 2.0, 1.9], 1.8), ([2.6, 2.2, 2.1, 2.15], 2.4)):
        results = Results(
            bits_per_byte={f"m{i}": {"a": value} for i, value in enumerate(values)},
            kneser_ney_bits_per_byte={"a": bigram},
        )
        axes = Figure(figsize=(3.2, 2.6)).add_axes((0.2, 0.2, 0.7, 0.6))
        draw_bits_of(axes, results, "a", bits_limits(results, ["a"]), narrow=True)
        names = {text.get_text(): text.get_window_extent() for text in axes.texts}
        (name,) = (box for text, box in names.items() if text.startswith("bigram"))
        curve = axes.transData.transform([(i, np.interp(i, range(4), values)) for i in np.linspace(0, 3, 100)])
        assert name.count_contains(curve) == 0
        assert not any(name.overlaps(box) for text, box in names.items() if text[0].isdigit())


def test_the_overview_suits_a_readme(whole_page: str, whole_run: Path) -> None:
    header = (whole_run / "report/overview.png").read_bytes()[:24]
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (1600, 1000)


def test_the_page_asks_the_network_for_nothing(whole_page: str) -> None:
    for tag, attributes in Elements(whole_page).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import", whole_page)


def test_foreign_text_stays_text(whole_page: str) -> None:
    elements = Elements(whole_page)
    assert HOSTILE in elements.text
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)


def test_hostile_names_stay_text_in_charts_too(tmp_path: Path) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[::20]
    for row in rows:
        row["stage"] += "\x00\x1b]" + HOSTILE
        row["mix"] = {HOSTILE: 10, "日本 $x_$": 5, **{f"source {i}": 1 for i in range(9)}}
        row["chunk_length"] = {HOSTILE: 128, "日本 $x_$": 256}
    write_lines(tmp_path / "pretrain/metrics.jsonl", rows)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.json").write_text(json.dumps({"bits_per_byte": {HOSTILE: {HOSTILE: 2.0}}}))
    elements = Elements(write_report(tmp_path).read_text("utf-8"))
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in elements.tags)


def test_numbers_that_are_none_break_no_chart(tmp_path: Path) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[::30]
    for i, row in enumerate(rows):
        for name in ("loss", "seconds", "tokens_per_second", "memory_bytes", "learning_rate"):
            row[name] = [math.nan, math.inf, 0.0, 1e-12][(i + len(name)) % 4]
        row["mix"] = {}
    write_lines(tmp_path / "pretrain/metrics.jsonl", rows)
    write_lines(tmp_path / "tune/metrics.jsonl", [{"step": 1, "tokens": 0, "loss": math.inf}])
    (tmp_path / "eval").mkdir()
    scores = {"base": {"a": math.nan, "b": math.inf}, "tuned": {"b": 1.0}}
    (tmp_path / "eval/results.json").write_text(
        json.dumps({"bits_per_byte": scores, "kneser_ney_bits_per_byte": {"a": math.nan}})
    )
    assert write_report(tmp_path).is_file()


def test_an_unfinished_run_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[:3]
    rows[1]["loss"] = math.nan
    write_lines(
        tmp_path / "pretrain/metrics.jsonl", [{key: row[key] for key in ("step", "tokens", "loss")} for row in rows]
    )
    elements = Elements(write_report(tmp_path).read_text("utf-8"))
    assert (
        "Not there yet: the recipe, what the data holds, the end of training, tuning, the evaluation." in elements.text
    )
    assert "loss-by-tokens" in {attributes.get("id") for _, attributes in elements.tags}


@pytest.mark.parametrize("content", ["{", "[]", '{"bits_per_byte": 3}', "[" * 100_000])
def test_a_damaged_file_is_said_and_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.json").write_text(content)
    run = read_run(tmp_path)
    assert run.results is None
    assert any("eval/results.json can't be read" in note for note in run.notes)


def test_a_cut_last_line_of_metrics_is_said_and_left_out(tmp_path: Path) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[:5]
    file = tmp_path / "pretrain/metrics.jsonl"
    write_lines(file, rows)
    file.write_bytes(file.read_bytes()[:-60])
    run = read_run(tmp_path)
    assert run.pretrain is not None and len(run.pretrain.rows) == 4
    assert (
        "The last line of pretrain/metrics.jsonl is cut short, as a stopped run leaves it; it is left out." in run.notes
    )


def test_a_broken_line_within_is_counted_and_a_step_written_again_counts_once(tmp_path: Path) -> None:
    rows = training_rows(STAGES, 8.4, 3.5, 4e-3)[:6]
    again = [{**row, "loss": 1.0} for row in rows[3:]]
    write_lines(tmp_path / "pretrain/metrics.jsonl", [*rows[:5], {"step": "?"}, *again])
    run = read_run(tmp_path)
    assert run.pretrain is not None
    assert [row.step for row in run.pretrain.rows] == [1, 2, 3, 4, 5, 6]
    assert run.pretrain.rows[3].loss == 1.0
    assert "1 unreadable line of pretrain/metrics.jsonl left out." in run.notes


def test_a_folder_that_is_no_run_is_a_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="RUN") as caught:
            write_report(folder)
        assert "fox run" in caught.value.problems[0].mend
    assert not list(tmp_path.iterdir())


def test_a_report_takes_the_place_of_the_one_before(whole_run: Path, whole_page: str) -> None:
    (whole_run / "report/old.png").write_bytes(b"")
    assert write_report(whole_run).read_text("utf-8") == whole_page
    assert not (whole_run / "report/old.png").exists()


def test_a_mean_of_late_checkpoints_is_named_whether_it_was_taken_or_not() -> None:
    def rows(*models: str) -> list[str]:
        told = scores_table(Results(bits_per_byte={model: {"speeches": 2.0} for model in models}), "quality")
        assert told
        return [row[0] for row in told.rows]

    assert rows("quality", "base") == ["after stage quality", "base model, the mean of late checkpoints"]
    assert rows("averaged", "base") == ["mean of late checkpoints, not taken", "base model, after stage quality"]


def test_the_command_names_the_recipe_and_what_was_changed() -> None:
    rows = [
        ("name", "tiny", "recipes/my tiny.toml:3"),
        ("seed", 3, "-o"),
        ("source.own.path", "~/my documents", "-o"),
        ("stage.longer.chunk_length", {"text": 256}, "-o"),
        ("train.compile", False, "-o"),
        ("train.precision", "bf16", "-o"),
        ("eval.reply_top_p", 0.9, "default"),
    ]
    run = RunFiles(Path("runs/tiny"), recipe=SavedRecipe(rows=rows))
    assert reproduce_command(run) == (
        "fox run 'recipes/my tiny.toml' -o seed=3 -o 'source.own.path=\"~/my documents\"' "
        "-o 'stage.longer.chunk_length={ text = 256 }' -o train.compile=false -o train.precision=bf16"
    )


def test_mixture_shares_keep_within_their_stage(whole_run: Path) -> None:
    metrics = read_run(whole_run).pretrain
    assert metrics is not None
    edges, shares = mixture_shares(metrics, metrics.column("tokens"))
    assert np.allclose(sum(shares.values()), 1)
    first_stage = edges[:-1] < metrics.rows[metrics.bands[0].end - 1].tokens
    assert (shares["speeches"][first_stage] == 1).all() and (shares["speeches"][~first_stage] < 1).all()


def test_smoothing_passes_over_gaps_and_thinning_keeps_the_last_point() -> None:
    mean = smoothed(np.array([2.0, np.nan, 2.0, 2.0, 9.0, 9.0]), [Band("one", 0, 4), Band("two", 4, 6)])
    assert np.allclose(mean[[0, 2, 3]], 2) and np.isnan(mean[1])
    assert np.allclose(mean[4:], 9), "smoothed across stages"
    x, _ = thinned(np.arange(100_001.0), np.arange(100_001.0))
    assert len(x) <= 1200 and x[-1] == 100_000


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (quantities.count(7_739_392), "7.74 M"),
        (quantities.count(999_999), "1.00 M"),
        (quantities.count(1234), "1,234"),
        (quantities.count(None), "–"),
        (quantities.size(1_140_000_000), "1.14 GB"),
        (quantities.duration(59.7), "1 min"),
        (quantities.duration(372), "6 min 12 s"),
        (quantities.duration(7384), "2 h 3 min"),
        (quantities.duration(math.nan), "–"),
        (quantities.share(19, 20), "95 %"),
    ],
)
def test_numbers_are_told_with_their_unit(told: str, expected: str) -> None:
    assert told.replace("\N{NO-BREAK SPACE}", " ") == expected
