"""Which bundle a request gets, and whether that bundle acts or is only measured.

`shadow` measures what the default bundle would do and changes nothing, `canary` lets it act in a share of the
conversations, `enforce` in all. A conversation keeps its side: its place in [0, 1) is a hash, so a growing share only
adds conversations. An explicit choice, where the policy allows it, is enforced whatever the rollout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from countersteer.serving.errors import Refusal
from countersteer.serving.keys import Key, Role
from countersteer.serving.policy import NONE, Policy, Served


@dataclass(frozen=True)
class Decision:
    """The bundle of a request (None: unsteered), whether it acts, and why."""

    bundle: Served | None
    acts: bool
    why: str

    @property
    def mode(self) -> str:
        """enforced, shadow or unsteered."""
        if self.bundle is None:
            return "unsteered"
        return "enforced" if self.acts else "shadow"


def conversation_of(key: Key, header: str | None, texts: Sequence[str]) -> str:
    """What identifies a conversation: X-Conversation-Id, else system prompt and first user message; always the key.

    A digest (32 hexadecimal digits): it can be logged without logging what was said.
    """
    parts = [key.name, "id", header] if header is not None else [key.name, "texts", *texts]
    return hashlib.blake2b(json.dumps(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def place(conversation: str, salt: str) -> float:
    """The conversation's place in [0, 1): it is in a canary of a share above that."""
    digest = hashlib.blake2b(f"{salt}/{conversation}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def decide(policy: Policy, key: Key, *, asked: str | None, conversation: str) -> Decision:
    """The decision for one request; `asked` is the bundle that it names, "none", or None. Raises Refusal."""
    if asked is not None:
        return _chosen(policy, key, asked)
    bundle = policy.bundles.get(policy.default)
    if bundle is None:
        return Decision(None, False, "no default bundle")
    if policy.mode == "enforce":
        return Decision(bundle, True, "enforce")
    if policy.mode == "shadow":
        return Decision(bundle, False, "shadow")
    if place(conversation, policy.salt) < policy.share:
        return Decision(bundle, True, "in the canary")
    return Decision(None, False, "not in the canary")


def _chosen(policy: Policy, key: Key, asked: str) -> Decision:
    if key.role < Role.CHOOSE:
        raise Refusal(403, "role", "this key may not choose a bundle; leave `bundle` out", param="bundle")
    if asked not in policy.choose:
        allowed = ", ".join(sorted(policy.choose)) or "no choice at all"
        raise Refusal(403, "choice", f"the policy does not let requests choose that bundle; it allows {allowed}",
                      param="bundle")  # fmt: skip
    if asked == NONE:
        return Decision(None, False, "chosen")
    return Decision(policy.bundles[asked], True, "chosen")
