"""Inspect's model `countersteer/MODEL`: any Inspect evaluation runs steered.

    inspect eval task.py --model countersteer/organism -M bundle=warm.safetensors

MODEL is whatever `load_engine` takes. Model arguments: `bundle` (a bundle file) or, from Python, `intervention`; dtype,
device, places, adapter, template. A bundle for another model, and what the engine cannot honour (tools, images, several
choices), are refused by name. Receipts stand in the output's metadata, marked for a derived bundle.
"""

from __future__ import annotations

import math
from typing import Any

from inspect_ai.model import ChatCompletionChoice as Choice
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.request import Request, Sampling
from countersteer.edits.bundle import Bundle, load_bundle, refuse_other_engine

_ARGUMENTS = ("bundle", "intervention", "dtype", "device", "places", "adapter", "template")
_UNSUPPORTED = ("num_choices", "best_of", "logit_bias", "logprobs", "response_schema", "frequency_penalty",
                "presence_penalty", "extra_body", "reasoning_tokens")  # fmt: skip


class CountersteerAPI(ModelAPI):
    """The embedded engine as an Inspect model, with one intervention on every request."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        unknown = sorted(set(model_args) - set(_ARGUMENTS))
        if unknown:
            raise InputError(f"unknown model argument {unknown[0]!r}; known: {', '.join(_ARGUMENTS)}")
        if base_url is not None:
            raise RefusedError("base_url for countersteer/MODEL", "the engine runs in this process", "leave it out")
        self.bundle, self.intervention = _steering(model_args.get("bundle"), model_args.get("intervention"))
        self._template = bool(model_args.get("template", True))
        options = {key: model_args[key] for key in ("dtype", "device", "adapter") if key in model_args}
        from countersteer.engines.load import load_engine

        self.engine = load_engine(model_name, places=int(model_args.get("places", 32)), **options)
        if self.bundle is not None and self.bundle.meta.get("model_fingerprint"):  # an edit saved by hand may say none
            try:
                refuse_other_engine(self.bundle, self.engine.describe())
            except BaseException:
                self.engine.close()
                raise

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One steered completion."""
        if tools:
            raise RefusedError("a request with tools", "the engine generates text only", "run it without tools")
        for name in _UNSUPPORTED:
            if getattr(config, name, None):
                raise RefusedError(f"{name}", "the embedded engine has no such setting", f"leave {name} out")
        messages, prefix = _messages(input)
        request = Request(
            messages=tuple(messages),
            prefix=prefix,
            intervention=self.intervention,
            sampling=sampling(config),
            template=self._template,
        )
        done = await self.engine.generate(request)
        usage = ModelUsage(
            input_tokens=done.prompt_tokens,
            output_tokens=len(done.tokens),
            total_tokens=done.prompt_tokens + len(done.tokens),
        )
        message = ChatMessageAssistant(content=done.text, model=self.model_name, source="generate")
        receipt = done.receipt if self.bundle is None else self.bundle.mark(done.receipt)
        stop: Any = "max_tokens" if done.finish == "length" else "stop"
        return ModelOutput(
            model=self.model_name,
            choices=[Choice(message=message, stop_reason=stop)],
            usage=usage,
            metadata={"receipt": receipt.to_dict()},
        )

    def max_connections(self) -> int:
        """As many requests at once as keep the engine's batch full."""
        return 64

    def should_retry(self, ex: Exception) -> bool:
        """Nothing that fails here succeeds when tried again."""
        return False

    async def aclose(self) -> None:
        """Free the model."""
        self.engine.close()


@modelapi(name="countersteer")
def countersteer() -> type[ModelAPI]:
    """Registers the provider with Inspect (entry point `inspect_ai`)."""
    return CountersteerAPI


def _steering(file: Any, given: Any) -> tuple[Bundle | None, Any]:
    """The bundle of a file with its intervention, or the given intervention alone. Raises InputError."""
    if file is not None and given is not None:
        raise InputError("give a bundle or an intervention, not both")
    if file is None:
        return None, given
    bundle = load_bundle(str(file))
    return bundle, bundle.intervention


def _messages(input: list[ChatMessage]) -> tuple[list[dict[str, str]], str | None]:
    """The messages as role and text; a last message of the assistant is the beginning of its answer."""
    messages = []
    for message in input:
        if message.role not in ("system", "user", "assistant"):
            raise RefusedError(f"a message of role {message.role}", "the engine generates text only", "leave it out")
        if isinstance(message.content, list) and any(part.type != "text" for part in message.content):
            raise RefusedError("a message with images or files", "the engine takes text only", "give its text")
        messages.append({"role": message.role, "content": message.text})
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"] or None
    return messages, None


def sampling(config: GenerateConfig) -> Sampling:
    """Inspect's settings as the engine's; what is not given keeps the engine's default."""
    given: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "seed": config.seed,
        "max_tokens": config.max_tokens,
        "stop": None if config.stop_seqs is None else tuple(config.stop_seqs),
    }
    kept = {name: value for name, value in given.items() if value is not None}
    if "temperature" in kept and not math.isfinite(kept["temperature"]):
        raise InputError("temperature must be a finite number")
    return Sampling(**kept)
