"""The settings of a study file, section by section, with their defaults. Unknown keys and wrong types are refused.

The papers' settings are the defaults where they are known (ESR paper, arXiv 2602.06941).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from countersteer.studies.schema_arms import Clamp, Prefix
from countersteer.studies.schema_finetune import FinetuneSection
from countersteer.studies.schema_judge import JudgeSection


def _levels(value: Any) -> float | tuple[float, ...]:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("the list of levels is empty; give at least one")
        return tuple(_number(v) for v in value)
    return _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number or a list of them")
    return float(value)


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; leave the key out instead")
    return value


def _span(value: str) -> str:
    from countersteer.core.span import Span

    return str(Span.parse(value))


Levels = Annotated[Any, PlainValidator(_levels)]
"""A finite number, or a tuple of them."""
Text = Annotated[str, AfterValidator(_text)]
SpanText = Annotated[str, AfterValidator(_span)]
Count = Annotated[int, Field(ge=1)]
Layer = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """Base of every section: unknown keys, wrong types, NaN and infinity are refused; nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StudySection(Section):
    """What is studied. `steer_layer` and `read_layer` are the SAE's own layer unless given.

    template: "esr-reference" sends prompts as the ESR paper's code does in its Llama runs, with BOS and the assistant
    header twice; "no-thinking" switches a thinking model's thoughts off; the model's own chat template unless given.
    """

    kind: Literal["esr"] = "esr"
    model: Text
    sae: Text
    steer_layer: Layer | None = None
    read_layer: Layer | None = None
    template: Literal["esr-reference", "no-thinking"] | None = None
    span: SpanText = "all"
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0


class EngineSection(Section):
    """Where responses come from. dtype and device: None leaves the engine's own choice, which the header records.

    adapter: a LoRA folder under every response of the study, the unsteered references included. The rest is for kind
    "vllm": `urls` of steered servers, or else how vLLM is started here.
    """

    kind: Literal["embedded", "vllm"] = "embedded"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    device: Text | None = None
    adapter: Text | None = None
    urls: tuple[Text, ...] | None = Field(default=None, strict=False, min_length=1)
    tensor_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    max_model_len: Count | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    quantization: Text | None = None
    enforce_eager: bool | None = None
    rows: Count | None = None

    @property
    def started(self) -> dict[str, Any]:
        """The options with which vLLM is started here, of those that were given."""
        names = set(EngineSection.model_fields) - {"kind", "dtype", "device", "adapter", "urls"}
        return {name: getattr(self, name) for name in sorted(names) if getattr(self, name) is not None}


class LatentsSection(Section):
    """Which latents are steered with. `ids` are used as given; otherwise `count` are drawn and filtered.

    concreteness: lowest concreteness of a label (0-100; 0 asks for none). relevance: "zero" keeps latents that are
    inactive on every prompt token, "top100" drops the 100 most active of each prompt, "any" keeps all.
    """

    count: Count = 500
    ids: tuple[Index, ...] | None = Field(default=None, strict=False)
    concreteness: Percent = 65.0
    relevance: Literal["zero", "top100", "any"] = "zero"
    labels: Text | None = None


class CalibrationSection(Section):
    """How strengths are found: the strength at which the mean first-attempt score is `target` (0-100).

    `low`, `high`, `centre` are in units of median |h| at the steering layer / |W_dec[k]| (units "relative") or in the
    latent's own (units "latent"). `rounds`, `per_round` and `prior_sd` belong to the bisection.
    """

    target: Annotated[float, Field(gt=0, lt=100)] = 30.0
    method: Literal["pooled", "bisection"] = "pooled"
    units: Literal["relative", "latent"] = "relative"
    low: Annotated[float, Field(ge=0)] = 0.0
    high: Annotated[float, Field(gt=0)] = 3.0
    centre: Annotated[float, Field(gt=0)] = 0.8
    max_tokens: Count | None = None
    rounds: Count | None = None
    per_round: Count | None = None
    prior_sd: Annotated[float, Field(gt=0)] | None = None


