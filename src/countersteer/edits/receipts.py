"""Reading a receipt: was anything changed, and is it an error that nothing was?

Unconditional edits (add, removal) that change no token are a no-op. Conditional edits (clamps, limits, StTP, StMP,
gates) may rest: a valid result with 0 tokens changed. An edit whose span held no position at all never had a chance:
that is a no-op whichever kind it is; only `from(restart)` may hold none. Each edit is judged by its own entry, so that
none hides behind another one of its layer; an engine that measures whole layers only is judged by the layer.
"""

from __future__ import annotations

from countersteer.core.request import Receipt
from countersteer.edits.edit import Intervention


def no_op(intervention: Intervention, receipt: Receipt, *, prompt_tokens: int, tokens: int) -> str | None:
    """Why a finished request's intervention was a no-op, or None if it was not.

    `tokens` is the number of positions that were computed (the last generated token is never read back).
    """
    for edit in intervention.edits:
        if edit.span.restart:
            continue
        if edit.span.count(prompt_tokens, tokens) == 0:
            return (
                f"{edit.method} at {edit.site} edited nothing: its span {edit.span} held none of the {tokens} "
                f"positions (prompt {prompt_tokens}); widen the span or generate more tokens"
            )
    layers = {layer.site: layer for layer in receipt.layers}
    left = {site: list(layer.edits) for site, layer in layers.items()}
    for edit in intervention.edits:
        layer, entries = layers.get(str(edit.site)), left.get(str(edit.site))
        changed = layer.tokens_changed if layer else 0
        if entries:  # one per edit, in their order; edits that cancel out change nothing together
            changed = min(changed, entries.pop(0).tokens_changed)
        rests = edit.conditional or (edit.span.restart and edit.span.kind == "from")  # until(restart) is never empty
        if not rests and not changed:
            return (
                f"{edit.method} at {edit.site} changed no token although it is unconditional: the write is zero or "
                "is lost in rounding to the model's dtype; raise the strength"
            )
    return None
