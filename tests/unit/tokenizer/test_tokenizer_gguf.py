"""A tokenizer goes into a GGUF file and comes back with the same ids; what llama.cpp can't do, and damaged files, are refused."""

from __future__ import annotations

import copy
import heapq
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fox.errors import UserError
from fox.formats.gguf.reader import GgufFile, Metadata
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chat
from fox.tokenizer.from_gguf import tokenizer_from_gguf
from fox.tokenizer.hard_texts import HARD_TEXTS, hard_texts_for
from fox.tokenizer.llama_cpp import WORD_RULES, Kind
from fox.tokenizer.to_gguf import tokenizer_to_gguf

TEXTS = [
    f"The fox no. {n} ran over  the lazy dog, and  said: «naïve café», 日本語 🦊 {n * 37}. Don't the IT'S\n\n\tdef f(x): return x\n"
    for n in range(200)
] + [text.decode() for text in HARD_TEXTS if text.isascii()] * 3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(
    cuts: Sequence[pre_tokenizers.PreTokenizer],
    use_regex: bool,
    bos: str | None = None,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        backend.normalizer = normalizer
    end = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, end]) if cuts else end
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=CHATML, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens(
        [AddedToken("<tool_call>", special=False, normalized=False), AddedToken("    ", normalized=False)]
    )
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    if bos:
        config["bos_token"] = bos
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, CHATML.index(bos))]
        )
    return Tokenizer(backend, config)


