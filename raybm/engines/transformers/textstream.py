"""From token ids to text that can be shown at once: whole characters only, spaces kept, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 6  # tokens before the new one that are decoded with it: a decoder drops the space before the first token it sees
CHARACTER = 4  # tokens at most, one a byte
HELD = 2 * CHARACTER  # tokens after which bytes that make no character are shown as U+FFFD


class TextStream:
    """The text of one answer, growing token by token. `stopped`: a stop string came; what follows it is never given out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(s for s in stop if s)
        self.ids = list(prompt[-CONTEXT - CHARACTER :])
        self._forget()
        self.shown = self._decode()  # the text of `ids` that was already given out
        self.behind = 0  # tokens of `ids` that were not
        self.pending = ""  # whole characters that may be the start of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes, often none."""
        self.ids.append(token)
        self.behind += 1
        text = self._decode()
        if text.endswith("\ufffd") and self.behind < HELD:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """What was held back, at the end of the answer; a character that never got whole is left out."""
        if self.stopped:
            return ""
        text = self._release(self._decode().rstrip("\ufffd")) + self.pending
        self.pending = ""
        return text

    def _forget(self) -> None:
        """All but the context, which begins with a whole character: decoders give up a run of bytes that begins within one."""
        tails = (self.ids[-length:] for length in range(CONTEXT, CONTEXT + CHARACTER))
        self.ids = next((tail for tail in tails if not self._decode(tail).startswith("\ufffd")), self.ids[-CONTEXT:])

    def _decode(self, ids: list[int] | None = None) -> str:
        return str(self.tokenizer.decode(self.ids if ids is None else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str) -> str:
        self.pending += text[len(self.shown) :]
        self._forget()
        self.behind = 0
        self.shown = self._decode()
        found = [at for at in (self.pending.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            text, self.pending = self.pending[: min(found)], ""
            return text
        hold = max((_overlap(self.pending, stop) for stop in self.stop), default=0)
        cut = len(self.pending) - hold
        text, self.pending = self.pending[:cut], self.pending[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
