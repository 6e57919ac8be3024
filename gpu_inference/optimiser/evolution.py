"""Evolutionary pruning: how many weights each layer can lose, found by trying.

A genome is a sparsity for each layer. Those that keep the floor are ranked by how many weights they zero, the
others, behind them, by what they keep. The best halves of each generation are crossed and changed at random
(truncation selection with elitism; the seed fixes everything). So layers that matter stay whole, which one
sparsity for all of them can't do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from onnx import ModelProto

from gpu_inference.graph.importer import import_graph
from gpu_inference.graph.ir import Array
from gpu_inference.optimiser.loading import weights_of
from gpu_inference.optimiser.magnitude import prune_layers

_LARGEST: Final = 0.95
#: Chance that a layer changes, and by how much (standard deviation).
_CHANGES: Final = 0.3
_SPREAD: Final = 0.15


def evolve_sparsity(
    model: ModelProto,
    kept: Callable[[ModelProto], float],
    floor: float,
    *,
    population: int = 12,
    generations: int = 8,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, of, note: None,
) -> ModelProto:
    """The sparsest model found that keeps the floor; the model itself where nothing sparser does.

    Args:
        model: in float32.
        kept: what a candidate keeps, 0 to 1.
        floor: the least of it.
        population: genomes in a generation.
        generations: after the first.
        seed: of every choice.
        progress: called with (done, of, note) after each candidate.
    """
    graph = import_graph(model)
    names = [weight.name for weight in weights_of(graph)]
    if not names:
        return model
    sizes = np.asarray([graph.constants[name].size for name in names], np.float64)
    chance = np.random.default_rng(seed)
    total, done = population * (generations + 1), 0

    def pruned(genome: Array) -> ModelProto:
        return prune_layers(model, dict(zip(names, genome.tolist(), strict=True)))

    def rank(genome: Array) -> tuple[bool, float]:
        nonlocal done
        share = kept(pruned(genome))
        done += 1
        zeros = float(genome @ sizes / sizes.sum())
        fits = share >= floor
        progress(done, total, f"{zeros:.0%} zeros" if fits else "")
        return fits, zeros if fits else share

    # from nothing pruned, which keeps everything, to nearly all
    ladder = [np.full(len(names), share) for share in np.linspace(0, _LARGEST, population)]
    ranked = sorted(((rank(genome), genome) for genome in ladder), key=_by_rank, reverse=True)
    for _ in range(generations):
        parents = ranked[: max(2, population // 3)]
        children = [_child(chance, parents) for _ in range(population)]
        ranked += [(rank(genome), genome) for genome in children]
        ranked = sorted(ranked, key=_by_rank, reverse=True)[:population]
    (fits, _), best = ranked[0]
    return pruned(best) if fits else model


def _by_rank(entry: tuple[tuple[bool, float], Array]) -> tuple[bool, float]:
    return entry[0]


def _child(chance: np.random.Generator, parents: list[tuple[tuple[bool, float], Array]]) -> Array:
    one, other = (parents[i][1] for i in chance.integers(0, len(parents), 2))
    genome = np.where(chance.random(len(one)) < 0.5, one, other)
    changes = chance.random(len(one)) < _CHANGES
    changes[chance.integers(len(one))] = True
    return np.asarray(np.clip(genome + changes * chance.normal(0.02, _SPREAD, len(one)), 0, _LARGEST))
