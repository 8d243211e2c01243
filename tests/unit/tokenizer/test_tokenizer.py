"""Text and bytes come back as they were, look-alikes stay text, and a tokenizer that is no good says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fox.errors import UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer.train import SPECIAL_TOKENS, train_tokenizer

LOOK_ALIKES = st.lists(
    st.one_of(st.sampled_from(SPECIAL_TOKENS), st.sampled_from(["<", ">", "|>", "<|", "<eo", "s>", " ", "\n", "\U000f0000"]), st.text(max_size=3))
).map("".join)  # fmt: skip


@given(text=st.one_of(st.text(), LOOK_ALIKES))
def test_any_text_comes_back(tiny_tokenizer: Tokenizer, text: str) -> None:
    ids = tiny_tokenizer.encode(text)
    assert tiny_tokenizer.decode(ids) == text
    assert tiny_tokenizer.decode_bytes(ids) == text.encode()
    assert tiny_tokenizer.encode(text.encode()) == ids == tiny_tokenizer.encode_batch(["x", text])[1]
    assert not set(ids) & set(tiny_tokenizer.special_ids.values()), "no text turns into a special token"


@given(
    raw=st.one_of(
        st.binary(),
        st.lists(st.sampled_from([b"\xf0\x9f\xa6\x8a", b"\xf0\x9f", b"\xff", b"a", b"<eos>"])).map(b"".join),
    )
)
def test_any_bytes_come_back(tiny_tokenizer: Tokenizer, raw: bytes) -> None:
    ids = tiny_tokenizer.encode(raw)
    assert tiny_tokenizer.decode_bytes(ids) == raw
    assert tiny_tokenizer.decode(ids) == raw.decode(errors="replace")
    assert not set(ids) & set(tiny_tokenizer.special_ids.values())


@given(ids=st.lists(st.integers(0, 399)))
def test_streamed_text_is_the_text(tiny_tokenizer: Tokenizer, ids: list[int]) -> None:
    """Never a character that is not whole yet; only the last token may be held back for one that never ends."""
    stream = tiny_tokenizer.stream()
    text = "".join(map(stream.step, ids))
    whole = tiny_tokenizer.decode(ids)
    assert whole.startswith(text)
    assert len(text) == len(whole) or whole.endswith("\ufffd")


def test_streaming_waits_for_the_whole_character(tiny_tokenizer: Tokenizer) -> None:
    ids = [token_id for byte in "a🐺é".encode() for token_id in tiny_tokenizer.encode(bytes([byte]))]
    assert len(ids) == 7
    stream = tiny_tokenizer.stream()
    assert [stream.step(token_id) for token_id in ids] == ["a", "", "", "", "🐺", "", "é"]


def test_ids_are_those_of_the_names(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The released Fox-1 config.json swaps bos and eos (FOX1.md); only names in tokenizer_config.json count."""
    assert (tiny_tokenizer.pad_id, tiny_tokenizer.eos_id, tiny_tokenizer.bos_id) == (0, 1, 2)
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = {
        **json.loads(path.read_text()),
        "bos_token": "<eos>",
        "eos_token": {"content": "<bos>"},
        "pad_token": "no such",
    }
    path.write_text(json.dumps({**config, "bos_token_id": 7, "eos_token_id": 7}))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    swapped = Tokenizer.load(tmp_path)
    assert (swapped.bos_id, swapped.eos_id, swapped.pad_id) == (1, 2, None)


def test_the_size_is_one_past_the_largest_id(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(backend_json(vocab={"a": 0, "b": 900}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.load(tmp_path).vocab_size == 901


def test_saved_and_read_again(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.config == tiny_tokenizer.config
    assert again.special_ids == tiny_tokenizer.special_ids == {name: place for place, name in enumerate(SPECIAL_TOKENS)}
    assert again.encode("The fox <eos> 🦊") == tiny_tokenizer.encode("The fox <eos> 🦊")


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(
        UserError, match=r"vocab_size = 5000: is more than .* it gives \d+ entries.*-o tokenizer.vocab_size="
    ):
        train_tokenizer(iter(["a fox"]), vocab_size=5000, max_length=64)


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_half_a_character_is_no_text(tiny_tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        tiny_tokenizer.encode(text)


def test_text_that_a_tokenizer_has_no_tokens_for(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(backend_json(type="Unigram", vocab=[], unk_id=None))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="can't encode"):
        Tokenizer.load(tmp_path).encode("a")


def backend_json(**model: Any) -> str:
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], **model}}
    )


HOSTILE = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "no model": "{}",
    "no UTF-8": b"\xff\xfe\x00",
    "lists in lists": "[" * 100_000,
    "objects in objects": '{"model":' * 100_000,
    "pre-tokenizers in pre-tokenizers": '{"version": "1.0", "pre_tokenizer":' + '{"type": "Sequence", "pretokenizers": [' * 5_000,
    "a negative id": backend_json(vocab={"a": -1}),
    "an id too large": backend_json(vocab={"a": 2**40}),
    "a merge of unknowns": backend_json(merges=["a b"]),
    "an unknown kind": backend_json(type="Magic"),
    "an unknown token that is unknown": backend_json(type="Unigram", vocab=[["a", 0.0]], unk_id=5),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tokenizer_is_refused(content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="can't be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", b"\xff"])
