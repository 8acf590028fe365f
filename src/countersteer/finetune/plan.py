"""What decides an adapter beside its model, and whether an adapter that is there is that one."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from countersteer.core.errors import CountersteerError, InputError
from countersteer.core.fingerprint import fingerprint as digest
from countersteer.engines.embedded.adapter_record import RECORD, read_adapter
from countersteer.finetune.encode import Encoded
from countersteer.finetune.examples import Dataset, Example
from countersteer.finetune.mix import Mixture
from countersteer.finetune.settings import TrainSettings

log = logging.getLogger(__name__)


class Plan:
    """What decides an adapter's weights, beside the model: the examples in their order, seed, settings, steering."""

    def __init__(
        self, mixture: Mixture, data: Dataset, seed: int, settings: TrainSettings, interventions: Sequence[Any]
    ) -> None:  # fmt: skip
        self.mixture, self.data, self.seed, self.settings = mixture, data, seed, settings
        self.interventions = interventions
        self.total = len(mixture.train) + len(mixture.validation)
        self._rest = {
            "data": data.digest, "ratio": mixture.ratio, "seed": seed,
            "train": [e.to_dict() for e in mixture.train], "validation": [e.to_dict() for e in mixture.validation],
            "steering": [None if s is None else s.fingerprint for s in interventions],
        }  # fmt: skip
        self.digest = digest({**self._rest, "settings": settings.decisive})

    def is_that_of(self, facts: Mapping[str, Any]) -> bool:
        """Whether a record or note is of this plan; also one where total or dtype was given and is the default here, or
        the other way round."""
        if facts.get("plan") == self.digest:
            return True
        if facts.get("dtype") != self.settings.weights:
            return False
        equal = {
            digest({**self._rest, "settings": {**self.settings.decisive, "total": total, "dtype": dtype}})
            for total in (None, self.total)
            for dtype in {None, self.settings.dtype, self.settings.weights}
        }
        return str(facts.get("plan")) in equal

    def differs(self, facts: Mapping[str, Any]) -> str:
        """What a finished adapter has that this plan has not, in words; "" if that is not known."""
        if facts.get("data") != self.data.digest:
            return "other data"
        if _total(facts) != self.total and facts.get("ratio") == self.mixture.ratio:
            return (
                f"{_total(facts)} examples, not {self.total}: --total {_total(facts)} makes as many, or train all"
                " ratios in a new folder"
            )
        before, now = facts.get("settings"), json.loads(json.dumps(self.settings.decisive))
        if not isinstance(before, Mapping):
            return ""
        return ", ".join(f"{k} {before.get(k)}, not {now.get(k)}" for k in sorted({*before, *now})
                         if before.get(k) != now.get(k))  # fmt: skip


def tell_totals(out: Path, names: set[str], total: int, data: Dataset) -> None:
    """Say when adapters of the same data beside these have another number of examples: their ratios do not compare."""
    for place in sorted(out.glob(f"ratio-*/{RECORD}")):
        with contextlib.suppress(CountersteerError):
            facts = {} if place.parent.name in names else read_adapter(place.parent).facts
            if facts.get("data") == data.digest and _total(facts) not in (total, 0):
                log.warning(
                    "%s has %d examples, these have %d each: a total that all ratios share (--total) makes them"
                    " comparable", place.parent, _total(facts), total,
                )  # fmt: skip
                return


def _total(facts: Mapping[str, Any]) -> int:
    return int(facts.get("examples", 0)) + int(facts.get("validation_examples", 0))


def require_room(encoded: Sequence[Encoded], examples: Sequence[Example], positions: Any) -> None:
    """Raise InputError for an example that is longer than a model has `positions` (if it says how many)."""
    for tokens, example in zip(encoded, examples, strict=True):
        if isinstance(positions, int) and len(tokens.ids) > positions:
            raise InputError(
                f"an example ({example.prompt!r}) is {len(tokens.ids)} tokens long, more than the model's {positions}"
                " positions; leave it out, or shorten its answer"
            )
