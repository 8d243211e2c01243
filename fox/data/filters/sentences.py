"""Where sentences end, in any script."""

from __future__ import annotations

import re

from fox.data.filters.words import words_of

ENDS = frozenset(
    ".!?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕᠃᠉᥄᥅᪨᪩᪪᪫᭎᭏᭚᭛᭞᭟᭽᭾᭿᰻᰼᱾᱿․‼‽⁇⁈⁉⳹⳺⳻⸮⸼⹓⹔⹠⹡。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫︒︕︖﹒﹖﹗！．？｡"
    "𐩖𐩗𐽕𐽖𐽗𐽘𐽙𐾆𐾇𐾈𐾉𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑥄𑥆𑩂𑩃𑪛𑪜𑱁𑱂𑻷𑻸𑽃𑽄𖩮𖩯𖫵𖬷𖬸𖭄𖺘𛲟𝪈"
)
"""Signs that end a sentence (Unicode's property Sentence_Terminal)."""

_WORD_CHARACTER = re.compile(r"\w")


def sentences_in(line: str, enough: int) -> int:
    """How many sentences a line has that is not empty, or `enough` where it has more: one begins with each word that follows an end."""
    count, ended = 1, False
    for word in words_of(line):
        if word in ENDS:
            ended = True
        elif ended and _WORD_CHARACTER.search(word):
            ended = False
            count += 1
            if count >= enough:
                break
    return min(count, enough)
