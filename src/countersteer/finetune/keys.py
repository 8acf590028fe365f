"""What decides a study's training data: kept with it, so that data made for anything else is not taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from countersteer import organism
from countersteer.core.fingerprint import fingerprint
from countersteer.finetune.data import plain
from countersteer.finetune.examples import NORMAL, Dataset
from countersteer.studies.spec import Spec

MADE_FOR = "made_for"
"""The key of the data's header that holds it."""
_SAID = {
    "model": "another model", "tokenizer": "another tokenizer", "template_hash": "another chat template",
    "template": "another [study] template", "dtype": "another [engine] dtype", "seed": "another seed",
    "prompts": "other prompts, or their order", "sampling": "another sampling", "templates": "other templates",
    "corrections": "another number of corrections", "normals": "another number of normal examples",
    "overlap": "another overlap", "episodes": "other episodes", "sae": "another SAE",
}  # fmt: skip


def decisive(
    spec: Spec, train: Sequence[str], identity: Mapping[str, Any], *, sae: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """Plain data of everything that decides the data of a study's [finetune] section, its episodes left to their run.

    `identity`: of the model, by `identity_of` or `identity_in`. `sae`: fingerprint of the SAE that episodes used.
    """
    from countersteer.engines.embedded.model import parse_dtype

    section, study = spec.settings.finetune, spec.settings.study
    assert section is not None
    return {
        **identity, "template": study.template,
        "dtype": str(parse_dtype(spec.settings.engine.dtype)).removeprefix("torch."), "seed": study.seed,
        "prompts": fingerprint(list(train)), "sampling": plain(spec.sampling), "templates": section.templates,
        "corrections": section.corrections, "normals": section.normals, "overlap": section.overlap,
        "episodes": section.episodes, "sae": sae,
    }  # fmt: skip


def identity_in(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a loaded model, from what its engine describes."""
    return {
        "model": facts.get("model_fingerprint"), "tokenizer": facts.get("tokenizer"),
        "template_hash": facts.get("template_hash"),
    }  # fmt: skip


def identity_of(name: str, template: str | None) -> dict[str, Any]:
    """The identity of a model by its name, without loading it where its files are on this machine. Raises InputError.

    `template`: the variation of its chat template.
    """
    from countersteer.engines.embedded.adapter import text_facts
    from countersteer.engines.embedded.model import fingerprint_of, load_model
    from countersteer.engines.embedded.text import load_tokenizer

    print_ = fingerprint_of(name)
    if print_ is not None:
        try:
            tokenizer = load_tokenizer(
                str(organism.path(name) if name in organism.SHIPPED else Path(name).expanduser())
            )
        except Exception:  # the hub and the tokenizers raise many kinds; loading will say what is wrong
            print_ = None
    if print_ is None:
        loaded = replace(load_model(name), template=template)
        return {"model": loaded.fingerprint, "tokenizer": loaded.tokenizer_hash, "template_hash": loaded.template_hash}
    text = text_facts(tokenizer, template)
    return {"model": print_, "tokenizer": text.tokenizer_hash, "template_hash": text.template_hash}


def differs(kept: Dataset, wanted: Mapping[str, Any], train: Sequence[str], held_out: Sequence[str]) -> str:
    """What kept data was made for, if not for what is wanted (`decisive`); else nothing.

    A study that has grown may measure on more prompts than the data was told to keep apart: they were compared.
    """
    if set(kept.train) != set(train) or not set(kept.held_out) <= set(held_out):
        return "other prompts"
    given = kept.facts.get(MADE_FOR)
    if not isinstance(given, dict):
        return _differs_from_older(kept, wanted)
    return next((said for name, said in _SAID.items() if given.get(name) != wanted[name]), "")


def _differs_from_older(kept: Dataset, wanted: Mapping[str, Any]) -> str:
    """The same for data of a version that kept less."""
    sources, sampling = kept.facts.get("sources", {}), wanted["sampling"]
    pairs = {
        "model": (kept.facts.get("model_fingerprint"), wanted["model"]),
        "seed": (kept.facts.get("seed"), wanted["seed"]),
        "templates": (sources.get("templates"), wanted["templates"]),
        "episodes": (bool(sources.get("runs")), wanted["episodes"]),
        "normals": (len(kept.of_kind(NORMAL)), wanted["normals"]),
        "sampling": (kept.facts.get("sampling"), {k: sampling[k] for k in ("temperature", "max_tokens")}),
    }
    return next((_SAID[name] for name, (a, b) in pairs.items() if a != b), "")
