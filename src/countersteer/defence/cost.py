"""What a defence costs in time: interleaved pairs of runs with and without it, the median ratio and its interval.

CPU time of the process where the model runs on the CPU (wall time would measure the neighbours), wall time elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from countersteer.core.request import Request, Sampling
from countersteer.defence.data import Scenario
from countersteer.edits.edit import Intervention

STREAMS = 16
TOKENS = 24


def cost(engine: Any, intervention: Intervention, scenarios: Sequence[Scenario], *, pairs: int) -> dict[str, Any]:
    """Ratio of times defended / undefended over `pairs` interleaved pairs of `STREAMS` greedy requests.

    The interval is that of the median, from order statistics (95%). Also tokens per second and milliseconds per token.
    """
    from scipy import stats

    sampling = Sampling(temperature=0.0, max_tokens=TOKENS)
    rows = [scenarios[i % len(scenarios)] for i in range(STREAMS)]
    clock = time.process_time if str(engine.describe().get("device", "cpu")) == "cpu" else time.perf_counter

    def run(given: Intervention | None) -> float:
        requests = [Request(prompt=s.user, system=s.malicious, intervention=given, sampling=sampling) for s in rows]
        begun = clock()
        done = engine.run(requests, errors="return")
        spent = clock() - begun
        tokens = sum(len(d.tokens) for d in done if not isinstance(d, Exception))
        return spent / max(tokens, 1)

    run(None), run(intervention)
    ratios, plain, defended = [], [], []
    for i in range(pairs):
        order = [None, intervention] if i % 2 else [intervention, None]
        spent = {given is None: run(given) for given in order}
        ratios.append(spent[False] / spent[True])
        plain.append(spent[True])
        defended.append(spent[False])
    ratios.sort()
    k = int(stats.binom.ppf(0.025, pairs, 0.5))
    return {
        "clock": "CPU time" if clock is time.process_time else "wall time",
        "pairs": pairs,
        "streams": STREAMS,
        "ratio": statistics.median(ratios),
        "interval": [ratios[max(k - 1, 0)], ratios[min(pairs - k, pairs - 1)]],
        "tokens_per_second": {"undefended": 1 / statistics.median(plain), "defended": 1 / statistics.median(defended)},
        "ms_per_token": {"undefended": 1e3 * statistics.median(plain), "defended": 1e3 * statistics.median(defended)},
    }