def test_a_hostile_tokenizer_config_is_refused(content: str | bytes, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="can't be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(name: str, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no {name}"):
        Tokenizer.load(tmp_path)


def test_golden_tokens(tiny_tokenizer: Tokenizer, golden: Any) -> None:
    texts = [
        "",
        "The fox ran.",
        " two  spaces\n\nand lines",
        "1234567",
        "naïve café 日本語 🦊",
        "<eos> is text",
        "don't I'LL",
    ]
    made = {text: " ".join(map(str, tiny_tokenizer.encode(text))) for text in texts}
    assert made == golden("tokens", made)


def test_any_bytes_come_back_from_a_vocabulary_that_falls_back_to_bytes() -> None:
    """As Gemma's and Llama-2's are: words with a mark for the space, and a token for each byte."""
    vocabulary = {"<eos>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("▁", "a")], byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.add_special_tokens(["<eos>"])
    tokenizer = Tokenizer(backend, {"eos_token": "<eos>"})
    for raw in (b" a", b"a \xff\xf0 a", "né 🦊".encode(), bytes(range(256))):
        ids = tokenizer.encode(raw)
        assert tokenizer.decode_bytes([*ids, 0]) == raw
    with pytest.raises(AssertionError):
        assert tokenizer.decode_bytes(tokenizer.encode(" a")[:-1]) == b" a"


def test_what_ends_a_reply_and_what_frames_a_text(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.stop_ids == {1}
    assert tiny_tokenizer.adds_bos
    assert not tiny_tokenizer.adds_eos
    bare = Tokenizer(tiny_tokenizer.backend, {})
    assert bare.stop_ids == set()
    assert not bare.adds_bos
    both = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    for single, frame in (("<eos> $A", (True, False)), ("$A <eos>", (False, True)), ("<eos> $A <eos>", (True, True)), ("$A", (False, False))):  # fmt: skip
        both.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=[("<eos>", 1)])
        tokenizer = Tokenizer(both, {"bos_token": "<eos>", "eos_token": "<eos>"})
        assert (tokenizer.adds_bos, tokenizer.adds_eos) == frame


def falls_back_to_bytes(scheme: str) -> tokenizers.Tokenizer:
    vocabulary = {"<s>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("▁", "a")], byte_fallback=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.add_special_tokens(["<s>"])
    return backend


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_only_the_first_word_gets_a_space_where_the_tokenizer_says_so(scheme: str) -> None:
    """The same ids as the library gives for the whole, special tokens included."""
    whole = falls_back_to_bytes(scheme)
    tokenizer = Tokenizer(falls_back_to_bytes(scheme), {"bos_token": "<s>"})
    assert tokenizer.encode("aa a") == whole.encode("aa a").ids
    assert [0, *tokenizer.encode("aa a", at_start=False)] == whole.encode("<s>aa a").ids
    assert tokenizer.encode("<s>a", at_start=False)[-1] == 258, "what looks special stays text"
    # bytes that are no UTF-8 cut a text in pieces, and only the first of them begins it
    assert tokenizer.decode_bytes(tokenizer.encode(b"a\xffa")) == {"first": b" a\xffa", "always": b" a\xff a", "never": b"a\xffa"}[scheme]  # fmt: skip


def test_a_byte_level_vocabulary_that_lacks_some_bytes() -> None:
    """As SmolLM2's does, which has no token for 21 bytes that never occurred."""
    vocabulary = {letter: n for n, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:250])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = Tokenizer(backend, {})
    assert tokenizer.decode_bytes(tokenizer.encode("a é")) == "a é".encode()
    with pytest.raises(UserError, match="no token for the byte 0xAD"):  # its letter is the last of all
        tokenizer.encode(b"\xad")


def test_added_tokens_stand_for_their_own_text() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, []))  # fmt: skip
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_tokens(["  ", "é日"])
    tokenizer = Tokenizer(backend, {})
    for text in ("a  b", "xé日é"):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_special_tokens_that_only_the_older_file_names(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"eos_token": "<eos>"}')
    older = {"bos_token": {"content": "<bos>"}, "eos_token": "<pad>", "additional_special_tokens": ["<unk>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id) == (2, 1)
    assert "additional_special_tokens" not in loaded.config
    path.unlink()
    assert Tokenizer.load(tmp_path).eos_id == 0
    (tmp_path / "special_tokens_map.json").write_text("[]")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is no JSON object"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("names", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_files_from_before_tokenizer_json_are_named(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"only {' and '.join(names)}.*save_pretrained"):
        Tokenizer.load(tmp_path)


def test_named_templates_are_kept(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    assert Tokenizer.load(tmp_path).config["chat_template"] == named


# What tokenizer_config.json says of tokens, beside tokenizer.json


def saying(tokenizer: Tokenizer, folder: Path, added: list[dict[str, Any]] | None = None, **config: Any) -> Path:
    """A saved tokenizer with other added tokens, of which its tokenizer_config.json says other things."""
    tokenizer.save(folder)
    for name, changes in (("tokenizer.json", {} if added is None else {"added_tokens": added}), ("tokenizer_config.json", config)):  # fmt: skip
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def plain(content: str, **flags: Any) -> dict[str, Any]:
    unset = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **unset, "special": True, **flags}


CONFIGS: dict[str, dict[str, Any]] = {
    "by name": {"additional_special_tokens": ["<|user|>", {"__type": "AddedToken", **plain("<|assistant|>")}]},
    "by name, as transformers 5 calls it": {"extra_special_tokens": ["<|system|>"]},
    "by id": {"added_tokens_decoder": {"7": plain("<|user|>"), "8": plain("<|assistant|>", rstrip=True)}},
    "by id, and not as special": {"added_tokens_decoder": {"7": plain("<|user|>", special=False), "1": plain("<eos>", special=False)}},
    "the next id": {"added_tokens_decoder": {"401": plain("<b>", special=False), "400": plain("<a>")}},
    "an object with flags": {"eos_token": {"__type": "AddedToken", **plain("<eos>", lstrip=True)}},
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_that_only_the_config_names(config: dict[str, Any], tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = saying(tiny_tokenizer, tmp_path / "a", added=[], **config)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    added = theirs._tokenizer.get_added_tokens_decoder()
    assert {n: repr(token) for n, token in ours.backend.get_added_tokens_decoder().items()} == {
        n: repr(token) for n, token in added.items()
    }
    assert ours.special_ids == {token.content: n for n, token in added.items() if token.special}
    assert {"<bos>", "<eos>", "<pad>", "<unk>"} <= ours.special_ids.keys()
    assert len(ours.encode("<bos>")) > 1, "text stays text"
    assert ours.warnings == []
    ours.save(tmp_path / "b")
    again = Tokenizer.load(tmp_path / "b")
    assert again.special_ids == ours.special_ids
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "b")._tokenizer.to_str() == again.backend.to_str()


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another flag": ({"added_tokens_decoder": {"1": plain("<eos>", rstrip=True)}}, r"added_tokens_decoder\.1\.rstrip = true: contradicts"),
    "not special": ({"added_tokens_decoder": {"1": plain("<eos>", special=False)}}, r"added_tokens_decoder\.1\.special = false: contradicts"),
    "another id": ({"added_tokens_decoder": {"2": plain("<eos>")}}, r"2 = '<eos>': contradicts tokenizer.json, which has '<bos>' there"),
    "an id that is none": ({"added_tokens_decoder": {"900": plain("<eos>")}}, r"900 = '<eos>': contradicts tokenizer.json, which has it as 1"),
    "a taken id": ({"added_tokens_decoder": {"2": plain("<new>")}}, r"2 = '<new>': contradicts"),
    "a gap": ({"added_tokens_decoder": {"401": plain("<new>")}}, r"401 = '<new>': is no token, and the next one's id is 400"),
    "twice": ({"added_tokens_decoder": {"400": plain("<new>"), "401": plain("<new>")}}, r"401 = '<new>': is no token"),
    "a negative id": ({"added_tokens_decoder": {"-1": plain("<eos>")}}, "is no id with a token"),
    "a huge id": ({"added_tokens_decoder": {"9" * 5000: plain("<eos>")}}, "is no id with a token"),
    "a digit that is none": ({"added_tokens_decoder": {"²": plain("<eos>")}}, "is no id with a token"),
    "no token": ({"added_tokens_decoder": {"1": "<eos>"}}, "is no id with a token"),
    "no content": ({"added_tokens_decoder": {"1": {}}}, "is no token of 1 to 256 characters"),
    "content that is none": ({"added_tokens_decoder": {"1": {"content": 5}}}, "is no token of 1 to 256 characters"),
    "endless content": ({"added_tokens_decoder": {"1": {"content": "a" * 10**6}}}, "is no token of 1 to 256 characters"),
    "a flag that is none": ({"added_tokens_decoder": {"1": plain("<eos>", lstrip="no")}}, r"lstrip = 'no': is neither"),
    "a list": ({"added_tokens_decoder": [plain("<eos>")]}, "added_tokens_decoder: is no object"),
    "too many": ({"added_tokens_decoder": {str(n): {} for n in range(20_000)}}, "added_tokens_decoder: is no object of at most"),
    "a name that is none": ({"additional_special_tokens": [7]}, "additional_special_tokens = 7: is no token"),
    "names that are none": ({"extra_special_tokens": "<eos>"}, "extra_special_tokens: is no list"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_config_that_contradicts_its_tokenizer_is_refused(
    case: tuple[dict[str, Any], str], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config, told = case
    with pytest.raises(UserError, match=told):
        Tokenizer.load(saying(tiny_tokenizer, tmp_path, **config))


def test_a_name_that_is_no_token_is_told(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = saying(tiny_tokenizer, tmp_path, pad_token="[PAD]", additional_special_tokens=["<new>", "<eos>"])
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.pad_id is None
    assert tokenizer.vocab_size == 400
    assert tokenizer.warnings == ["'[PAD]' and 1 more, named in tokenizer_config.json, is no token of the tokenizer: it stays text"]  # fmt: skip
    tokenizer.save(folder)
    assert "<new>" not in PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize(
    ("flags", "normalizer", "told"),
    [
        ({"single_word": True}, None, r"added_tokens\.single_word = '<eos>': is something that Fox can't do"),
        ({"rstrip": True, "normalized": True}, {"type": "NFC"}, r"rstrip = '<eos>': .* after text is normalised"),
        ({"lstrip": True, "beside": " "}, None, r"lstrip = '<eos>': .* beside the token ' '"),
    ],
)
def test_special_tokens_with_flags_that_cannot_be_followed_are_refused(
    flags: dict[str, Any], normalizer: Any, told: str, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    beside = flags.pop("beside", None) if "beside" in (flags := dict(flags)) else None
    stated = json.loads(tiny_tokenizer.backend.to_str())
    next(token for token in stated["added_tokens"] if token["content"] == "<eos>").update(flags)
    if beside:
        stated["added_tokens"].append({"id": 400, **plain(beside, special=False)})
    tiny_tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**stated, "normalizer": normalizer}))
    with pytest.raises(UserError, match=told):
        Tokenizer.load(tmp_path)


def test_a_special_token_that_transformers_misses_is_told(tmp_path: Path) -> None:
    backend = falls_back_to_bytes("never")
    stated = json.loads(backend.to_str())
    stated["pre_tokenizer"], stated["normalizer"] = None, {"type": "Prepend", "prepend": "▁"}
    stated["added_tokens"][0]["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(stated))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (told,) = Tokenizer.load(tmp_path).warnings
    assert "'<s>' as '▁<s>'" in told


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREFIX = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("legacy", [None, False, True])
@pytest.mark.parametrize(
    ("normalizer", "cutter"),
    [(PREFIX, None), (SPACES, None), (None, metaspace("first")), (None, metaspace("always")), (None, metaspace("never"))],
)  # fmt: skip
def test_where_transformers_rebuilds_a_tokenizer_it_is_told_and_an_export_is_read_as_it_is(
    kind: str, legacy: bool | None, normalizer: Any, cutter: Any, tmp_path: Path
) -> None:
    stated = json.loads(falls_back_to_bytes("never").to_str())
    stated["model"]["vocab"] |= {name: 260 + n for n, name in enumerate(["</s>", "<unk>", "<bos>", "<eos>", "<pad>", "<mask>"])}  # fmt: skip
    stated |= {"normalizer": normalizer, "pre_tokenizer": cutter}
    config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"pad_token": "<pad>", "mask_token": "<mask>"}
    source, written = tmp_path / "source", tmp_path / "written"
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(stated))
    (source / "tokenizer_config.json").write_text(
        json.dumps(config if legacy is None else {**config, "legacy": legacy})
    )
    ours = Tokenizer.load(source)
    texts = ["aa a", " a", "a  a ", "\na"]

    def is_same(folder: Path) -> bool:
        theirs = AutoTokenizer.from_pretrained(folder)
        ids = [theirs(start + text, add_special_tokens=False)["input_ids"] for text in texts for start in ("", "<s>")]
        return ids == [ours_ids for text in texts for ours_ids in (ours.encode(text), [0, *ours.encode(text, False)])]

    assert is_same(source) is (ours.warnings == [])
    ours.save(written)
    assert is_same(written)
    assert Tokenizer.load(written).warnings == []


def test_nothing_is_saved_that_would_have_it_read_otherwise(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    odd = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "add_prefix_space": True, "add_bos_token": False}
    odd |= {"split_special_tokens": True, "legacy": True, "sp_model_kwargs": {}, "add_eos_token": True}
    Tokenizer(tiny_tokenizer.backend, {**tiny_tokenizer.config, **odd}).save(tmp_path)
    assert Tokenizer.load(tmp_path).config == tiny_tokenizer.config