def sentencepiece(
    special: list[str],
    normalizer: normalizers.Normalizer | None,
    cut: pre_tokenizers.PreTokenizer | None = None,
    eos: bool = False,
) -> Tokenizer:
    """A vocabulary as SentencePiece learns one: special tokens, bytes, then the learnt; with all merges that make its tokens."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.train_from_iterator(
        [text.replace("\0", "") for text in TEXTS], trainers.BpeTrainer(vocab_size=400, show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    letters = sorted({letter for token in learnt["vocab"] for letter in token} | {"▁"})
    names = [*special, *BYTES, *("".join(pair) for pair in learnt["merges"]), *letters]
    vocab = {name: n for n, name in enumerate(dict.fromkeys(names))}
    merges = [
        (name[:at], name[at:])
        for name in vocab
        if len(name) > 1 and name not in special and name not in BYTES
        for at in range(1, len(name))
        if name[:at] in vocab and name[at:] in vocab
    ]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        backend.normalizer = normalizer
    if cut:
        backend.pre_tokenizer = cut
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    has_prefix = normalizer is LLAMA2_NORMALIZER
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    backend.add_tokens([AddedToken("<b>", special=False, normalized=False)])
    bos_name, eos_name = ("<bos>", "<eos>") if "<bos>" in special else ("<s>", "</s>")
    around = [bos_name, "$A", *([eos_name] if eos else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(name, vocab[name]) for name in (bos_name, eos_name)]
    )
    template = TEMPLATE.replace("<|im_start|>", bos_name).replace("<|im_end|>", eos_name)
    config = {"bos_token": bos_name, "eos_token": eos_name, "unk_token": "<unk>", "chat_template": template}
    return Tokenizer(backend, config | ({"pad_token": "<pad>"} if "<pad>" in special else {}))


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(regex), behavior=behavior, invert=invert)


REPLACE = normalizers.Replace(" ", "▁")
LLAMA2_NORMALIZER = normalizers.Sequence([normalizers.Prepend("▁"), REPLACE])
GEMMA_CUT = pre_tokenizers.Split(" ", behavior="merged_with_previous")
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]

MAKERS: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "gpt-2": ("gpt-2", lambda: byte_level([], use_regex=True, bos="<|endoftext|>")),
    "gpt-2, its regex written out": ("gpt-2", lambda: byte_level([split(WORD_RULES[-1].cuts[0])], use_regex=False)),
    "smollm": ("smollm", lambda: byte_level([pre_tokenizers.Digits(individual_digits=True)], use_regex=True, bos="<|im_start|>")),
    "qwen2": ("qwen2", lambda: byte_level([split(QWEN2)], use_regex=False, normalizer=normalizers.NFC())),
    "qwen2 without NFC": ("stablelm2", lambda: byte_level([split(QWEN2)], use_regex=False)),
    "llama-3": ("llama-bpe", lambda: byte_level([split(LLAMA3)], False, "<|endoftext|>", ignore_merges=True)),
    "llama-3, removing what is not": ("llama-bpe", lambda: byte_level([split(LLAMA3, "removed", True)], False, ignore_merges=True)),
    "llama-3 that minds its merges": ("smaug-bpe", lambda: byte_level([split(LLAMA3)], False)),
    "gpt-2 that ignores merges in vain": ("gpt-2", lambda: byte_level([], use_regex=True, ignore_merges=True)),
    "llama-2": ("default", lambda: sentencepiece(["<unk>", "<s>", "</s>"], LLAMA2_NORMALIZER)),
    "llama-2 with eos": ("default", lambda: sentencepiece(["<unk>", "<s>", "</s>"], LLAMA2_NORMALIZER, eos=True)),
    "gemma": ("default", lambda: sentencepiece(GEMMA_SPECIAL, REPLACE, GEMMA_CUT)),
    "metaspace never": ("default", lambda: sentencepiece(["<unk>", "<s>", "</s>"], None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False))),
}  # fmt: skip
_made: dict[str, Tokenizer] = {}
_metadata: dict[str, dict[str, Any]] = {}


def made(name: str) -> Tokenizer:
    """A tokenizer of MAKERS. Do not change it."""
    if name not in _made:
        _made[name] = MAKERS[name][1]()
    return _made[name]


def through_a_file(tokenizer: Tokenizer, path: Path, **changed: Any) -> Tokenizer:
    import torch

    from fox.formats.gguf.block_types import type_of_number
    from fox.formats.gguf.writer import TensorToWrite, write_gguf

    kind = type_of_number(0)
    assert kind is not None
    rows = [torch.zeros(1, 32).view(torch.uint8)]
    metadata = tokenizer_to_gguf(tokenizer, tokenizer.vocab_size + 7)
    values = {"general.architecture": "llama", **metadata, **changed}
    write_gguf(path, values, [TensorToWrite("token_embd.weight", (1, 32), kind, rows)])
    return tokenizer_from_gguf(GgufFile(path).metadata)


def assert_same(ours: Tokenizer, theirs: Tokenizer) -> None:
    for text in hard_texts_for(theirs):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode_bytes(ids) == theirs.decode_bytes(ids), text
        assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.special_ids == theirs.special_ids
    for name in ("bos_id", "eos_id", "pad_id", "adds_bos", "adds_eos"):
        assert getattr(ours, name) == getattr(theirs, name), name
    if "chat_template" in theirs.config:
        chat = [{"role": "user", "content": "Hi <s> fox"}, {"role": "assistant", "content": " 12345 don't "}]
        mine, other = encode_chat(ours, chat), encode_chat(theirs, chat)
        assert mine.ids.tolist() == other.ids.tolist()
        assert mine.is_learnt.tolist() == other.is_learnt.tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    tokenizer = made(name)
    assert tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.pre"] == MAKERS[name][0]
    assert_same(through_a_file(tokenizer, tmp_path / "a.gguf"), tokenizer)


def test_there_and_back_with_our_own(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = through_a_file(tiny_tokenizer, tmp_path / "a.gguf")
    assert_same(again, tiny_tokenizer)
    assert again.stop_ids == {1, 5}, "<eos>, and <end_of_turn>, where llama.cpp stops too"
    assert [again.backend.id_to_token(n) for n in range(400, 407)] == [f"[PAD{n}]" for n in range(400, 407)]
    # and once more from what came back: all is as it was
    assert tokenizer_to_gguf(again, 407).keys() == tokenizer_to_gguf(tiny_tokenizer, 407).keys()


@pytest.mark.parametrize("name", ["llama-3", "qwen2", "llama-2", "gemma"])
def test_transformers_makes_the_same_of_it(name: str, tmp_path: Path) -> None:
    """Of the saved tokenizer that came from a GGUF file, with what it puts around a text."""
    again = through_a_file(made(name), tmp_path / "a.gguf")
    again.save(tmp_path / "saved")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved", split_special_tokens=True)
    for text in HARD_TEXTS:
        try:
            written = text.decode()
        except UnicodeDecodeError:
            continue
        first = [again.bos_id] if again.adds_bos else []
        assert theirs(written)["input_ids"] == first + again.encode(written), written


def test_the_comparison_notices_damage(tmp_path: Path) -> None:
    tokenizer = made("qwen2")
    merges = list(tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.merges"])  # type: ignore[arg-type]
    swapped = merges[::-1]
    with pytest.raises(AssertionError):
        assert_same(through_a_file(tokenizer, tmp_path / "a.gguf", **{"tokenizer.ggml.merges": swapped}), tokenizer)
    for other in ("llama-bpe", "stablelm2", "gpt-2"):
        with pytest.raises(AssertionError):
            assert_same(through_a_file(tokenizer, tmp_path / "b.gguf", **{"tokenizer.ggml.pre": other}), tokenizer)
    gemma = made("gemma")
    with pytest.raises(AssertionError):
        assert_same(through_a_file(gemma, tmp_path / "c.gguf", **{"tokenizer.ggml.add_space_prefix": True}), gemma)
    scores = [-score for score in tokenizer_to_gguf(gemma, gemma.vocab_size + 7)["tokenizer.ggml.scores"]]  # type: ignore[operator,union-attr]
    with pytest.raises(AssertionError):
        assert_same(through_a_file(gemma, tmp_path / "d.gguf", **{"tokenizer.ggml.scores": scores}), gemma)


# llama.cpp's way to merge, in plain words


def merged_by_scores(metadata: dict[str, Any], text: str) -> list[int]:
    """llm_tokenizer_spm_session of llama.cpp's src/llama-vocab.cpp: any two neighbours that make a token, the best score first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    id_of = {token: n for n, token in enumerate(tokens)}
    if metadata["tokenizer.ggml.add_space_prefix"]:
        text = " " + text
    pieces: list[str] = list(text.replace(" ", "▁"))
    following = [*range(1, len(pieces)), -1]
    before = [-1, *range(len(pieces) - 1)]
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if -1 not in (left, right) and (n := id_of.get(pieces[left] + pieces[right])) is not None:
            heapq.heappush(queue, (-scores[n], left, right, pieces[left] + pieces[right]))

    for right in range(1, len(pieces)):
        offer(right - 1, right)
    while queue:
        _, left, right, whole = heapq.heappop(queue)
        if not pieces[left] or not pieces[right] or pieces[left] + pieces[right] != whole:
            continue
        pieces[left], pieces[right] = whole, ""
        following[left] = following[right]
        if following[right] != -1:
            before[following[right]] = left
        offer(before[left], left)
        offer(left, following[left])
    ids: list[int] = []
    for piece in pieces:
        ids += [id_of[piece]] if piece in id_of else [id_of[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return ids


@pytest.mark.parametrize("name", ["llama-2", "gemma", "metaspace never"])
@settings(max_examples=40)
@given(text=st.one_of(st.text(), st.text(alphabet="the foxran ▁\n日🦊", min_size=1), st.sampled_from(TEXTS)))
def test_llama_cpp_merges_the_same(name: str, text: str) -> None:
    tokenizer = made(name)
    if text and "<b>" not in text:
        assert merged_by_scores(as_metadata(name), text) == tokenizer.encode(text)


def test_learnt_merges_are_llama_cpps_too() -> None:
    """A list with one merge a token, as a BPE trainer writes it, has all that ever happens."""
    stated = json.loads(made("gemma").backend.to_str())
    seen: set[str] = set()
    stated["model"]["merges"] = [
        pair for pair in one_a_token(stated["model"]["merges"], stated["model"]["vocab"], seen)
    ]
    lean = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), made("gemma").config)
    metadata = tokenizer_to_gguf(lean, lean.vocab_size)
    for text in TEXTS[:5]:
        assert merged_by_scores(metadata, text) == lean.encode(text) == made("gemma").encode(text)


