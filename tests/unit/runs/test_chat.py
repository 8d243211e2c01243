"""`fox chat` where a person or their terminal does what is seldom done."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.model import Transformer
from fox.model.directory import save_model
from fox.runs.chat import chat_with
from fox.tokenizer import Tokenizer


class Impatient(io.StringIO):
    """A terminal at which Ctrl-C is pressed at these calls, of reading and of writing alike, before the text ends."""

    def __init__(self, pressed: set[int]) -> None:
        super().__init__()
        self.pressed, self.calls = pressed, 0

    def isatty(self) -> bool:
        return True

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.pressed:
            raise KeyboardInterrupt

    def readline(self, size: int | None = -1) -> str:
        self._call()
        return "Hello\n" if self.calls < 12 else ""

    def write(self, text: str) -> int:
        self._call()
        return super().write(text)


@pytest.mark.parametrize("first", range(2, 12))
def test_ctrl_c_twice_in_a_row_ends_nothing(
    first: int, monkeypatch: pytest.MonkeyPatch, tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "mine", tiny_model, tiny_tokenizer)
    terminal = Impatient({first, first + 1})
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    chat_with(str(tmp_path / "mine"), None, None, Sampling(temperature=0), 3)
    assert terminal.calls > first + 1
    assert "stopped" in terminal.getvalue() or "Ctrl-D ends" in terminal.getvalue()


def test_a_base_model_is_told_from_a_tuned_one(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "base", tiny_model, tiny_tokenizer)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        path = tmp_path / "base" / file
        if path.suffix == ".jinja":
            path.unlink(missing_ok=True)
        else:
            path.write_text(path.read_text().replace('"chat_template"', '"unused"'))
    with pytest.raises(UserError, match=r"has no chat template: it is a base model.*Name a tuned one"):
        chat_with(str(tmp_path / "base"), "Hello", None, Sampling(), 3)
