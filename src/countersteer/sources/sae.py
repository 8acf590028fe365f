"""A sparse autoencoder in SAELens's folder format, of which only the rows in use are read from disk.

Nothing of sae-lens is imported. A latent leaves here with its conventions resolved: x = read . h + bias, active iff
x > max(threshold, 0). Whole-dictionary work (encode, max-pooled activations, decoder norms) streams the file in
blocks of latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from countersteer import organism
from countersteer.core.errors import InputError, RefusedError
from countersteer.core.fingerprint import fingerprint
from countersteer.core.site import Site
from countersteer.sources.fold import Rows, fold_encoder, require_finite
from countersteer.sources.labels import Label, find_labels
from countersteer.sources.sae_config import CONFIG_NAME, READABLE, SAEConfig, read_config
from countersteer.sources.tensorfile import Array, TensorFile

if TYPE_CHECKING:
    from torch import Tensor

    from countersteer.edits.vectors import Direction, Latent, Latents

WEIGHTS_NAME = "sae_weights.safetensors"


@dataclass(frozen=True, eq=False)
class SAE:
    """An SAE on disk. `labels` and `concreteness` hold what the folder's labels file says, by latent index."""

    folder: Path
    config: SAEConfig
    file: TensorFile = field(repr=False)
    fingerprint: str
    label_rows: dict[int, Label] = field(default_factory=dict, repr=False)

    @property
    def site(self) -> Site:
        """Where its latents read: the output of a decoder layer."""
        return self.config.site

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def d_sae(self) -> int:
        """The number of latents."""
        return self.config.d_sae

    @property
    def architecture(self) -> str:
        """standard, jumprelu, gated or topk."""
        return self.config.architecture

    @property
    def dtype(self) -> str:
        """The dtype of the weights in the file, e.g. "BF16"."""
        return self.file.info("W_dec").dtype

    @property
    def labels(self) -> dict[int, str]:
        """Label text by latent index; empty without a labels file."""
        return {index: label.text for index, label in self.label_rows.items()}

    @property
    def concreteness(self) -> dict[int, float]:
        """Concreteness (0-100) by latent index, where the labels file gives one."""
        return {i: label.concreteness for i, label in self.label_rows.items() if label.concreteness is not None}

    def require_width(self, d_model: int, *, model: str = "the model") -> None:
        """Raises InputError unless residuals of this SAE are `d_model` wide."""
        if d_model != self.d_model:
            raise InputError(
                f"SAE {self.folder} is {self.d_model} wide but {model} is {d_model} wide: use the SAE of that model"
            )

    def latent(self, index: int) -> Latent:
        """One latent. Raises InputError out of range, RefusedError for a TopK SAE (see `direction`)."""
        return self.latents([index])[0]

    def latents(self, indices: Iterable[int]) -> Latents:
        """Several latents in the order asked for; one pass over the encoder however many they are.

        Rows are float32, exactly the file's values; float64 for a float64 file, and where a gated latent's e^r or an
        input factor multiplies them. Biases are folded in float64. Raises InputError for an index out of range or
        non-finite weights, RefusedError for a TopK SAE.
        """
        from countersteer.edits.vectors import Latent, Latents

        chosen = self._check(indices)
        self.require_activations()
        if not chosen:
            return Latents()
        columns = self.file.columns("W_enc", chosen)
        if self.architecture == "gated" or self.config.norm_factor != 1.0:
            columns = columns.astype(np.float64)
        rows = fold_encoder(self.file, self.config, chosen, columns=columns)
        write = self._decoder(chosen)
        return Latents(
            Latent(
                index,
                self.site,
                _tensor(rows.read[:, at]),
                float(rows.bias[at]),
                _tensor(write[at]),
                float(rows.threshold[at]),
                self.fingerprint,
                None if (label := self.label_rows.get(index)) is None else label.text,
            )
            for at, index in enumerate(chosen)
        )

    def direction(self, index: int) -> Direction:
        """The decoder row of one latent as a direction: for adding it, whatever the architecture."""
        from countersteer.edits.vectors import Direction

        (chosen,) = self._check([index])
        label = self.label_rows.get(chosen)
        return Direction(
            _tensor(self._decoder([chosen])[0]),
            self.site,
            origin=f"sae {self.fingerprint}, latent {chosen}",
            label=label.text if label else None,
        )

    def encode(self, h: Tensor) -> Tensor:
        """Activations [tokens, d_sae] of residuals h [tokens, d_model], in float32 or h's dtype if wider.

        For inputs small enough to hold the result; `max_activations` never does. Raises InputError, RefusedError.
        """
        from countersteer.sources.encode import encode

        return encode(self, h)

    def max_activations(
        self,
        residuals: Iterable[Tensor],
        *,
        skip_first: bool = True,
        chunk: int = 4096,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Largest activation of every latent in each text, [n_texts, d_sae], from residuals [tokens, d_model].

        Position 0 (BOS, whose activations are huge) is left out unless `skip_first` is False. The file is streamed
        once per batch of texts, `chunk` latents at a time; memory does not grow with the number of tokens.
        `progress` gets the number of texts done. Raises InputError, RefusedError.
        """
        from countersteer.sources.encode import max_activations

        return max_activations(self, residuals, skip_first=skip_first, chunk=chunk, progress=progress)

    def decoder_norms(self) -> NDArray[np.float64]:
        """|W_dec[k]| of every latent, [d_sae], streamed. Raises InputError for non-finite weights."""
        out = np.empty(self.d_sae)
        for start, block in self.file.row_blocks("W_dec"):
            wide = block.astype(np.float64)
            out[start : start + len(block)] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        require_finite(out, self.file, "W_dec")
        return out / self.config.norm_factor

    def encoder_block(self, start: int, stop: int, *, wide: bool = False) -> Rows:
        """The encoder side of latents start to stop - 1, in float64 if `wide`. Raises InputError, RefusedError."""
        self.require_activations()
        block = self.file.column_block("W_enc", start, stop)
        block = block.astype(np.float64) if wide else block
        return fold_encoder(self.file, self.config, slice(start, stop), columns=block)

    def _decoder(self, indices: Sequence[int]) -> Array:
        rows = self.file.rows("W_dec", indices)
        require_finite(rows, self.file, "W_dec")
        return rows if self.config.norm_factor == 1.0 else rows.astype(np.float64) / self.config.norm_factor

    def _check(self, indices: Iterable[int]) -> list[int]:
        if isinstance(indices, int) or not isinstance(indices, Iterable):
            raise InputError(f"sae.latents takes a list of indices, got {indices!r}; sae.latent takes one")
        chosen = []
        for index in indices:
            if isinstance(index, bool) or not isinstance(index, int | np.integer):
                raise InputError(f"a latent index must be a whole number, got {index!r}")
            if not 0 <= index < self.d_sae:
                raise InputError(f"latent {index} is out of range: {self.folder} has latents 0 to {self.d_sae - 1}")
            chosen.append(int(index))
        return chosen

    def require_activations(self) -> None:
        """Raises RefusedError for a TopK SAE, whose latents have no activation of their own."""
        if self.architecture == "topk":
            raise RefusedError(
                f"reading or clamping a latent of the TopK SAE {self.folder}",
                "whether it is active depends on all other latents of the token",
                "convert it to JumpReLU (one threshold per latent), or add a decoder row with sae.direction(i)",
            )


def load_sae(folder: str | Path, *, labels: bool = True) -> SAE:
    """Open an SAE in SAELens's folder format, or a shipped one as "organism" or "organism-plain".

    Reads `cfg.json`, the header of `sae_weights.safetensors`, 64 KiB of each tensor (for the fingerprint) and, if
    `labels` is on, the folder's labels file where there is one. Raises InputError for missing or malformed files and
    RefusedError for what cannot be an edit of the residual stream (see `sae_config`).
    """
    if not isinstance(folder, str | Path):
        raise InputError(f"an SAE is a folder, or 'organism'; got {type(folder).__name__}")
    if folder in organism.SHIPPED:
        folder = organism.sae_path(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no SAE folder at {folder}: it must hold {CONFIG_NAME} and {WEIGHTS_NAME}; or say 'organism'")
    config = read_config(folder)
    file = TensorFile.open(folder / WEIGHTS_NAME)
    _check_shapes(config, file)
    decides = {
        "architecture": config.architecture,
        "d_model": config.d_model,
        "d_sae": config.d_sae,
        "site": str(config.site),
        "subtract_b_dec": config.subtract_b_dec,
        "norm_factor": config.norm_factor,
    }
    digest = fingerprint({"config": decides, "header": file.header, "tensors": file.digests()})
    return SAE(folder, config, file, digest, find_labels(folder, count=config.d_sae) if labels else {})


def _check_shapes(config: SAEConfig, file: TensorFile) -> None:
    d, n = config.d_model, config.d_sae
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    shapes |= {name: (n,) for name in READABLE[config.architecture]}
    for name, shape in shapes.items():
        if (got := file.info(name).shape) != shape:
            need = f"{CONFIG_NAME} (d_in {d}, d_sae {n}) needs {list(shape)}"
            raise InputError(f"{file.path}: {name} has shape {list(got)}, but {need}")
    extra = set(file.tensors) - set(shapes)
    if "scaling_factor" in extra and bool((file.vector("scaling_factor") == 1).all()):
        extra.remove("scaling_factor")  # older files carry a factor of ones that means nothing
    if extra:
        raise RefusedError(
            f"{file.path}: tensor {min(extra)!r}",
            f"a {config.architecture} SAE has none of that name, so the file may mean something else",
            f"check 'architecture' in {CONFIG_NAME}, or fetch the SAE again",
        )


def _tensor(values: Array) -> Any:
    import torch

    return torch.from_numpy(np.array(values, order="C"))
