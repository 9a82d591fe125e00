"""Kinds of GPU on a cluster: which nodes have the one that a task requires, and what its trials ask Ray for.

Ray labels a node with the kind of its GPUs (H100, A100-40G ...). Nodes whose GPUs are logical are labelled by
hand: `ray start --labels ray.io/accelerator-type=H100`. Knows labels, and nothing else of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.errors import NotEnoughGpus

LABEL = "ray.io/accelerator-type"


def kind_of(labels: Mapping[str, Any]) -> str:
    """The kind of a node's GPUs; empty where its labels do not say."""
    return str(labels.get(LABEL, ""))


def required(wanted: str | None, gpus: Mapping[str, float], *, simulated: bool) -> str:
    """The kind that trials need, as the cluster spells it; empty where any will do.

    `gpus` are the cluster's by kind. NotEnoughGpus where none is of the kind that is `wanted`; an engine that
    is simulated does without.
    """
    if wanted is None:
        return ""
    spelt = {kind.lower(): kind for kind, count in gpus.items() if kind and count}
    if (kind := spelt.get(wanted.lower())) is not None:
        return kind
    if simulated:
        return ""
    there = ", ".join(
        f"{count:g} {kind or 'of no known kind'}" for kind, count in sorted(gpus.items()) if count
    )
    raise NotEnoughGpus(
        f"resources.accelerator_type: no node has {wanted}; the cluster's GPUs: {there or 'none'} "
        f"(a node says what it has by the label {LABEL})"
    )


def selector(kind: str) -> dict[str, str]:
    """The labels that a trial's node must have."""
    return {LABEL: kind} if kind else {}
