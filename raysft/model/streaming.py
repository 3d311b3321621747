"""An answer while it is generated: shown piece by piece, ended by a text or by a person."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


def words_of(tokenizer: Any, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    """As `text_of`, without white space around it."""
    return text_of(tokenizer, ids, ends, stop).strip()


def text_of(tokenizer: Any, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    """Of generated ids, up to the first end token and the first of the texts to stop at."""
    kept = list(ids)
    for place, token in enumerate(ids):
        if token in ends:
            kept = kept[:place]
            break
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return text[: min(places, default=len(text))]


class StopAtTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer when one of the texts is in it, however it falls into tokens."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.texts, self.begin = tokenizer, texts, prompt_length
        # A character takes 4 tokens at most; looking at a little more costs nothing.
        self.window = 4 * max(map(len, texts)) + 4

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        """bool [B], true where the answer has ended."""
        rows = input_ids[:, max(self.begin, input_ids.shape[1] - self.window) :].tolist()
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        ended = [any(stop in text for stop in self.texts) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class StopWhen(StoppingCriteria):  # type: ignore[misc]
    """Ends all answers after the token in which somebody asked for it."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked(), device=input_ids.device)


class Pieces(BaseStreamer):  # type: ignore[misc]
    """Writes an answer as it grows; the pieces together are `words_of` the whole.

    transformers' TextStreamer forgets the tokens before a line break, and with some tokenizers the
    space after it. What could still change is held back: half of a character, white space at the
    end, the beginning of a text to stop at.
    """

    def __init__(
        self, tokenizer: Any, ends: Sequence[int], stop: Sequence[str], write: Callable[[str], None]
    ) -> None:
        self.tokenizer, self.ends, self.stop, self.write = tokenizer, ends, stop, write
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_is_next = True

    def put(self, value: Tensor) -> None:
        if self.prompt_is_next:  # generate hands it over first
            self.prompt_is_next = False
            return
        self.ids += value.flatten().tolist()
        self.show(self.settled(words_of(self.tokenizer, self.ids, self.ends, self.stop)))

    def settled(self, text: str) -> str:
        text = text.rstrip("\ufffd")
        for stop in self.stop:
            begun = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
            text = text[: len(text) - next(begun, 0)]
        return text.rstrip()

    def show(self, text: str) -> None:
        if len(text) > len(self.shown) and text.startswith(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        self.show(words_of(self.tokenizer, self.ids, self.ends, self.stop))
