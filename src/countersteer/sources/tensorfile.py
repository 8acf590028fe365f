"""A safetensors file on disk, read and written in parts: rows, columns and blocks of a matrix, never the whole of it.

An SAE keeps latent j in column j of a row-major matrix of gigabytes. A memory map would count every page it touches
against the process (26 columns of a 65,536-wide matrix touch nearly all of them), so the bytes are read with plain
positioned reads through one small buffer. bf16 and f16 are widened to float32, which is exact.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import InputError, nearest

Array = NDArray[Any]
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BUFFER = 1 << 20
_HEADER_LIMIT = 100 << 20
_PAGE = 4096
_SEEK = 32 << 10  # a read at a new place costs about as much as this many bytes in sequence


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file: safetensors dtype name, shape, and where its bytes start in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def raw(self) -> np.dtype[Any]:
        """The numpy dtype of the bytes (bf16 as unsigned 16-bit words)."""
        return np.dtype(DTYPES[self.dtype])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.raw.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one safetensors file, by name. Every read opens the file anew: nothing stays open."""

    path: Path
    tensors: dict[str, TensorInfo]
    header: str

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read and check the header. Raises InputError for a missing, truncated or malformed file."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(_HEADER_LIMIT, size - 8):
                    raise InputError(f"{path} is truncated or not a safetensors file: download or write it again")
                header = file.read(length).decode("utf-8")
            data = json.loads(header)
            entries = {name: _entry(name, data[name], 8 + length) for name in data if name != "__metadata__"}
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} has a malformed safetensors header ({error}): write it again") from error
        end = max((info.start + info.nbytes for info in entries.values()), default=0)
        if end > size:
            raise InputError(f"{path} is truncated: {size} bytes of at least {end}; download or write it again")
        return cls(path, entries, header)

    def info(self, name: str) -> TensorInfo:
        """The named tensor's entry. Raises InputError."""
        if name not in self.tensors:
            raise InputError(f"{self.path} holds no tensor {name!r}{nearest(name, self.tensors)}")
        return self.tensors[name]

    def vector(self, name: str) -> Array:
        """A whole 1-D tensor."""
        info = self.info(name)
        with self.path.open("rb", buffering=0) as file:
            return widen(self._read(file.fileno(), info.start, info.nbytes, info.raw), info)

    def rows(self, name: str, indices: Sequence[int]) -> Array:
        """Chosen rows [n, columns] of a matrix, in the order asked for."""
        info = self.info(name)
        step = info.shape[1] * info.raw.itemsize
        out = np.empty((len(indices), info.shape[1]), info.raw)
        with self.path.open("rb", buffering=0) as file:
            for at, index in enumerate(indices):
                out[at] = self._read(file.fileno(), info.start + index * step, step, info.raw)
        return widen(out, info)

    def columns(self, name: str, indices: Sequence[int]) -> Array:
        """Chosen columns [rows, n] of a matrix, in the order asked for.

        A few columns are read piece by piece; when the pieces lie close together, blocks of whole rows pass through
        the buffer instead, which is faster and needs no more memory.
        """
        info = self.info(name)
        item, width = info.raw.itemsize, info.shape[1]
        order = np.asarray(indices, np.int64)
        out = np.empty((info.shape[0], len(order)), info.raw)
        runs = _runs(np.unique(order), item)
        if len(runs) * _SEEK >= width * item:
            for start, block in self._raw_blocks(info):
                out[start : start + len(block)] = block[:, order]
            return widen(out, info)
        with self.path.open("rb", buffering=0) as file:
            for row in range(info.shape[0]):
                base = info.start + row * width * item
                for first, stop in runs:
                    piece = self._read(file.fileno(), base + first * item, (stop - first) * item, info.raw)
                    inside = (order >= first) & (order < stop)
                    out[row, inside] = piece[order[inside] - first]
        return widen(out, info)

    def column_block(self, name: str, start: int, stop: int) -> Array:
        """Adjacent columns [rows, stop - start] of a matrix."""
        info = self.info(name)
        item, width = info.raw.itemsize, info.shape[1]
        out = np.empty((info.shape[0], stop - start), info.raw)
        with self.path.open("rb", buffering=0) as file:
            for row in range(info.shape[0]):
                offset = info.start + (row * width + start) * item
                out[row] = self._read(file.fileno(), offset, (stop - start) * item, info.raw)
        return widen(out, info)

    def row_blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """The whole matrix from top to bottom: (first row, block [rows, columns]) within the buffer's size."""
        info = self.info(name)
        for start, block in self._raw_blocks(info):
            yield start, widen(block, info)

    def digests(self, nbytes: int = 64 << 10) -> dict[str, str]:
        """A hash of the first `nbytes` of each tensor."""
        out = {}
        with self.path.open("rb", buffering=0) as file:
            for name, info in sorted(self.tensors.items()):
                head = self._read(file.fileno(), info.start, min(nbytes, info.nbytes), np.dtype(np.uint8))
                out[name] = hashlib.blake2b(head.tobytes(), digest_size=16).hexdigest()
        return out

    def _raw_blocks(self, info: TensorInfo) -> Iterator[tuple[int, Array]]:
        rows, width = info.shape
        step = width * info.raw.itemsize
        count = max(1, BUFFER // max(step, 1))
        with self.path.open("rb", buffering=0) as file:
            for start in range(0, rows, count):
                n = min(count, rows - start)
                block = self._read(file.fileno(), info.start + start * step, n * step, info.raw)
                yield start, block.reshape(n, width)

    def _read(self, fd: int, offset: int, nbytes: int, dtype: np.dtype[Any]) -> Array:
        parts, got = [], 0
        while got < nbytes:
            part = os.pread(fd, nbytes - got, offset + got)
            if not part:
                raise InputError(f"{self.path} is truncated: it ended at byte {offset + got}; write it again")
            parts.append(part)
            got += len(part)
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype)


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], Iterable[Array]]]) -> None:
    """Write a safetensors file from (dtype name, shape, blocks) per tensor, one block in memory at a time.

    The blocks of a tensor, in order, are its bytes; bf16 as unsigned 16-bit words. Raises ValueError if they do not
    fill the shape, OSError if the disk is full.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, _) in tensors.items():
        size = TensorInfo(name, dtype, shape, 0).nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, _, blocks) in tensors.items():
            start = file.tell()
            for block in blocks:
                file.write(np.ascontiguousarray(block, np.dtype(DTYPES[dtype])).data)
            first, stop = header[name]["data_offsets"]
            if file.tell() - start != stop - first:
                raise ValueError(f"{name}: {file.tell() - start} bytes were given for {stop - first}")


def widen(raw: Array, info: TensorInfo) -> Array:
    """The values of raw words: float32 (exact for bf16 and f16), or float64 for a float64 tensor."""
    if info.dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float64 if info.dtype == "F64" else np.float32)


def _entry(name: str, data: Any, base: int) -> TensorInfo:
    first, stop = data["data_offsets"]
    shape = tuple(data["shape"])
    if data["dtype"] not in DTYPES:
        raise ValueError(f"{name} has dtype {data['dtype']}, readable are {', '.join(DTYPES)}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, stop)):
        raise ValueError(f"{name} has a bad shape or offset")
    info = TensorInfo(name, data["dtype"], shape, base + first)
    if stop - first != info.nbytes:
        raise ValueError(f"{name} has {stop - first} bytes for shape {list(shape)} of {data['dtype']}")
    return info


def _runs(columns: Array, item: int) -> list[tuple[int, int]]:
    """Sorted columns joined into [first, stop) stretches where the gap between two is less than a page."""
    runs: list[tuple[int, int]] = []
    for column in columns.tolist():
        if runs and (column - runs[-1][1]) * item < _PAGE:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs
