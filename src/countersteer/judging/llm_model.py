"""The Inspect model behind a judge, and the settings that one question is sent with.

Inspect's own retries are off: retries, pace and money are counted in one place (`llm_calls`).
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from countersteer.core.errors import InputError
from countersteer.judging.llm_redact import Redactor
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.judging.llm_wire import watch


def load_model(settings: JudgeSettings, redact: Redactor) -> Any:
    """The Inspect model of a judge, its own retries off. Raises InputError."""
    try:
        from inspect_ai.model import BatchConfig, GenerateConfig, get_model
    except ImportError:
        raise InputError(
            f"judge {settings.model} needs Inspect, which is not installed; pip install 'countersteer[judge]'"
        ) from None
    every = settings.batch_seconds
    config = GenerateConfig(
        max_retries=0,
        attempt_timeout=None if settings.batch else settings.seconds,
        max_connections=settings.at_once,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        batch=BatchConfig(size=settings.batch_size, tick=every, send_delay=every) if settings.batch else None,
    )
    try:
        model = get_model(settings.model, config=config, base_url=settings.base_url, memoize=False)
    except Exception as error:  # Inspect raises many kinds for a missing key, package or provider
        reason = re.sub(r"\[/?[a-z ]+\]", "", redact.one_line(error))  # Inspect writes it for a coloured terminal
        raise InputError(f"judge {settings.model} cannot be used: {reason}") from None
    client: Any = getattr(model.api, "client", None)
    if hasattr(client, "max_retries"):
        client.max_retries = 0
    watch(model)
    return model


class Configs:
    """The settings of questions to one model, made once per schema."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str | None], Any] = {}

    def of(self, model: Any, name: str, schema: dict[str, Any] | None) -> Any:
        """The model's settings with a schema for the reply (None: without). A copy: a provider may change it."""
        from inspect_ai.model import GenerateConfig

        text = None if schema is None else json.dumps(schema)
        made = self._made.get((name, text))
        if made is None:
            own = GenerateConfig() if text is None else GenerateConfig(response_schema=_schema(name, text))
            made = self._made[name, text] = model.config.merge(own)
        return made.model_copy()


@cache
def _schema(name: str, schema: str) -> Any:
    """A response schema that is shared, not copied: Inspect copies the configuration of every call several times."""
    from inspect_ai.model import ResponseSchema
    from inspect_ai.util import JSONSchema

    class Shared(ResponseSchema):
        def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Shared:
            return self

    return Shared(name=name, json_schema=JSONSchema.model_validate_json(schema))
