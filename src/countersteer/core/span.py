"""Which token positions an edit changes.

Position 0 is the first token of the templated prompt, BOS included. With a prompt of P tokens (an assistant prefix
counts as prompt: it is given, not generated):

    all          every position
    prompt       0 .. P-1, the template's tokens included
    response     P ..      generated tokens, when they are read back
    generation   P-1 ..    every position that decides a generated token
    from(n)      n ..
    until(n)     0 .. n-1
    between(a,b) a .. b-1   an earlier answer of a conversation, say
    until(restart), from(restart)
                 before / from the token after the first restart phrase that the response completes (core/restart.py)

The last two follow the text as it is generated, so only the embedded engine has them; the cache stays as it was
steered. Without a restart until(restart) is all and from(restart) holds nothing, which is a result, not a no-op.

The first generated token is decided at position P-1, a *prompt* position: under `response` it is untouched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from countersteer.core.errors import InputError, RefusedError, nearest

_KINDS = ("all", "prompt", "response", "generation", "from", "until", "between")
END = 1 << 40
"""A position beyond every text: the open end of a span."""


@dataclass(frozen=True)
class Span:
    """A set of token positions, decided by the length of the prompt. `n` belongs to `from`, `until` and `between`.

    `restart`: the position is where the response restarts, in place of `n`. `stop`: where `between` ends.
    """

    kind: str = "all"
    n: int | None = None
    restart: bool = False
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"unknown span {self.kind!r}{nearest(self.kind, _KINDS)}; known: {', '.join(_KINDS)}")
        if self.restart:
            if self.kind not in ("from", "until") or self.n is not None or self.stop is not None:
                raise InputError("a span that follows a restart is until(restart) or from(restart)")
            return
        if (self.n is not None) != (self.kind in ("from", "until", "between")):
            raise InputError(f"span {self.kind!r} {'needs' if self.n is None else 'takes no'} position")
        if (self.stop is not None) != (self.kind == "between"):
            raise InputError(f"span {self.kind!r} {'needs' if self.stop is None else 'takes no'} second position")
        if self.n is not None and self.n < 0:
            raise InputError(f"span position must be >= 0, got {self.n}")
        if self.kind == "until" and self.n == 0:
            raise InputError("span until(0) is empty: it would edit nothing; give a position >= 1")
        if self.stop is not None and self.stop <= (self.n or 0):
            raise InputError(f"span {self} is empty: it would edit nothing; its second position must be larger")

    def __str__(self) -> str:
        if self.restart:
            return f"{self.kind}(restart)"
        if self.kind == "between":
            return f"between({self.n},{self.stop})"
        return self.kind if self.n is None else f"{self.kind}({self.n})"

    @classmethod
    def parse(cls, value: str | Span) -> Span:
        """The span that a text such as `response` or `from(12)` names. Raises InputError."""
        if isinstance(value, Span):
            return value
        if not isinstance(value, str):
            raise InputError(f"a span is a text such as 'response' or 'from(12)', got {value!r}")
        text = value.strip()
        follows = re.fullmatch(r"(from|until)\(\s*[\"']?restart[\"']?\s*\)", text)
        if follows:
            return cls(follows[1], restart=True)
        match = re.fullmatch(r"(\w+)\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", text)
        if match is None:
            return cls(text)
        return cls(match[1], int(match[2]), stop=None if match[3] is None else int(match[3]))

    def bounds(self, prompt_tokens: int) -> tuple[int, int]:
        """[start, stop) in positions, for a prompt of `prompt_tokens` tokens; an open end is `END`.

        Raises RefusedError for a span that follows the text: what calls this cannot know where it turns.
        """
        if self.restart:
            raise RefusedError(
                f"span {self}", "only the embedded engine's generation follows the text", "until(n) or from(n)"
            )
        if self.kind == "prompt":
            return 0, prompt_tokens
        if self.kind == "response":
            return prompt_tokens, END
        if self.kind == "generation":
            return max(prompt_tokens - 1, 0), END
        if self.kind == "from":
            return self.n or 0, END
        if self.kind == "until":
            return 0, self.n or 0
        if self.kind == "between":
            return self.n or 0, self.stop or 0
        return 0, END

    def turning(self, prompt_tokens: int, turn: int | None) -> tuple[int, int]:
        """As `bounds`, where the response has restarted at position `turn` (None: not yet)."""
        if not self.restart:
            return self.bounds(prompt_tokens)
        at = END if turn is None else turn
        return (0, at) if self.kind == "until" else (at, END)

    @property
    def needs_prompt(self) -> bool:
        """Whether the positions depend on the length of the prompt."""
        return self.kind in ("prompt", "response", "generation")

    def count(self, prompt_tokens: int, tokens: int) -> int:
        """How many of the first `tokens` positions the span holds."""
        start, stop = self.bounds(prompt_tokens)
        return max(min(stop, tokens) - start, 0)

    def disjoint(self, other: Span) -> bool:
        """Whether the two spans can never share a position, whatever the prompt."""
        for a, b in ((self, other), (other, self)):
            if a.kind == "prompt" and b.kind == "response":
                return True
            if a.restart or b.restart:
                if a.restart and b.restart and a.kind == "until" and b.kind == "from":
                    return True
            elif not a.needs_prompt and not b.needs_prompt and a.bounds(0)[1] <= b.bounds(0)[0]:
                return True
        return False


ALL = Span("all")
