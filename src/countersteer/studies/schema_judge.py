"""The [judge] section of a study: who grades, and what decides its grades.

How fast and how dearly a language model may grade is no part of a study; `run` takes that as options, so that it can
change from one day to the next.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from countersteer.judging.llm_redact import bad_url


class JudgeSection(BaseModel):
    """model: "offline", or a language model as PROVIDER/NAME. The offline judge scores against `references` unsteered
    responses per prompt, frozen first. The rest belongs to a language model: the rubric (a name or a file), the server,
    temperature, longest reply, seed, and whether replies are asked for by JSON schema.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str = "offline"
    references: Annotated[int, Field(ge=1)] = 5
    rubric: str | None = None
    base_url: str | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    structured: bool | None = None

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        provider, _, name = value.partition("/")
        if value != "offline" and not (provider.strip() and name.strip()):
            raise ValueError("must be 'offline' or PROVIDER/NAME such as anthropic/claude-haiku-4-5")
        return value

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is not None and (wrong := bad_url(value)):
            raise ValueError(wrong)
        return value

    @property
    def offline(self) -> bool:
        """Whether the study is graded without a language model."""
        return self.model == "offline"
