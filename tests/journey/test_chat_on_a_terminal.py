"""`fox chat` as a person has it: on a terminal, with Ctrl-C for a reply and Ctrl-D for the end."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fox.model.directory import save_model
from fox.tokenizer import Tokenizer

WAIT_S = 60


class Terminal:
    """What a program on a pseudo-terminal has said so far."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.said = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Where `text` ends in what was said, beyond the place `after`."""
        end = time.monotonic() + WAIT_S
        while text not in self.said[after:]:
            assert time.monotonic() < end, f"no {text!r} in {self.said!r}"
            self._listen()
        return self.said.index(text, after) + len(text)

    def wait_for_more(self, characters: int) -> None:
        """Until so much more was said, whatever it is."""
        end, wanted = time.monotonic() + WAIT_S, len(self.said) + characters
        while len(self.said) < wanted:
            assert time.monotonic() < end, f"nothing after {self.said!r}"
            self._listen()

    def _listen(self) -> None:
        if select.select([self._ours], [], [], 0.1)[0]:
            self.said += os.read(self._ours, 65536).decode(errors="replace")

    def close(self) -> int:
        self.process.kill()
        os.close(self._ours)
        return self.process.wait()


def test_ctrl_c_stops_the_reply_and_not_the_program(
    make_model: Callable[..., Any], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(vocab_size=tiny_tokenizer.vocab_size, max_position_embeddings=100_000)
    with torch.no_grad():
        model.embed_tokens.weight[tiny_tokenizer.eos_id] = 0  # never the likeliest: its reply has no end
    save_model(tmp_path / "model", model, tiny_tokenizer)
    words = ["chat", str(tmp_path / "model"), "--temperature", "0", "--max-tokens", "90000"]
    terminal = Terminal([sys.executable, "-m", "fox", *words])
    try:
        place = terminal.wait_for("> ")
        terminal.type("Hello\n")
        place = terminal.wait_for("\n", place)
        terminal.wait_for_more(20)  # the reply has begun
        terminal.process.send_signal(signal.SIGINT)
        place = terminal.wait_for("(stopped)", place)
        place = terminal.wait_for("> ", place)
        time.sleep(0.5)  # CPython's prompt is printed a moment before its wait can be interrupted
        terminal.process.send_signal(signal.SIGINT)  # at the prompt, it does not end the program either
        place = terminal.wait_for("(Ctrl-D ends)", place)
        terminal.wait_for("> ", place)
        assert terminal.process.poll() is None
        terminal.type("\x04")
        assert terminal.process.wait(timeout=WAIT_S) == 0
    finally:
        terminal.close()
