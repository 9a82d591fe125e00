"""What a study may use of its cluster at this moment: how much, where, and which nodes it leaves out.

Knows nodes as names with GPUs and CPUs, and nothing of Ray. Nodes come and go while a study runs, and one
that keeps losing trials is left out of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tuner.engines.base import Config, Engine
from tuner.errors import NotEnoughGpus
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.space import Categorical, Domain, SearchSpace

_MOST_COUNTED = 10_000  # combinations of the flags that a trial's GPUs depend on
LOST_IN_A_ROW = 3  # trials that a node loses to infrastructure, one after the other, and is then left out


@dataclass(frozen=True)
class Node:
    """A living node: its id in the cluster, its name for people, what it has in all."""

    id: str
    name: str
    gpus: float = 0.0
    cpus: float = 0.0
    kind: str = ""  # of its GPUs, where that is known


@dataclass
class Capacity:
    """The capacity of the nodes that `nodes()` lists, in GPUs; in CPUs where no trial needs a GPU.

    `gpus(config)` and `cpus(config)` are what a trial needs, `fewest` the least that one does. `share()` is
    the part of all that this study may have beside others, 0 to 1; `gives_way()` whether they go first where
    a single trial is more than that.
    """

    gpus: Callable[[Config], int] = lambda config: 1
    cpus: Callable[[Config], int] = lambda config: 1
    nodes: Callable[[], Sequence[Node]] = lambda: (Node("", "", math.inf, math.inf),)
    counts_gpus: bool = True
    fewest: int = 1
    share: Callable[[], float] = lambda: 1.0
    gives_way: Callable[[], bool] = lambda: False
    left_out: dict[str, str] = field(default_factory=dict)  # by id: the name
    _lost: dict[str, int] = field(default_factory=dict)  # by id: how many in a row

    def usable(self) -> list[Node]:
        """The living nodes that are not left out."""
        return [node for node in self.nodes() if node.id not in self.left_out]

    def needs(self, config: Config) -> int:
        """What a trial of `config` holds."""
        return self.gpus(config) if self.counts_gpus else int(self.cpus_for(config))

    def cpus_for(self, config: Config) -> float:
        """The CPUs of a trial of `config`: as many as it asks for and a node that can run it has now."""
        gpus = self.gpus(config)
        able = [node.cpus for node in self.usable() if node.gpus >= gpus and self.has(node)]
        return min(self.cpus(config), max(able, default=math.inf))

    def has(self, node: Node) -> float:
        """What that node has in all."""
        return node.gpus if self.counts_gpus else node.cpus

    @property
    def total(self) -> float:
        """What the usable nodes have together."""
        return sum(map(self.has, self.usable()))

    @property
    def allowed(self) -> float:
        """What this study may have of that."""
        return self.total * self.share()

    @property
    def largest(self) -> float:
        """What the largest usable node has, which bounds a single trial."""
        return max(map(self.has, self.usable()), default=0.0)

    @property
    def most_gpus(self) -> float:
        """The GPUs that a trial may need; no bound where no node holds any trial: one is awaited."""
        return max((node.gpus for node in self.usable() if self.has(node) >= self.fewest), default=math.inf)

    def lacks(self, config: Config) -> bool:
        """Whether no usable node has the GPUs of `config`."""
        return self.gpus(config) > self.most_gpus

    @property
    def at_once(self) -> int:
        """How many trials fit, of those that need the fewest GPUs; each needs a CPU of its node as well."""
        fit = (min(self.has(node) // self.fewest, node.cpus) for node in self.usable())
        return max(1, sum(map(int, fit)))

    def lost(self, node: str) -> str | None:
        """A trial was lost on the node of that id; the node's name where it is left out from now on.

        The last node that can hold a trial is kept: that nothing works there is told by the trials.
        """
        self._lost[node] = self._lost.get(node, 0) + 1
        usable = {each.id: each.name for each in self.usable() if self.has(each) >= self.fewest}
        if self._lost[node] < LOST_IN_A_ROW or node not in usable or len(usable) == 1:
            return None
        self.left_out[node] = usable[node]
        return usable[node]

    def served(self, node: str) -> None:
        """A trial came to its own end on that node, whatever it showed."""
        self._lost.pop(node, None)

    def avoided(self, config: Config, lost_on: Collection[str]) -> list[str]:
        """Ids of the nodes where a trial shall not run: those left out, and where it was lost before.

        Of the latter none is avoided where no other node could hold the trial.
        """
        needed, usable = self.needs(config), self.usable()
        elsewhere = any(self.has(node) >= needed for node in usable if node.id not in lost_on)
        return sorted({*self.left_out, *(lost_on if elsewhere else ())})


def gpu_flags_of(space: SearchSpace, engine: Engine) -> list[str]:
    """The parameters that a trial's GPUs depend on, as the space spells them."""
    return [flag for flag in space.domains if flag.replace("_", "-") in engine.gpu_flags]


def gpu_range(space: SearchSpace, engine: Engine) -> tuple[int, int]:
    """The fewest and the most GPUs of a configuration of `space`, by the engine's own count."""
    domains = {flag: space.domains[flag] for flag in gpu_flags_of(space, engine)}
    deciding = SearchSpace(domains, space.constraints)  # of which those on other flags forbid nothing here
    if deciding.size > _MOST_COUNTED:  # GPUs grow with each number
        deciding = SearchSpace({flag: _ends(domain) for flag, domain in domains.items()})
    counts = [engine.gpus(config) for config in deciding.grid()] or [engine.gpus({})]
    return min(counts), max(counts)


def _ends(domain: Domain) -> Domain:
    """The lowest and the highest of numbers; any other domain as it is."""
    values = domain.values() or (domain.draw(0.0), domain.draw(1 - 1e-9))
    numbers = [value for value in values if isinstance(value, int | float)]
    return Categorical((min(numbers), max(numbers))) if len(numbers) == len(values) else domain


def capacity_for(
    engine: Engine,
    space: SearchSpace,
    nodes: Callable[[], Sequence[Node]],
    share: Callable[[], float],
    gives_way: Callable[[], bool],
) -> Capacity:
    """What `nodes` have for the trials of `engine` in `space`.

    NotEnoughGpus where no node could run a single one.
    """
    fewest, _ = gpu_range(space, engine)
    largest = max((node.gpus for node in nodes()), default=0.0)
    if fewest > largest:
        local = not os.environ.get("RAY_ADDRESS")
        hint = f" (--num-gpus {fewest} gives a local cluster logical ones)" if local else ""
        raise NotEnoughGpus(
            f"every configuration needs at least {fewest} GPU(s) on one node; the largest node has "
            f"{largest:g}{hint}"
        )
    if not fewest:
        return Capacity(engine.gpus, engine.cpus, nodes, counts_gpus=False)
    return Capacity(engine.gpus, engine.cpus, nodes, fewest=fewest, share=share, gives_way=gives_way)


def refusal(engine: Engine, config: Config, capacity: Capacity) -> Failure | None:
    """Why a configuration cannot run on what there is now; None where it may."""
    if capacity.lacks(config):
        largest = max(node.gpus for node in capacity.usable())
        detail = f"needs {engine.gpus(config)} GPUs on one node; the largest node has {largest:g}"
        return Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, detail)
    try:
        engine.check(config)
    except TrialFailed as refused:
        return refused.failure
    return None
