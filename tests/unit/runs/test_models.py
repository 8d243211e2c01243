"""Whatever names a model finds it, or says what to name instead: folders, files, runs and their folders, and the hub's cache."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from rich.console import Console
from tokenizers import models

from fox.engine.sampler import Sampling
from fox.errors import Failure, UserError
from fox.export.gguf import export_gguf
from fox.model import Transformer
from fox.model.directory import save_model
from fox.model.stored import open_model
from fox.runs.chat import chat_with
from fox.runs.compare import compare_models
from fox.runs.export import _kind_of, export_model
from fox.runs.models import _HUB_FILES, _HUB_OTHERS, NamedModel, find_model, open_named
from fox.tokenizer import Tokenizer
from tests.unit.tokenizer.test_tokenizer_gguf import GEMMA_CUT, GEMMA_SPECIAL, REPLACE, sentencepiece

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, `mine`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "mine", tiny_model, tiny_tokenizer)
    return tmp_path / "mine"


@pytest.fixture
def run(folder: Path) -> Path:
    """As much of a run as says what it has made: nothing yet."""
    (folder.parent / "runs/tiny/manifests").mkdir(parents=True)
    (folder.parent / "runs/tiny/recipe.json").write_text("{}")
    return Path("runs/tiny")


def made(run: Path, step: str) -> None:
    """What a step leaves once it is done."""
    shutil.copytree("mine", run / {"pretrain": "model", "tune": "tuned"}[step])
    (run / f"manifests/{step}.json").write_text("{}")


def named(name: str) -> NamedModel:
    found = find_model(name)
    assert open_named(found).config.hidden_size == 32
    return found


# Folders and files


@pytest.mark.parametrize("how", ["mine", "./mine", "mine/", "{}/mine", "~/mine"])
def test_a_folder(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    found = named(how.format(folder.parent))
    assert (found.run, found.part, found.hub_name, found.title) == (None, "", "", "mine")


def test_a_gguf_file(folder: Path) -> None:
    export_gguf(open_model(folder), Path("a-q8_0.gguf"), "q8_0", {}, lambda _: None)
    assert named("a-q8_0.gguf") == NamedModel(Path("a-q8_0.gguf"))
    assert named("a-q8_0.gguf").title == "a-q8_0"


def test_the_working_directory_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert named(".").title == "mine"


def test_a_folder_of_somebody_elses_name_is_preferred_to_the_hub(folder: Path) -> None:
    Path("owner").mkdir()
    shutil.copytree("mine", "owner/model")
    assert named("owner/model").hub_name == ""
    with pytest.raises(UserError, match="MODEL = 'owner/other': there is no such file or folder"):
        find_model("owner/other")


# Runs


def test_a_run_is_its_tuned_model_or_its_base_model_or_an_error(run: Path) -> None:
    with pytest.raises(UserError, match=r"MODEL = 'runs/tiny': is a run that has no model yet\. Train it first"):
        find_model("runs/tiny")
    made(run, "pretrain")
    assert named("runs/tiny") == NamedModel(run / "model", run, "model")
    assert named("runs/tiny").title == "tiny-model"
    made(run, "tune")
    assert named("runs/tiny") == NamedModel(run / "tuned", run, "tuned")


def test_half_a_step_is_no_model(run: Path) -> None:
    made(run, "pretrain")
    shutil.copytree("mine", run / "tuned")  # as a tuning leaves it that was stopped before its manifest
    assert find_model("runs/tiny").part == "model"
    (run / "manifests/pretrain.json").unlink()
    with pytest.raises(UserError, match="no model yet"):
        find_model("runs/tiny")


@pytest.mark.parametrize("how", ["runs/tiny/model", "runs/tiny/model/", "{}/runs/tiny/model"])
def test_a_runs_own_folder_knows_its_run(how: str, run: Path, tmp_path: Path) -> None:
    made(run, "pretrain")
    made(run, "tune")
    found = named(how.format(tmp_path))
    assert found.run is not None and found.run.absolute() == run.absolute()
    assert (found.part, found.title) == ("model", "tiny-model")


def test_a_folder_in_a_run_that_it_did_not_make_is_nobodys(run: Path) -> None:
    shutil.copytree("mine", run / "model")
    assert find_model("runs/tiny/model").run is None
    made(run, "tune")
    shutil.copytree("mine", run / "other")
    assert find_model("runs/tiny/other").run is None
    assert find_model("runs/tiny/tuned").run == run


def test_a_runs_folder_from_within_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(run, "pretrain")
    monkeypatch.chdir(run)
    found = named("model")
    assert found.run is not None and found.run.absolute().name == "tiny" and found.title == "tiny-model"


# Nonsense


@pytest.mark.parametrize(
    "name",
    ["./missing", "missing", "missing.gguf", "a/b/c", "../missing/x", "mine/missing", "a b/c", "owner/", "/owner/name", "-x/y\n",
     "https://huggingface.co/owner/name", "owner/name@main", "🦊/fox", "x" * 5000, "mine/config.json/x", "~no-such-user-here/x",
     "a\0b", "owner/\0", "C:\\models\\fox"],
)  # fmt: skip
def test_nonsense_is_a_users_mistake(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match="MODEL = ") as told:
        find_model(name)
    assert told.value.exit_code == 2
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x02"), "is a pickle, which can run anything"),
        (lambda folder: None, "there is no such file"),
    ],
    ids=["pickles", "nothing"],
)
def test_a_folder_without_safetensors(make: Callable[[Path], None], told: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    make(folder)
    with pytest.raises(UserError, match=told):
        named("mine")


@pytest.mark.parametrize("name", ["mine/pytorch_model.bin", "mine/model.safetensors", "mine/config.json", "empty"])
def test_a_file_that_is_no_model(name: str, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    Path("empty").write_bytes(b"")
    with pytest.raises(UserError, match="is no GGUF file"):
        named(name)


def test_an_empty_name_and_a_folder_without_a_model(folder: Path) -> None:
    Path("bare").mkdir()
    for name, told in (("", "is empty"), ("bare", "is no model directory")):
        with pytest.raises(UserError, match=told):
            named(name)


# The hub's cache


@pytest.fixture
def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/model as huggingface_hub keeps what it has fetched, and no network."""
    hub = folder.parent / "hub"
    snapshot = hub / f"models--owner--model/snapshots/{COMMIT}"
    shutil.copytree(folder, snapshot)
    export_gguf(open_model(folder), snapshot / "model-f16.gguf", "f16", {}, lambda _: None)
    (hub / "models--owner--model/refs").mkdir()
    (hub / "models--owner--model/refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def test_a_name_on_the_hub_that_was_fetched_before(cached: Path) -> None:
    found = named("owner/model")
    assert (found.path, found.run, found.title) == (cached, None, "owner/model")
    assert named("owner/model/model-f16.gguf").path == cached / "model-f16.gguf"


@pytest.mark.parametrize("name", ["owner/other", "owner/model/other.gguf", "someone/model"])
def test_a_name_on_the_hub_that_is_not_here_and_no_network(name: str, cached: Path) -> None:
    with pytest.raises(
        Failure, match=rf"{name}: is not on this machine.*Fetch it where there is a network, or name a folder"
    ) as told:
        find_model(name)
    assert told.value.exit_code == 1


@pytest.mark.parametrize("name", ["owner/a..b", "owner/a--b", "owner/" + "x" * 200])
def test_a_name_that_the_hub_does_not_allow(name: str, cached: Path) -> None:
    with pytest.raises(UserError, match=r"MODEL = .* is neither a file here nor a name on the hub"):
        find_model(name)


def test_what_is_fetched_is_what_is_read() -> None:
    from huggingface_hub.utils import filter_repo_objects

    read = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    ]
    others = [
        "pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "original/params.json",
        "checkpoint-5/model.safetensors", "onnx/README.md", "onnx/model.onnx",
    ]  # fmt: skip
    kept = filter_repo_objects([*read, *others], allow_patterns=_HUB_FILES, ignore_patterns=_HUB_OTHERS)
    assert list(kept) == read


