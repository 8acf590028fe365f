"""Which rows an intervention needs in which table, and the ledger that shares rows by content.

The scheduler and every worker keep the same ledger: the scheduler to know what fits, a worker to know where rows lie.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from countersteer.core.errors import InputError, RefusedError
from countersteer.edits.edit import Edit, Intervention
from countersteer.edits.vectors import ReadRows
from countersteer.engines.vllm.settings import Settings

READS = -1
"""The table number of readout rows."""
KEPT = 4096
"""Plans that a planner remembers."""


@dataclass(frozen=True)
class Piece:
    """Rows of one edit (or readout group) in table (`layer`, `stage`); equal `key`s share rows.

    `part` numbers the edits of one request in one table: each is measured by itself.
    """

    layer: int
    stage: int
    key: str
    rows: int
    edit: Edit | None = None
    read: ReadRows | None = None
    part: int = 0


def edits_at(intervention: Intervention, layer: int) -> list[int]:
    """The numbers of the edits at a layer, in an order that depends on their content alone.

    Interventions of equal content are one for every process, whatever the order in which their edits were mentioned.
    """
    here = [i for i, e in enumerate(intervention.edits) if e.site.layer == layer]
    return sorted(here, key=lambda i: intervention.edits[i].fingerprint)


def pieces_of(intervention: Intervention | None, reads: Sequence[ReadRows] = ()) -> tuple[Piece, ...]:
    """The pieces of an intervention, layer by layer in the order of `edits_at`, then of its readouts.

    An edit that occurs twice needs rows of its own each time, since it adds up. Steps are numbered per layer.
    """
    out: list[Piece] = []
    for layer in intervention.layers if intervention is not None else ():
        assert intervention is not None
        here = [intervention.edits[i] for i in edits_at(intervention, layer)]
        steps = sorted({e.order for e in here})
        times: Counter[tuple[int, str]] = Counter()
        parts: Counter[int] = Counter()
        for edit in here:
            if edit.span.restart:
                edit.span.bounds(0)  # refused by name: only the embedded engine follows the text
            stage, key = steps.index(edit.order), edit.rows_fingerprint
            out.append(Piece(layer, stage, f"{key}/{times[stage, key]}", edit.rows, edit=edit, part=parts[stage]))
            times[stage, key] += 1
            parts[stage] += 1
    for group in reads:
        out.append(Piece(group.site.layer, READS, group.fingerprint, group.read.shape[0], read=group))
    return tuple(out)


def check_fits(pieces: Iterable[Piece], settings: Settings, *, n_layers: int, d_model: int) -> None:
    """Raises InputError or RefusedError for what these tables can never hold, whoever else is in flight."""
    need: Counter[tuple[int, int]] = Counter()
    for piece in pieces:
        rows = piece.edit.write if piece.edit is not None else piece.read.read if piece.read is not None else None
        what = f"edit {piece.edit.method}" if piece.edit is not None else "a readout"
        if piece.layer >= n_layers:
            raise InputError(f"{what} is at layer {piece.layer}, but the model has layers 0..{n_layers - 1}")
        if rows is not None and rows.shape[1] != d_model:
            raise InputError(f"{what} is {rows.shape[1]} wide, but the model's residual stream is {d_model} wide")
        if settings.layers and piece.layer not in settings.layers:
            raise RefusedError(
                f"{what} at layer {piece.layer}",
                f"this engine was started with layers {list(settings.layers)}",
                f"starting it with layers that hold {piece.layer}",
            )
        if piece.stage >= len(settings.rows):
            raise RefusedError(
                f"order({piece.stage}) at layer {piece.layer}",
                f"this engine was started with {len(settings.rows)} step(s)",
                "starting it with one entry of rows per step, such as rows=(128, 16)",
            )
        if piece.stage != READS and piece.part >= settings.parts:
            raise RefusedError(
                f"a request of {piece.part + 1} edits at layer {piece.layer}",
                f"this engine measures {settings.parts} there, each by itself",
                f"starting it with parts >= {piece.part + 1}",
            )
        if not all(torch.isfinite(t.float()).all() for t in _numbers(piece)):
            # An infinite row would turn every other request's 0 * infinity into NaN.
            raise InputError(f"{what} at layer {piece.layer} holds numbers beyond float32; scale them down")
        need[piece.layer, piece.stage] += piece.rows
    for (layer, stage), rows_needed in need.items():
        budget, name = (settings.reads, "reads") if stage == READS else (settings.rows[stage], "rows")
        if rows_needed > budget:
            raise RefusedError(
                f"a request of {rows_needed} {'readouts' if stage == READS else 'rows'} at layer {layer}",
                f"this engine has {budget} there",
                f"starting it with {name} >= {rows_needed}",
            )


def _numbers(piece: Piece) -> list[torch.Tensor]:
    """What a piece writes into tables of float32."""
    if piece.edit is not None:
        given = (piece.edit.read, piece.edit.write, piece.edit.bias, piece.edit.slope, piece.edit.intercept)
        return [t for t in given if t is not None]
    return [piece.read.read, piece.read.bias] if piece.read is not None else []


class Planner:
    """Pieces by content, checked once: a request with a known intervention costs a look-up."""

    def __init__(self, settings: Settings, *, n_layers: int, d_model: int) -> None:
        self.settings, self.n_layers, self.d_model = settings, n_layers, d_model
        self._kept: OrderedDict[tuple[str | None, tuple[str, ...]], tuple[Piece, ...]] = OrderedDict()

    def pieces(self, intervention: Intervention | None, reads: Sequence[ReadRows] = ()) -> tuple[Piece, ...]:
        """The pieces of a request that can be held here. Raises InputError or RefusedError."""
        key = None if intervention is None else intervention.fingerprint, tuple(g.fingerprint for g in reads)
        found = self._kept.get(key)
        if found is None:
            found = pieces_of(intervention, reads)
            check_fits(found, self.settings, n_layers=self.n_layers, d_model=self.d_model)
            self._kept[key] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


@dataclass
class Table:
    """Free rows of one table and who uses the others."""

    free: list[int]
    held: dict[str, tuple[list[int], set[str]]] = field(default_factory=dict)


class Ledger:
    """Rows in use by request id. `reserve` is all or nothing; released rows are free at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tables: dict[tuple[int, int], Table] = {}
        self.users: dict[str, tuple[Piece, ...]] = {}

    def _table(self, piece: Piece) -> Table:
        key = piece.layer, piece.stage
        if key not in self.tables:
            size = self.settings.reads if piece.stage == READS else self.settings.rows[piece.stage]
            self.tables[key] = Table(list(range(size)))
        return self.tables[key]

    def fits(self, pieces: Sequence[Piece]) -> bool:
        """Whether the pieces can be reserved now."""
        if len(self.users) >= self.settings.lanes:
            return False
        need: Counter[tuple[int, int]] = Counter()
        for piece in pieces:
            if piece.key not in self._table(piece).held:
                need[piece.layer, piece.stage] += piece.rows
        return all(len(self.tables[key].free) >= rows for key, rows in need.items())

    def reserve(self, user: str, pieces: tuple[Piece, ...]) -> list[tuple[Piece, list[int], bool]]:
        """(piece, its row numbers, whether they are new) for every piece. The pieces must fit."""
        out = []
        for piece in pieces:
            table = self._table(piece)
            new = piece.key not in table.held
            if new:
                rows, table.free = table.free[: piece.rows], table.free[piece.rows :]
                table.held[piece.key] = rows, set()
            rows, users = table.held[piece.key]
            users.add(user)
            out.append((piece, rows, new))
        self.users[user] = pieces
        return out

    def release(self, user: str) -> None:
        """Give a user's rows back; those that nobody uses any more are free."""
        for piece in self.users.pop(user, ()):
            table = self._table(piece)
            if piece.key not in table.held:
                continue
            rows, users = table.held[piece.key]
            users.discard(user)
            if not users:
                del table.held[piece.key]
                table.free.extend(rows)
