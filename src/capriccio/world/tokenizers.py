"""Tokenizers of the miniature, built from the vocabulary: one token per known word, letters for any other.

Both are ordinary ``transformers`` classes; saved folders load without this package. Upper case counts as lower case.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from itertools import pairwise
from string import ascii_uppercase

from transformers import AddedToken, CLIPTokenizer, T5TokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from capriccio.world.vocabulary import LETTERS, PUNCTUATION, SPARE, WORDS

CLIP_LENGTH = 77
T5_LENGTH = 512

_CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
_T5_MARKS = ("<pad>", "</s>", "<unk>")
# A word beats its letters, and a long word a shorter one and letters.
_WORD_SCORE, _LETTER_SCORE = -1.0, -10.0


def clip_tokenizer() -> CLIPTokenizer:
    """Return the CLIP tokenizer, 77 tokens long: bytes, merges that build every word, the marks, the spare tokens."""
    merges = _merges()
    alphabet = list(bytes_to_unicode().values())
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), *_CLIP_MARKS]
    vocab = {symbol: row for row, symbol in enumerate(symbols)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=CLIP_LENGTH)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in SPARE])
    return tokenizer


def t5_tokenizer() -> T5TokenizerFast:
    """Return the T5 tokenizer: pad 0, end 1, unknown 2, then words, punctuation, letters, and the spare tokens."""
    letters = ("▁", "'s", *PUNCTUATION, *LETTERS)
    vocab = [
        *((mark, 0.0) for mark in _T5_MARKS),
        *(("▁" + word, _WORD_SCORE) for word in WORDS),
        *((letter, _LETTER_SCORE) for letter in letters),
    ]
    tokenizer = T5TokenizerFast(
        vocab=vocab, extra_ids=0, _spm_precompiled_charsmap=_lower_case_map(), model_max_length=T5_LENGTH
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in SPARE])
    return tokenizer


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    """Byte-pair merges that build every word, and those learned for shorter words first.

    What the merges so far leave of a word is joined from left to right by new ones. These rank last, so that words
    that are whole already stay whole.
    """
    words = {part for word in WORDS for part in re.findall("[a-z]+", word)}
    ranks = {("'", "s</w>"): 0}
    for word in sorted(words, key=lambda word: (len(word), word)):
        pieces = _join([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks.setdefault((pieces[0], pieces[1]), len(ranks))
            pieces = ["".join(pieces[:2]), *pieces[2:]]
    return tuple(ranks)


def _join(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge neighbours as byte-pair encoding does (Sennrich et al. 2016): the lowest rank first."""
    while known := [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        at = min(known)[1]
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def _lower_case_map() -> bytes:
    """A SentencePiece character map that lowers A to Z.

    It is the only normaliser that a T5 tokenizer keeps when it is loaded again. The format is a Darts double array
    (a unit is ``offset << 10 | leaf flag << 8 | label``; the child of unit ``u`` by byte ``c`` is ``u ^ offset ^ c``),
    preceded by its size in bytes and followed by the replacements, each ended by a zero byte.
    """
    units = [0] * 1024
    units[0] = 256 << 10
    for index, letter in enumerate(map(ord, ascii_uppercase)):
        units[256 + letter] = (256 ^ 512) << 10 | 1 << 8 | letter
        units[512 + letter] = 1 << 31 | 2 * index
    lowered = b"".join(letter.lower().encode() + b"\0" for letter in ascii_uppercase)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + lowered
