"""From pieces of text to token ids, each piece tokenized on its own."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from periscope.adapters.prompting.segments import Piece, Segment
from periscope.errors import AdapterError

if TYPE_CHECKING:  # imports torch
    from transformers import PreTrainedTokenizerBase


class PieceTokenizer:
    """Tokenizes the pieces of a text with one tokenizer.

    The template's own pieces keep their special tokens; words from data never become special tokens: `</s>` in a
    caption is text. `bos_ids` is the begin-of-text token that the tokenizer adds, if any.

    Raises AdapterError for a tokenizer without an end-of-text token, or one that makes no tokens of text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        if tokenizer.eos_token_id is None:
            raise AdapterError("this tokenizer names no end-of-text token, so no answer could end; set its eos_token")
        self.tokenizer = tokenizer
        self._template_ids: dict[tuple[str, bool], Sequence[int]] = {}  # the template's own pieces recur in every text
        probe = tokenizer("a", add_special_tokens=False).input_ids  # turns padding and truncation off
        if not probe:
            raise AdapterError("this tokenizer makes no tokens of text; copy tokenizer.json from the original model")
        # The Rust tokenizer called directly takes half the time.
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._adds_space = str(tokenizer.convert_ids_to_tokens(probe)[0]).startswith("▁")
        behind_special = tokenizer(f"{tokenizer.eos_token}a", add_special_tokens=False).input_ids
        self._restarts = self._adds_space and list(behind_special[1:]) == list(probe)
        self._special = frozenset(tokenizer.all_special_ids)
        begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self.bos_ids: tuple[int, ...] = (tokenizer.bos_token_id,) if begins else ()

    def ids(self, words: str, from_data: bool, start: bool = False) -> Sequence[int]:
        """Ids of `words` as they stand inside a text: without the space SentencePiece puts before a first word, unless
        they are the `start` of a string.
        """
        if not words:
            return ()
        if from_data:
            return self._tokenize(words, from_data, start)
        if (words, start) not in self._template_ids:
            self._template_ids[words, start] = self._tokenize(words, from_data, start)
        return self._template_ids[words, start]

    def encode(
        self, pieces: Iterable[Segment | Piece], everything: bool = False, as_string: bool = False
    ) -> list[Segment]:
        """Tokenize pieces and merge what can be merged into segments.

        A space at the end of a template piece goes to the words after it, as tokenizers expect; before a slot there are
        none, and it is left out unless `as_string`, with which also the first word of the text and behind a slot is
        tokenized as a string's first word is. With `everything` all words but delimiters are targets. The first id of a
        text never is: nothing precedes it to predict it from.
        """
        merged: list[Segment] = []
        ids: list[int] = []
        target, space, start = False, "", as_string

        def close() -> None:
            if ids:
                merged.append(Segment(tuple(ids), target=target))
                ids.clear()

        piece_ids: Sequence[int]
        for piece in pieces:
            if isinstance(piece, Segment):
                if piece.slot:
                    ids += self.ids(space, False, start) if as_string else ()
                    close()
                    merged.append(piece)
                    space, start = "", as_string
                    continue
                piece_ids, piece_target = piece.ids, piece.target
                if piece_ids and (ids or merged or piece_ids != self.bos_ids):
                    start = as_string and self._restarts and piece_ids[-1] in self._special
            else:
                words = piece.text
                if piece.from_data:
                    words, space = space + words, ""
                else:
                    stem = words.rstrip(" ")
                    trailing = words[len(stem) :]
                    words = space + stem if stem else ""
                    space = trailing if stem else space + trailing
                piece_ids = self.ids(words, piece.from_data, start)
                start = start and not words
                piece_target = piece.target or (everything and not piece.delimiter)
            if piece_ids and piece_target != target:
                close()
                target = piece_target
            ids += piece_ids
        close()
        if merged and merged[0].target:
            first = merged[0].ids
            merged[:1] = [Segment(ids=first[:1]), *([Segment(ids=first[1:], target=True)] if first[1:] else [])]
        return merged

    def _tokenize(self, words: str, from_data: bool, start: bool = False) -> list[int]:
        if self._adds_space and not start:
            lead, ids = self._plain_ids("\n", from_data), self._plain_ids("\n" + words, from_data)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._plain_ids(words, from_data)

    def _plain_ids(self, words: str, from_data: bool) -> list[int]:
        if self._fast is None:
            return self.tokenizer(words, add_special_tokens=False, split_special_tokens=from_data).input_ids
        self._fast.encode_special_tokens = from_data
        return self._fast.encode_batch_fast([words], add_special_tokens=False)[0].ids  # fast: without offsets