def one_a_token(merges: list[list[str]], vocab: dict[str, int], seen: set[str]) -> list[list[str]]:
    """Of several merges that make one token, that which happens when the token alone is tokenized."""
    rank_of = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    kept = []
    for token in vocab:
        pieces, last = list(token), None
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(range(len(pairs)), key=lambda at: (rank_of.get(pairs[at], len(rank_of)), at))
            if pairs[best] not in rank_of:
                break
            last = pairs[best]
            pieces[best : best + 2] = ["".join(last)]
        if last and len(pieces) == 1:
            kept.append(last)
    return [list(pair) for pair in sorted(kept, key=lambda pair: rank_of[pair])]


def changed(name: str, change: Callable[[dict[str, Any]], Any], **config: Any) -> Tokenizer:
    stated = json.loads(made(name).backend.to_str())
    change(stated)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), made(name).config | config)


def set_in(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(stated: dict[str, Any]) -> None:
        for key in keys[:-1]:
            stated = stated[key]
        stated[keys[-1]] = value

    return change


def drop_merge(stated: dict[str, Any]) -> None:
    merges = stated["model"]["merges"]
    made_of = [left + right for left, right in merges]
    lone = next(n for n, token in enumerate(made_of) if len(token) == 2 and made_of.count(token) == 1)
    del merges[lone]


UNSUPPORTED = {
    "dropout": ("qwen2", set_in("model", "dropout", value=0.1), "dropout = 0.1"),
    "a subword prefix": ("gpt-2", set_in("model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix"),
    "another normalizer": ("gpt-2", set_in("normalizer", value={"type": "Lowercase"}), "tokenizer.normalizer = .*Lowercase"),
    "another pre-tokenizer": ("gpt-2", set_in("pre_tokenizer", value={"type": "Whitespace"}), "pre_tokenizer = .*Whitespace.*smollm"),
    "a space before a byte-level text": ("gpt-2", set_in("pre_tokenizer", "add_prefix_space", value=True), "pre_tokenizer"),
    "NFC where llama.cpp has none": ("smollm", set_in("normalizer", value={"type": "NFC"}), "after NFC is none"),
    "NFC with SentencePiece": ("gemma", set_in("normalizer", value={"type": "NFC"}), "NFC"),
    "a merge less than llama.cpp does": ("gemma", drop_merge, "is a token that llama.cpp makes of"),
    "an added token that eats spaces": ("gpt-2", lambda s: s["added_tokens"][-1].update(lstrip=True), "added_tokens.lstrip"),
    "a special token that eats spaces": ("gpt-2", lambda s: s["added_tokens"][0].update(rstrip=True), "added_tokens.rstrip = '<|endoftext|>'"),
    "a special token that eats spaces before it": ("llama-2", lambda s: s["added_tokens"][2].update(lstrip=True), "added_tokens.lstrip = '</s>'"),
    "a space before the first word alone": ("metaspace never", set_in("pre_tokenizer", "prepend_scheme", value="first"), "pre_tokenizer.prepend_scheme = 'first': .* --to hf"),
    "a space unless there is one": ("metaspace never", set_in("pre_tokenizer", "prepend_scheme", value="always"), "pre_tokenizer.prepend_scheme = 'always': "),
    "an added token found after the space": ("llama-2", lambda s: s["added_tokens"][-1].update(normalized=True), "added_tokens.normalized"),
    "Unigram": ("gpt-2", set_in("model", value={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}), "model.type = 'Unigram'"),
    "no merges": ("gpt-2", set_in("model", "merges", value=[]), "merges: are none"),
    "a token that C can't read": ("gemma", lambda s: s["model"]["vocab"].update({"a\0b": len(s["model"]["vocab"])}), "'a..00b': holds a NUL"),
    "something else around a text": (
        "gpt-2",
        set_in("post_processor", value={"type": "TemplateProcessing", "pair": [], "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
               "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}),
        "post_processor = '<|im_start|> a'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_llama_cpp_cannot_do_is_refused(case: tuple[str, Callable[[dict[str, Any]], Any], str]) -> None:
    name, change, told = case
    tokenizer = changed(name, change)
    with pytest.raises(UserError, match=told.replace("|", r"\|")):
        tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)


def test_names_and_sizes_are_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="vocab_size = 399: is less than the tokenizer's 400"):
        tokenizer_to_gguf(tiny_tokenizer, 399)
    with pytest.raises(UserError, match="eos_token: is missing"):
        tokenizer_to_gguf(Tokenizer(tiny_tokenizer.backend, {}), 400)
    with pytest.raises(UserError, match="chat_template = 7: is neither"):
        tokenizer_to_gguf(Tokenizer(tiny_tokenizer.backend, tiny_tokenizer.config | {"chat_template": 7}), 400)


def test_ignored_merges_that_matter() -> None:
    """Where a token can't be made by merges, to ignore them is another tokenizer, which only llama-bpe has."""
    stated = json.loads(made("gpt-2 that ignores merges in vain").backend.to_str())
    stated["model"]["merges"].pop()
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), made("gpt-2").config)
    with pytest.raises(UserError, match=r"ignore_merges = true: .* with gpt-2"):
        tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)


def test_several_templates_keep_their_names(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    tokenizer = Tokenizer(tiny_tokenizer.backend, tiny_tokenizer.config | {"chat_template": named})
    assert through_a_file(tokenizer, tmp_path / "a.gguf").config["chat_template"] == named


def test_further_ends_of_a_reply_are_named(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny_tokenizer.backend, tiny_tokenizer.config)
    tokenizer.stop_ids |= {4, 6}
    assert through_a_file(tokenizer, tmp_path / "a.gguf").stop_ids == {1, 4, 5, 6}
    tokenizer.stop_ids |= {7}
    with pytest.raises(UserError, match=r"stop_ids = .*only two beside eos"):
        tokenizer_to_gguf(tokenizer, 400)


# Files that say what they shouldn't


def as_metadata(name: str) -> dict[str, Any]:
    if name not in _metadata:
        _metadata[name] = dict(tokenizer_to_gguf(made(name), made(name).vocab_size))
    return copy.copy(_metadata[name])


def hostile(name: str, **values: Any) -> Metadata:
    metadata = as_metadata(name)
    metadata |= {
        key if key == "tokenizer.chat_template" else f"tokenizer.ggml.{key}": value for key, value in values.items()
    }
    arrays = {
        key: np.array(value) if isinstance(value, list) and value and not isinstance(value[0], str) else value
        for key, value in metadata.items()
        if value is not None
    }
    return Metadata(arrays, "evil.gguf")


def spoilt(name: str, key: str, at: int, value: Any) -> list[Any]:
    values = list(as_metadata(name)[f"tokenizer.ggml.{key}"])
    values[at] = value
    return values


HOSTILE: dict[str, tuple[str, Callable[[], dict[str, Any]], str]] = {
    "a model of another kind": ("gpt-2", lambda: {"model": "t5"}, "model = 't5': is a kind of tokenizer that is not supported"),
    "a model that is no text": ("gpt-2", lambda: {"model": 3}, "is not a text"),
    "no way to cut": ("gpt-2", lambda: {"pre": None}, "doesn't say how text is cut"),
    "a guessed way to cut": ("gpt-2", lambda: {"pre": "default"}, "doesn't say how text is cut"),
    "an unknown way to cut": ("gpt-2", lambda: {"pre": "gpt-9"}, "pre = 'gpt-9': .* not supported.*llama-bpe"),
    "a token twice": ("gpt-2", lambda: {"tokens": spoilt("gpt-2", "tokens", 300, "!")}, "'!': stands there twice"),
    "no tokens": ("gpt-2", lambda: {"tokens": []}, "no vocabulary"),
    "millions of empty texts": ("gpt-2", lambda: {"tokens": [""] * 1_000_000}, "no vocabulary"),
    "many empty texts": ("gpt-2", lambda: {"tokens": [""] * 500_000, "token_type": [1] * 500_000}, "most single bytes are missing"),
    "kinds that are no whole numbers": ("gpt-2", lambda: {"token_type": spoilt("gpt-2", "token_type", 0, 0.5)}, "not whole numbers"),
    "too few kinds": ("gpt-2", lambda: {"token_type": [1] * 10}, "too few"),
    "an id out of range": ("gpt-2", lambda: {"eos_token_id": 5000}, "eos_token_id = 5000: is no token"),
    "a negative id": ("gpt-2", lambda: {"bos_token_id": -1}, "bos_token_id = -1: is no token"),
    "a merge of nothing": ("gpt-2", lambda: {"merges": spoilt("gpt-2", "merges", 3, "zz qq")}, "merges = 'zz qq': is no merge"),
    "a merge without a space": ("gpt-2", lambda: {"merges": spoilt("gpt-2", "merges", 3, "he")}, "merges = 'he': is no merge"),
    "an empty merge": ("gpt-2", lambda: {"merges": spoilt("gpt-2", "merges", 3, "")}, "is no merge"),
    "a merge into nothing": ("gpt-2", lambda: {"merges": spoilt("gpt-2", "merges", 3, "~ !")}, "is no merge"),
    "no merges": ("gpt-2", lambda: {"merges": None}, "merges: is missing"),
    "bos to add and none": ("gpt-2", lambda: {"bos_token_id": None, "add_bos_token": True}, "is missing, and is to be added"),
    "a score that is no number": ("gemma", lambda: {"scores": spoilt("gemma", "scores", 3, float("nan"))}, "scores = 'nan'"),
    "too few scores": ("gemma", lambda: {"scores": [0.0]}, "too few"),
    "no scores": ("gemma", lambda: {"scores": None}, "scores: is missing"),
    "a byte less": ("gemma", lambda: {"tokens": spoilt("gemma", "tokens", 100, "zzz")}, "lack <0x"),
    "a token of a megabyte": ("gemma", lambda: {"tokens": spoilt("gemma", "tokens", 300, "a" * 1_000_000)}, "longer than 256"),
    "all of it special": ("gpt-2", lambda: {"tokens": [*pre_tokenizers.ByteLevel.alphabet(), *map(str, range(10, 70_000))],
                                            "token_type": [3] * 70_246, "merges": []}, "are more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_at_once(case: tuple[str, Callable[[], dict[str, Any]], str]) -> None:
    name, values, told = case
    metadata = hostile(name, **values())
    start = time.monotonic()
    with pytest.raises(UserError, match=told):
        tokenizer_from_gguf(metadata)
    assert time.monotonic() - start < 2


def test_the_hostile_files_are_good_but_for_that() -> None:
    for name in ("gpt-2", "gemma"):
        tokenizer_from_gguf(hostile(name))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=4),
    st.lists(st.integers(-9, 9), max_size=500).map(np.array),
    st.lists(st.floats(width=32), max_size=500).map(np.array),
)
KEYS = ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix", "unknown_token_id", "eot_token_id"]  # fmt: skip


@settings(max_examples=80)
@given(
    name=st.sampled_from(["gpt-2", "gemma"]),
    values=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
    swaps=st.lists(st.tuples(st.sampled_from(["tokens", "token_type", "scores", "merges"]), st.integers(0, 100), st.sampled_from(["", " ", "a", "Ġ t", 0, 3, 4, -1e30])), max_size=3),
)  # fmt: skip
def test_any_metadata_is_read_or_refused(name: str, values: dict[str, Any], swaps: list[tuple[str, int, Any]]) -> None:
    for key, at, value in swaps:
        whole = as_metadata(name).get(f"tokenizer.ggml.{key}")
        if whole is not None and isinstance(value, str) == isinstance(whole[0], str):
            values[key] = spoilt(name, key, at, value)
    try:
        tokenizer = tokenizer_from_gguf(hostile(name, **values))
    except UserError:
        return
    tokenizer.decode_bytes(tokenizer.encode("The fox 🦊 <s>\n") + sorted(tokenizer.stop_ids))


def test_kinds_of_token() -> None:
    """Only control and unknown tokens are special; a user's own are found in text; names that llama.cpp stops at are control."""
    tokens = list(tokenizer_to_gguf(made("gpt-2"), 610)["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    kinds = list(tokenizer_to_gguf(made("gpt-2"), 610)["tokenizer.ggml.token_type"])  # type: ignore[arg-type]
    tokens[605:610] = ["<|eot_id|>", "[any]", "", "<|x|>", "<|y|>"]
    kinds[605:610] = [Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED, Kind.CONTROL, Kind.UNKNOWN]
    tokenizer = tokenizer_from_gguf(hostile("gpt-2", tokens=tokens, token_type=kinds))
    assert {"<|eot_id|>", "<|x|>", "<|y|>"} <= tokenizer.special_ids.keys()
    assert tokenizer.encode("a[any]b")[1] == 606
    assert tokenizer.backend.id_to_token(607) == "[EMPTY_607]"
    assert tokenizer.stop_ids == {0, 2, 605}
    assert tokenizer.decode_bytes([606, 608, 607]) == b"[any][EMPTY_607]"


def test_a_large_vocabulary_is_read_within_five_seconds() -> None:
    letters = [chr(0x4E00 + n) for n in range(500)]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *letters, *(a + b for a in letters for b in letters)]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]),
    }
    start = time.monotonic()
    tokenizer = tokenizer_from_gguf(Metadata(values, "large.gguf"))
    assert time.monotonic() - start < 5
    assert tokenizer.backend.id_to_token(tokenizer.encode(letters[0] + letters[1])[-1]) == letters[0] + letters[1]