# Fox-1 as it was released: its config.json has bos and eos the other way round


@pytest.fixture
def fox_1(make_config: Callable[..., object], make_model: Callable[..., Transformer], tmp_path: Path) -> Path:
    """A tiny model in the layout of tensoropera/Fox-1-1.6B: bfloat16, tied, a byte-fallback vocabulary in Gemma's order."""
    tokenizer = sentencepiece(GEMMA_SPECIAL, REPLACE, GEMMA_CUT)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    folder = tmp_path / "Fox-1"
    save_model(folder, make_model(vocab_size=tokenizer.vocab_size), tokenizer, torch.bfloat16)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "bos_token_id": 1, "eos_token_id": 2}))
    return folder


SWAPPED = "bos is 1 in its config and 2 in its tokenizer; eos is 2 in its config and 1 in its tokenizer: the tokenizer's are used."


def test_fox_1_is_read_by_its_tokenizer_and_says_so(fox_1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = open_named(find_model(str(fox_1)))
    assert (stored.tokenizer.bos_id, stored.tokenizer.eos_id, stored.tokenizer.stop_ids) == (2, 1, {1})
    assert stored.config.tie_word_embeddings and stored.weights.stored_types["model.norm.weight"] == "BF16"
    said = capsys.readouterr()
    assert said.err == f"warning: {fox_1}: {SWAPPED}\n" and said.out == ""


def test_a_chat_with_fox_1_warns_beside_its_replies(fox_1: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat_with(str(fox_1), "The fox", None, Sampling(temperature=0), 3)
    said = capsys.readouterr()
    assert SWAPPED in said.err and "warning" not in said.out


def test_an_export_of_fox_1_warns_and_is_mended(
    fox_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = Console(file=io.StringIO())
    export_model(str(fox_1), "hf", None, tmp_path / "mended", "5GB", quiet)
    assert SWAPPED in capsys.readouterr().err
    for name in ("config.json", "generation_config.json"):
        config = json.loads((tmp_path / "mended" / name).read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (2, 1)
    again = open_named(find_model(str(tmp_path / "mended")))
    export_model(str(fox_1), "gguf", "q8_0", tmp_path / "a.gguf", None, quiet)
    capsys.readouterr()
    written = open_named(find_model(str(tmp_path / "a.gguf")))
    assert capsys.readouterr().err == ""
    assert again.tokenizer.stop_ids == {1}
    assert written.tokenizer.stop_ids == {1, written.tokenizer.special_ids["<end_of_turn>"]}, (
        "where llama.cpp stops, too"
    )


def test_what_the_source_states_arrives(folder: Path, tmp_path: Path) -> None:
    """Its licence on the card and in the GGUF file, its advice on sampling in generation_config.json."""
    quiet = Console(file=io.StringIO())
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\nlicense: none\n")
    written = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**written, "temperature": 0.6, "top_k": 20}))
    export_model(str(folder), "hf", None, tmp_path / "out", None, quiet)
    assert "license: mit\n" in (tmp_path / "out/README.md").read_text().split("---")[1]
    made = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (made["temperature"], made["top_k"], made["eos_token_id"]) == (0.6, 20, written["eos_token_id"])
    export_model(str(folder), "gguf", None, tmp_path / "a.gguf", None, quiet)
    assert open_model(tmp_path / "a.gguf").license == "mit"


def test_a_type_is_found_in_capitals_too(folder: Path, tmp_path: Path) -> None:
    export_model(str(folder), "gguf", "Q8_0", tmp_path / "a.gguf", None, Console(file=io.StringIO()))
    assert open_model(tmp_path / "a.gguf").weights.stored_types["model.layers.0.mlp.up_proj.weight"] == "Q8_0"
    with pytest.raises(UserError, match="--type = 'q9_9': is no type of gguf"):
        export_model(str(folder), "gguf", "Q9_9", tmp_path / "b.gguf", None, Console(file=io.StringIO()))


def test_what_is_wrong_with_a_template_is_told_and_on_the_card(folder: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('[red]no') }}")
    export_model(str(folder), "gguf", None, tmp_path / "a.gguf", None, Console(file=told))
    assert "warning: " in told.getvalue() and "[red]no. It was written as it is" in told.getvalue()
    assert "yes, but it is broken" in (tmp_path / "a.md").read_text()


