"""llama.cpp's own tokenizer gives Fox's ids on the hard texts: of SmolLM2's real file, and of files of ours of each family.

To read our own files back proves only half. What differs is listed, each with its reason, and must differ: an exception that
is none any more is noticed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from fox.export.gguf import export_gguf
from fox.model import Transformer
from fox.model.directory import save_model
from fox.model.stored import StoredModel, open_model
from fox.tokenizer import Tokenizer
from fox.tokenizer.hard_texts import hard_texts_for
from fox.tokenizer.llama_cpp import WORD_RULES
from fox.tokenizer.to_gguf import tokenizer_to_gguf
from tests.unit.tokenizer.test_tokenizer_gguf import MAKERS, made

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

LlamaTokenize = Callable[[Path, bytes], list[int] | None]
NFC = {pre for rule in WORD_RULES if rule.is_nfc for pre in rule.names}


def excused(tokenizer: Tokenizer, text: bytes) -> str | None:
    """Why llama.cpp may make other tokens of a text than Fox, None where it may not."""
    try:
        written = text.decode()
    except UnicodeDecodeError:
        return "llama.cpp reads bytes that are no UTF-8 as U+FFFD, and dies of some; Fox keeps them"
    pre = tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.pre"]
    if pre in NFC and not unicodedata.is_normalized("NFC", written):
        return "llama.cpp never composes characters; the tokenizer.json of Qwen's family says to, and Fox does"
    return None


def differing(llama: LlamaTokenize, path: Path, tokenizer: Tokenizer) -> tuple[list[bytes], list[bytes]]:
    """The texts whose ids differ: those that may, and those that may not."""
    excusable, wrong = [], []
    for text in hard_texts_for(tokenizer):
        if llama(path, text) != tokenizer.encode(text):
            (excusable if excused(tokenizer, text) else wrong).append(text)
    return excusable, wrong


def exported(tokenizer: Tokenizer, make_model: Callable[..., Transformer], folder: Path) -> Path:
    """A tiny random model with this tokenizer, as GGUF."""
    save_model(folder / "model", make_model(vocab_size=tokenizer.vocab_size + 7), tokenizer)
    export_gguf(open_model(folder / "model"), folder / "model.gguf", "f32", {}, lambda weights: None)
    return folder / "model.gguf"


def test_of_the_real_file(stored: StoredModel, weights: Path, llama_tokenize: LlamaTokenize) -> None:
    assert differing(llama_tokenize, weights, stored.tokenizer)[1] == []
    assert len(hard_texts_for(stored.tokenizer)) > 100


def test_of_the_real_tokenizer_through_our_export(
    stored: StoredModel,
    weights: Path,
    make_model: Callable[..., Transformer],
    tmp_path: Path,
    llama_tokenize: LlamaTokenize,
) -> None:
    path = exported(stored.tokenizer, make_model, tmp_path)
    assert differing(llama_tokenize, path, open_model(path).tokenizer)[1] == []


@pytest.mark.parametrize("name", ["fox", *MAKERS])
def test_of_each_family(
    name: str,
    tiny_tokenizer: Tokenizer,
    make_model: Callable[..., Transformer],
    tmp_path: Path,
    llama_tokenize: LlamaTokenize,
) -> None:
    tokenizer = tiny_tokenizer if name == "fox" else made(name)
    path = exported(tokenizer, make_model, tmp_path)
    excusable, wrong = differing(llama_tokenize, path, tokenizer)
    assert wrong == []
    assert {excused(tokenizer, text) for text in excusable} == {
        why for text in hard_texts_for(tokenizer) if (why := excused(tokenizer, text))
    }, "an exception that is none any more"


def test_the_comparison_notices_another_way_to_cut(
    make_model: Callable[..., Transformer], tmp_path: Path, llama_tokenize: LlamaTokenize
) -> None:
    path = exported(made("smollm"), make_model, tmp_path)
    content = path.read_bytes()
    assert content.count(b"smollm") == 1
    path.write_bytes(content.replace(b"smollm", b"falcon"))  # of the same length; cuts off three digits at a time
    assert differing(llama_tokenize, path, made("smollm"))[1] != []