class TrialsSection(Section):
    """The trials of every arm. prompts: "howto", "held-out", or a file (.txt one per line, .jsonl with "prompt").

    `resample`: fresh first attempts drawn per multi-attempt trial of a steered arm (0: no resample baseline).
    """

    prompts: Text = "howto"
    per_latent: Count = 5
    resample: Annotated[int, Field(ge=0, le=100)] = 3


class SamplingSection(Section):
    """How tokens are chosen. Seeds come from the study's seed by name."""

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.1
    max_tokens: int = 512
    stop: tuple[str, ...] = Field(default=(), strict=False)


class DetectorsSection(Section):
    """How detector latents are searched for (clamp = "detectors").

    rule: "top" keeps the `count` latents of highest AUC, "threshold" those of at least `auc`, "significant" those that
    beat the permutation null at 5%, "strict" the paper's rule (silent on matched, active on 80% of shuffled pairs).
    """

    rule: Literal["top", "threshold", "significant", "strict"] = "top"
    count: Count = 26
    auc: Annotated[float, Field(gt=0.5, le=1)] = 1.0
    derangements: Annotated[int, Field(ge=1, le=1000)] = 5
    draws: Annotated[int, Field(ge=19, le=100_000)] = 500


class DirectionsSection(Section):
    """What directions = "contrast" is made from: mean-centred last-token residuals of `template` with each title."""

    titles: tuple[Text, ...] = Field(default=(), strict=False)
    template: Text = "Tell me about {title}."


class ArmSampling(Section):
    """Sampling settings that one arm changes."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = Field(default=None, strict=False)


class ArmSection(Section):
    """One condition. Everything not set here is the base arm's: same latent, strength, prompt, seed.

    strength: the same strength for every latent, in the latent's own units (0: no intervention). strength_scale: times
    the calibrated strength. A list makes one arm per level. suffix, prefix, system: texts ("{label}" is replaced by the
    latent's label). clamp: latents held at 0: ids, "detectors", "detectors-held-out" (chosen on the other half of the
    prompts), a file of ids, or a table (see RandomClamp). strength_sd: standard deviations from the mean of the
    calibrated strengths, the same strength for every latent. meta_prompt: a suffix by name. prefix: a text or a table
    (see PrefixRule). prompts: other prompts than the study's. directions: "contrast" or a file, in place of latents.
    recalibrate: find strengths under this arm's own conditions. against: the arm it is compared with (base).
    adapter: a LoRA folder, or "finetune" for every adapter of the [finetune] section, one level each.
    """

    strength: Levels | None = None
    strength_scale: Levels | None = None
    suffix: Text | None = None
    prefix: Prefix | None = None
    system: Text | None = None
    clamp: Clamp | None = None
    strength_sd: Levels | None = None
    meta_prompt: Literal["focus", "ignore-label", "self-monitor", "resist"] | None = None
    prompts: Text | None = None
    directions: Text | None = None
    recalibrate: bool = False
    against: Text | None = None
    adapter: Text | None = None
    span: SpanText | None = None
    steer_layer: Layer | None = None
    sampling: ArmSampling | None = None


class Study(Section):
    """A whole study file."""

    study: StudySection
    engine: EngineSection = EngineSection()
    latents: LatentsSection = LatentsSection()
    calibration: CalibrationSection = CalibrationSection()
    trials: TrialsSection = TrialsSection()
    sampling: SamplingSection = SamplingSection()
    judge: JudgeSection = JudgeSection()
    detectors: DetectorsSection = DetectorsSection()
    directions: DirectionsSection = DirectionsSection()
    finetune: FinetuneSection | None = None
    arms: dict[str, ArmSection]


LATER: dict[tuple[str, ...], str] = {
    ("engine", "device_map"): "load the model on one device",
    ("arms", "*", "model"): "run a second study with the other model",
    ("arms", "*", "judge"): "run a second study with the other judge",
}
"""Settings that are planned but not part of this version, with what to use instead."""
