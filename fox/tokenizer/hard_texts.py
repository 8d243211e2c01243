"""Texts that tokenizers disagree on: what an export is compared with its source on, and what tests are made of.

Bytes, since a file in the wild needn't be UTF-8. Each line is there for a difference that some tokenizer has had.
"""

from __future__ import annotations

import unicodedata

from fox.errors import UserError
from fox.tokenizer.tokenizer import Tokenizer

_MOST_SPECIAL = 200

_TEXTS = (
    "",
    # white space: runs, at either end, of every kind
    " ",
    "  ",
    "   a",
    "a   ",
    " a b  c   d    e     f",
    "\t",
    "\t\tx\t y \t",
    "\n",
    "\n\n\n",
    " \n \n\n  \n",
    "a\r\nb\r\n\r\nc\rd",
    "non\u00a0breaking\u00a0 space,\u2003em\u2003,\u3000ideographic\u3000",
    "zero\u200bwidth\u200d joiner\u2060 word joiner \u00ad soft hyphen",
    "line\u2028paragraph\u2029next\u0085vertical\x0btab\x0cform",
    "x" + " " * 40 + "y" + "\n" * 20 + "z" + "\t" * 17,
    # plain prose, and the contractions that words are cut at
    "The quick brown fox jumps over the lazy dog.",
    "don't I'LL we'Ve it'S he'd they're 'tis O'Neil's rock'n'roll 'S 'LL 'x",
    "It’s “quoted” – with — dashes… and ‹angles›",
    "Hello,world!How are you?(fine)[thanks]{bye}",
    "a_b-c.d/e\\f|g~h`i^j*k+l=m&n%o$p#q@r!s",
    "!!!???...,,,;;;:::---===___***",
    "CamelCaseAndSNAKE_CASE andmixedUPPERlower",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "a" * 300,
    "ab" * 150,
    # numbers
    "1234567",
    "0 1 12 123 1234 12345 3.14159 1,000,000 -42 1e-9 0xFF",
    "² ³ x² ½ ⅓ Ⅷ ① ٣٤٥ ४२ 五 𝟙𝟚",
    "2024-01-31T23:59:59Z 127.0.0.1 +49 (0)30 123456",
    # other scripts
    "naïve café Ærøskøbing Łódź İstanbul ıŞğ ßẞ",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "你好，世界。こんにちは世界、カタカナ。한국어 문장입니다.",
    "日本語とEnglishの混在123テスト",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם — עִבְרִית מְנֻקֶּדֶת",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "नमस्ते दुनिया, हिन्दी में क्षत्रिय",
    "தமிழ் తెలుగు ಕನ್ನಡ മലയാളം বাংলা",
    "ⴰⵎⴰⵣⵉⵖ ᠮᠣᠩᠭᠣᠯ ꦗꦮ 𐍈𐌰𐌿𐍄 𠮷野家",
    # combining marks, composed and not
    unicodedata.normalize("NFC", "é ü ñ ệ 각 Å"),
    unicodedata.normalize("NFD", "é ü ñ ệ 각 Å"),
    "Z̷̢̛a̴̡l̶̨g̵o̸ e\u0301\u0301\u0301 \u0301start",
    "ﬁ ﬂ ﷺ Ａｂｃ１２ ℌ ㎏",
    # emoji: joined, with tones, flags, keycaps
    "🦊 🐺🐺🐺 fox🦊fox",
    "👩‍👩‍👧‍👦 👨🏿‍🚀 👍🏽 🏳️‍🌈 🇩🇪🇯🇵 1️⃣ ☎️ ❤️‍🔥",
    # code
    "def f(x: int) -> int:\n    if x < 2:\n        return x  # base\n\treturn f(x-1) + f(x-2)\n",
    'for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; } // "done"\n',
    '{"key": [1, 2.5, null, true], "ключ": "\\u00e9\\n"}',
    '<div class="a">&nbsp;<b>bold</b></div><!-- x -->',
    "https://example.com/a?b=c&d=%20e#f user@example.org C:\\dir\\file.txt",
    "$\\frac{1}{2} \\sum_{i=0}^{n} x_i$ ≤ ∞ → ∀x∈ℝ",
    # what reads like a special token, a byte token or SentencePiece's space
    "<s> </s> <unk> <pad> <eos> <bos> a<s>b",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|><|eot_id|> <start_of_turn>x<end_of_turn>",
    "[INST] hi [/INST] <<SYS>> <|> |> <| [PAD] [PAD300] <unused1>",
    "<0x0A> <0x41><0x00> <0xZZ>",
    "▁ ▁▁ ▁a a▁b ▁ ▁",
    "Ġ Ċ ĠĠa Ā",  # a byte-level vocabulary's letters, as text
    # control characters and the ends of Unicode's ranges
    "a\x00b\x00\x00",
    "\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x1b[31mred\x1b[0m\x1c\x1d\x1e\x1f\x7f",
    "\ufeffwith a mark\ufeff",
    "\ud7ff\ue000\uf8ff\ufffd\ufffe\uffff",
    "\U00010000\U0001ffff\U000f0000\U0010ffff",
    "\u202eright to left\u202c \u2066isolated\u2069",
)

_NO_UTF8 = (
    b"lone \x80 and \xbf",
    b"cut \xc3",
    b"cut \xe2\x82 and \xf0\x9f\xa6",
    b"\xff\xfe\xfd",
    b"overlong \xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf",
    b"half a pair \xed\xa0\x80 and beyond \xf4\x90\x80\x80",
    b"latin-1 caf\xe9 na\xefve",
)

HARD_TEXTS: tuple[bytes, ...] = (*(text.encode() for text in _TEXTS), *_NO_UTF8)


def hard_texts_for(tokenizer: Tokenizer) -> list[bytes]:
    """HARD_TEXTS, and texts with the tokenizer's own special and added tokens written in them (of the first 200).

    Left out is what holds bytes that are no UTF-8 and that this tokenizer has no token for: SmolLM2's lacks some.
    """
    added = [
        token.content for _, token in sorted(tokenizer.backend.get_added_tokens_decoder().items()) if token.content
    ]
    names = added[:_MOST_SPECIAL]
    own = [
        text for name in names for text in (name, f"a{name}b", f"Say {name} twice: {name}{name}, {name[:-1]}\n{name} .")
    ]
    writable = [text for text in HARD_TEXTS if _can_write(tokenizer, text)]
    return [*writable, *(text.encode() for text in own), "".join(names).encode()]


def _can_write(tokenizer: Tokenizer, text: bytes) -> bool:
    try:
        tokenizer.encode(text)
    except UserError:
        return False
    return True
