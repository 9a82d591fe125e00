"""A model's architecture: the sizes that its memory and its time follow from. Knows no names and no files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one compressed vector a token and layer.

    `rank` values of it are compressed keys and values, `rope` the part of the keys that has the position.
    A head's keys have `nope` + `rope` values, its values `value`. Queries are compressed to `query_rank`; 0
    where they are not.
    """

    rank: int
    rope: int
    nope: int
    value: int
    query_rank: int


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer with gated MLPs.

    A token uses `active_experts` of a layer's `experts` (of size `intermediate`) and, where there is one, the
    shared expert; the first `dense_layers` have one MLP of `dense_intermediate` in their place. In
    `sliding_layers` of the layers a token sees the `window` tokens before it only. `stored` names how the
    checkpoint is quantised: "" not at all.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    context: int  # tokens
    tied: bool = False  # whether the output head shares the embedding's weights
    experts: int = 1
    active_experts: int = 1
    shared_intermediate: int = 0
    dense_layers: int = 0
    dense_intermediate: int = 0
    sliding_layers: int = 0
    window: int = 0  # tokens
    latent: Latent | None = None
    stored: str = ""

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention projections, all layers."""
        if (latent := self.latent) is None:
            return self.layers * self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        keys = latent.nope + latent.rope
        queries = self.hidden * self.heads * keys
        if latent.query_rank:
            queries = latent.query_rank * (self.hidden + self.heads * keys)
        down = self.hidden * (latent.rank + latent.rope)
        up = latent.rank * self.heads * (latent.nope + latent.value)
        return self.layers * (queries + down + up + self.heads * latent.value * self.hidden)

    @property
    def always_parameters(self) -> int:
        """Weights that every token uses but the output head: attention, shared experts, dense layers."""
        mixed = self.layers - self.dense_layers
        mlps = mixed * self.shared_intermediate + self.dense_layers * self.dense_intermediate
        return self.attention_parameters + 3 * self.hidden * mlps

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert, all layers that have any."""
        return (self.layers - self.dense_layers) * 3 * self.hidden * self.intermediate

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights that are loaded."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.always_parameters + self.experts * self.expert_parameters + embeddings
