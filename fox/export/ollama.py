"""Ollama's Modelfile: the chat template in Ollama's own language, and what ends a reply.

Ollama renders chats by Go templates, so a Jinja template can't be handed on as it is. But nearly all templates put something
before and after each message by its role, a default opening where no system message is given, and a prompt for the reply.
Those pieces are found by rendering conversations; the result is held against the template itself on others. Where it differs,
or changes with the date, no TEMPLATE is written but why, and Ollama makes its own guess from the one in the GGUF file.
Reference: Ollama's docs, modelfile and template.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fox.errors import UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import Message, rendered_chats

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class _Template:
    """What stands around each role's content; `opening` where no system message comes first; `prompt` before the reply."""

    opening: str
    around: dict[str, tuple[str, str]]
    prompt: str

    def render(self, messages: list[Message]) -> str:
        """What Ollama would make of `messages` with `written`."""
        opening = "" if messages[0]["role"] == "system" else self.opening
        said = [before + m["content"] + after for m in messages for before, after in (self.around[m["role"]],)]
        return opening + "".join(said) + self.prompt

    def written(self) -> str:
        opening = (
            f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.opening}{{{{ end }}}}' if self.opening else ""
        )
        cases = [
            f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        return f"{opening}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{self.prompt}"


@dataclass(frozen=True)
class GoTemplate:
    """A chat template in Ollama's language: its `text`, or None and, for one that there is and can't be said, `why_not`."""

    text: str | None
    why_not: str = ""


def modelfile(tokenizer: Tokenizer, template: GoTemplate, gguf: str) -> str:
    """The Modelfile for the GGUF file of that name beside it."""
    lines = [f"FROM ./{gguf}"]
    if template.text is not None:
        lines.append(f'TEMPLATE """{template.text}"""')
    elif template.why_not:
        lines += [
            f"# Without TEMPLATE, for the model's chat template {template.why_not}.",
            "# Ollama guesses one then. Write your own here: https://docs.ollama.com/modelfile#template",
        ]
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    ends = [names[token_id] for token_id in sorted(tokenizer.stop_ids) if token_id in names]
    lines += [f'PARAMETER stop "{end}"' for end in ends if '"' not in end and "\n" not in end]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Tokenizer) -> GoTemplate:
    """The tokenizer's chat template in Ollama's language."""
    if not tokenizer.config.get("chat_template"):
        return GoTemplate(None)
    try:
        found = _found(tokenizer)
        then, later = ([_rendered(tokenizer, chat, True, now) for chat in _TRIALS] for now in _MOMENTS)
    except UserError:  # its own words stay out of the Modelfile, where a line may be a command
        return GoTemplate(None, "refuses conversations that Ollama may have")
    if then != later:
        return GoTemplate(None, "tells the model the date, and Ollama's templates know none")
    if then != [found.render(chat) for chat in _TRIALS]:
        return GoTemplate(None, "does more than put something before and after each message")
    written = found.written()
    pieces = [found.opening, found.prompt, *(piece for pair in found.around.values() for piece in pair)]
    if '"""' in written or any("{{" in piece or "}}" in piece for piece in pieces):
        return GoTemplate(None, "writes what would be a command to Ollama")
    return GoTemplate(written)


def _chat(*contents: str, system: str | None = None) -> list[Message]:
    turns = [{"role": _ROLES[1 + number % 2], "content": content} for number, content in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


_S, _U, _A, _V = "Qsystemq", "Quserq", "Qassistantq", "Qagainq"
_TRIALS = (
    _chat("Hello!"),
    _chat("Hello!", system="Be brief."),
    _chat("One", "Two", "Three"),
    _chat("  what a template may trim \n", " and here\n\n", "\tor here ", system=" or this\n"),
    _chat("Line one\nline two", "- a\n- b", "Why?", "Because.", "Thanks", system="You are a fox."),
)

_MOMENTS = (datetime(1987, 2, 3, 4, 5, 6), datetime(2032, 11, 29, 17, 48, 59))  # other in all that a date tells


def _found(tokenizer: Tokenizer) -> _Template:
    """The pieces, cut out of rendered conversations with contents that are easy to find again."""
    two_turns = _rendered(tokenizer, _chat(_U, _A, _V), False)
    asked, prompted = (_rendered(tokenizer, _chat(_U), ask) for ask in (False, True))
    answered = _rendered(tokenizer, _chat(_U, _A), False)
    with_system = _rendered(tokenizer, _chat(_U, system=_S), False)
    start, after_user = _split(asked, _U)
    _, after_assistant = _split(answered, _A)
    before_assistant = _between(answered, _U, _A).removeprefix(after_user)
    before_user = _between(two_turns, _A, _V).removeprefix(after_assistant)
    before_system = _split(with_system, _S)[0]
    after_system = _between(with_system, _S, _U).removesuffix(before_user)
    around = {
        "system": (before_system, after_system),
        "user": (before_user, after_user),
        "assistant": (before_assistant, after_assistant),
    }
    return _Template(start.removesuffix(before_user), around, prompted.removeprefix(asked))


def _rendered(tokenizer: Tokenizer, messages: list[Message], ask: bool, now: datetime = _MOMENTS[0]) -> str:
    """A conversation as text, without the <bos> that Ollama adds by itself where the file says so."""
    (text,) = rendered_chats(tokenizer, [messages], ask, now)
    bos = tokenizer.token_names.get("bos_token")
    return text.removeprefix(bos) if bos and tokenizer.adds_bos else text


def _split(text: str, at: str) -> tuple[str, str]:
    before, _, after = text.partition(at)
    return before, after


def _between(text: str, first: str, last: str) -> str:
    return _split(_split(text, first)[1], last)[0]
