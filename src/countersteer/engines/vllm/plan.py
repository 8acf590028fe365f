"""Which rows an intervention needs in which table, and the ledger that shares rows by content.

The scheduler and every worker keep the same ledger: the scheduler to know what fits, a worker to know where rows lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.edits.edit import Edit, Intervention
from countersteer.edits.vectors import ReadRows
from countersteer.engines.vllm.settings import Settings

READS = -1
"""The table number of readout rows."""


@dataclass(frozen=True)
class Piece:
    """Rows of one edit (or readout group) in table (`layer`, `stage`); equal `key`s share rows."""

    layer: int
    stage: int
    key: str
    rows: int
    edit: Edit | None = None
    read: ReadRows | None = None


def pieces_of(intervention: Intervention | None, reads: Sequence[ReadRows] = ()) -> tuple[Piece, ...]:
    """The pieces of an intervention, edits in order, then of its readouts.

    An edit that occurs twice needs rows of its own each time, since it adds up. Steps are numbered per layer.
    """
    out: list[Piece] = []
    times: Counter[tuple[int, int, str]] = Counter()
    for layer in intervention.layers if intervention is not None else ():
        assert intervention is not None
        here = [e for e in intervention.edits if e.site.layer == layer]
        steps = sorted({e.order for e in here})
        for edit in here:
            if edit.span.restart:
                edit.span.bounds(0)  # refused by name: only the embedded engine follows the text
            stage, key = steps.index(edit.order), edit.on("all").fingerprint
            again = times[layer, stage, key]
            times[layer, stage, key] += 1
            out.append(Piece(layer, stage, f"{key}/{again}", edit.rows, edit=edit))
    for group in reads:
        key = fingerprint({"read": group.read.double().numpy(), "bias": group.bias.double().numpy()})
        out.append(Piece(group.site.layer, READS, key, group.read.shape[0], read=group))
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
        need[piece.layer, piece.stage] += piece.rows
    for (layer, stage), rows_needed in need.items():
        budget, name = (settings.reads, "reads") if stage == READS else (settings.rows[stage], "rows")
        if rows_needed > budget:
            raise RefusedError(
                f"a request of {rows_needed} {'readouts' if stage == READS else 'rows'} at layer {layer}",
                f"this engine has {budget} there",
                f"starting it with {name} >= {rows_needed}",
            )


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

    def release(self, user: str) -> list[tuple[Piece, list[int]]]:
        """Give a user's rows back; those that nobody uses any more are returned."""
        gone = []
        for piece in self.users.pop(user, ()):
            table = self._table(piece)
            if piece.key not in table.held:
                continue
            rows, users = table.held[piece.key]
            users.discard(user)
            if not users:
                del table.held[piece.key]
                table.free.extend(rows)
                gone.append((piece, rows))
        return gone
