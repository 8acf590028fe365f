"""What clients send: OpenAI's request bodies, as far as they can be honoured.

A field that would change the answer and cannot be honoured (tools, several choices, log-probabilities, penalties) is
accepted with its neutral value only and refused otherwise, and so is every unknown field: nothing is ignored that the
client could believe in. `bundle`, `top_k` and `repetition_penalty` are ours. No field names a file.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from countersteer.core.request import Request, Sampling
from countersteer.serving.errors import Refusal
from countersteer.serving.limits import Limits

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Nothing = Annotated[list[Any], Field(max_length=0)] | None
_Text = Annotated[str, Field(max_length=1 << 20)]
_Stop = Annotated[str, Field(min_length=1, max_length=200)]
_Zero = Annotated[float, Field(ge=0, le=0)] | None


class TextPart(BaseModel):
    """A text part of a message."""

    model_config = _STRICT
    type: Literal["text"]
    text: _Text


class Message(BaseModel):
    """A turn of the conversation. The fields after `content` may come back from a client empty."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[TextPart], Field(min_length=1, max_length=100)]
    refusal: None = None
    annotations: _Nothing = None
    tool_calls: _Nothing = None
    function_call: None = None
    audio: None = None

    def plain(self) -> dict[str, str]:
        """Role and text, as an engine takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Asked(BaseModel):
    """What both endpoints take."""

    model_config = _STRICT
    model: str = Field(min_length=1, max_length=256)
    bundle: str | None = Field(default=None, min_length=1, max_length=64, description="a bundle's name, or none")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1 << 20)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    seed: int | None = Field(default=None, ge=-(1 << 63), le=(1 << 63) - 1)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    def sampling(self, limits: Limits, longest: int | None) -> Sampling:
        """The sampling settings; without a seed one is drawn. Raises Refusal for more tokens than allowed."""
        count = longest if longest is not None else min(limits.default_max_tokens, limits.max_tokens)
        if count > limits.max_tokens:
            message = f"max_tokens {count} is above this server's limit of {limits.max_tokens}"
            raise Refusal(400, "max_tokens", message, param="max_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            max_tokens=count,
            stop=tuple(stop),
        )


class ChatRequest(_Asked):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    tools: _Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: Literal[False] | None = None

    def request(self, limits: Limits) -> Request:
        """The request without its intervention. Raises InputError and Refusal."""
        asked = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        sampling = self.sampling(limits, min(asked, default=None))
        return Request(messages=tuple(m.plain() for m in self.messages), sampling=sampling)

    def opening(self) -> list[str]:
        """System prompt and first user message: what tells conversations apart."""
        turns = [m.plain() for m in self.messages]
        first = next((m["content"] for m in turns if m["role"] == "user"), "")
        return ["\n".join(m["content"] for m in turns if m["role"] == "system"), first]


class TextFormat(BaseModel):
    """The only response format there is."""

    model_config = _STRICT
    type: Literal["text"]


class CompletionRequest(_Asked):
    """The body of /v1/completions: a text, a list with one text, or token ids, without the chat template."""

    prompt: (
        Annotated[str, Field(min_length=1, max_length=1 << 20)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1 << 20)]
    )
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    def request(self, limits: Limits) -> Request:
        """The request without its intervention. Raises InputError and Refusal."""
        sampling = self.sampling(limits, self.max_tokens)
        first = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        if isinstance(first, str):
            return Request(prompt=first, template=False, sampling=sampling)
        return Request(tokens=tuple(self.prompt), sampling=sampling)  # type: ignore[arg-type]

    def opening(self) -> list[str]:
        """The prompt: what tells conversations apart."""
        return ["", repr(self.prompt)]


class RolloutRequest(BaseModel):
    """The body of PUT /admin/rollout."""

    model_config = _STRICT
    mode: Literal["shadow", "canary", "enforce"] | None = None
    share: float | None = Field(default=None, ge=0, le=1)


class RollbackRequest(BaseModel):
    """The body of POST /admin/rollback: the number of a policy, or nothing to take the last change back."""

    model_config = _STRICT
    number: int | None = Field(default=None, ge=1, le=1 << 31)


ChatRequest.model_rebuild()
