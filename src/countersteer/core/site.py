"""Where in a model: a decoder layer and a point of it, with one text form (`resid_post.20`)."""

from __future__ import annotations

from dataclasses import dataclass

from countersteer.core.errors import InputError, RefusedError

POINTS = ("resid_post",)


@dataclass(frozen=True, order=True)
class Site:
    """A place in the residual stream: the output of decoder layer `layer` (0-based), after the MLP's residual add."""

    layer: int
    point: str = "resid_post"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise InputError(f"layer must be a whole number >= 0, got {self.layer!r}")
        if self.point not in POINTS:
            raise RefusedError(
                f"site point {self.point!r}",
                "edits and readouts act on the residual stream at the output of a decoder layer only",
                "use resid_post.N",
            )

    def __str__(self) -> str:
        return f"{self.point}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that `text` names, e.g. `resid_post.20`. Raises InputError."""
        point, _, layer = text.partition(".")
        if not layer.isdigit():
            raise InputError(f"site {text!r} is not of the form resid_post.N")
        return cls(int(layer), point)