def test_a_text_without_end_is_no_text(folder: Path) -> None:
    quiet = Console(file=io.StringIO())
    with pytest.raises(UserError, match="no regular file"):
        compare_models(str(folder), str(folder), Path("/dev/zero"), 16, 100, False, quiet)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("license: other\nlicense_name: qwen-research\nlicense_link: LICENSE", ["license: other", "license_name: qwen-research"]),
        ('license: "llama3.2"', ["license: llama3.2"]),
        ("license:\n- mit\nlicense_name: &a [*a, *a]", []),
        ("license: <b>", []),
        pytest.param("license: x" + " " * 2_000_000 + "<", [], marks=pytest.mark.timeout(20)),
        pytest.param("license:" + " " * 2_000_000 + "<", [], marks=pytest.mark.timeout(20)),
    ],
)  # fmt: skip
def test_a_licence_of_every_kind(head: str, told: list[str], folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    export_model(str(folder), "hf", None, tmp_path / "out", None, Console(file=io.StringIO()))
    made = (tmp_path / "out/README.md").read_text().split("---")[1]
    assert [line for line in made.splitlines() if line.startswith("license")] == told


@pytest.mark.parametrize(
    ("model", "is_byte_level", "kind"),
    [
        (models.Unigram([("a", 0.0)], unk_id=0, byte_fallback=True), False, "Unigram"),
        (models.BPE(byte_fallback=True), False, "BPE with byte fallback"),
        (models.BPE(), True, "byte-level BPE"),
    ],
)
def test_the_kind_of_a_tokenizer_is_its_models(model: models.Model, is_byte_level: bool, kind: str) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(model), {})
    tokenizer.is_byte_level = is_byte_level
    assert _kind_of(tokenizer) == kind


def test_advice_that_is_none_is_not_handed_on(folder: Path, tmp_path: Path) -> None:
    path = folder / "generation_config.json"
    written = json.loads(path.read_text())
    plain = {"temperature": 0.6, "top_p": None, "stop_strings": ["a", "b"]}
    odd = {"_from_model_config": True, "top_k": float("nan"), "a": "\ud800", "b": {"c": 1}, "d": [[1]]}
    path.write_text(json.dumps({**written, **plain, **odd}))
    export_model(str(folder), "hf", None, tmp_path / "out", None, Console(file=io.StringIO()))
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {**written, **plain}


def test_a_page_in_the_place_of_a_licence_is_cut(folder: Path, tmp_path: Path) -> None:
    export_gguf(open_model(folder), tmp_path / "a.gguf", "f32", {"license": "All\nrights " * 10_000}, lambda _: None)
    export_model(str(tmp_path / "a.gguf"), "gguf", None, tmp_path / "b.gguf", None, Console(file=io.StringIO()))
    stated = open_model(tmp_path / "b.gguf").license
    assert stated.startswith("All rights All rights") and len(stated) <= 200
    assert len((tmp_path / "b.md").read_text()) < 10_000
