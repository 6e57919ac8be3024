"""Nodes that another engine runs, as few steps: neighbours among them become one node.

Each step on the host waits for the device and copies tensors there and back; what one such node hands to the
next needn't leave the host. Two of them can be one where no other node lies on a way between them.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gpu_inference.graph.ir import Graph, Node


@dataclass(slots=True)
class Partition(Node):
    """Several nodes in their order, as one; inputs are what they read from outside, outputs what others read.

    Attributes:
        nodes: what it is made of.
    """

    nodes: list[Node] = field(default_factory=list)


def partitioned(graph: Graph, elsewhere: Callable[[Node], bool]) -> Graph:
    """The graph with nodes that run elsewhere merged, in topological order. `graph` stays what it is.

    Args:
        graph: to rewrite.
        elsewhere: whether a node runs on another engine.
    """
    foreign = [elsewhere(node) for node in graph.nodes]
    if not any(foreign):
        return graph
    groups = _groups(graph, foreign)
    readers = defaultdict(set)
    for number, node in enumerate(graph.nodes):
        for name in node.reads:
            readers[name].add(groups[number])
    kept = graph.output_names()
    members: dict[int, list[Node]] = defaultdict(list)
    for number, node in enumerate(graph.nodes):
        members[groups[number]].append(node)

    def merged(group: int) -> Node:
        nodes = members[group]
        if not foreign[group] or (len(nodes) == 1 and not nodes[0].captures):
            return nodes[0]
        made = list(dict.fromkeys(name for node in nodes for name in node.outputs if name))
        read = dict.fromkeys(name for node in nodes for name in node.reads)
        return Partition(
            "+".join(dict.fromkeys(node.op for node in nodes)),
            [name for name in read if name not in made],
            [name for name in made if name in kept or readers[name] - {group}],
            name=nodes[0].name,
            opset=nodes[0].opset,
            nodes=nodes,
        )

    return replace(graph, nodes=[merged(group) for group in _in_order(_edges(graph, groups), groups)])


def _groups(graph: Graph, foreign: list[bool]) -> list[int]:
    """For each node the first node of its group."""
    makers = {name: number for number, node in enumerate(graph.nodes) for name in node.outputs if name}
    groups = list(range(len(graph.nodes)))
    for number, node in enumerate(graph.nodes):
        for maker in sorted({makers[name] for name in node.reads if name in makers}):
            one, other = groups[maker], groups[number]
            if not (foreign[maker] and foreign[number]) or one == other:
                continue
            if not _detour(_edges(graph, groups), one, other):
                first = min(one, other)
                groups = [first if group in (one, other) else group for group in groups]
    return groups


def _edges(graph: Graph, groups: list[int]) -> dict[int, set[int]]:
    """Groups that read what a group makes."""
    makers = {
        name: groups[number] for number, node in enumerate(graph.nodes) for name in node.outputs if name
    }
    edges: dict[int, set[int]] = defaultdict(set)
    for number, node in enumerate(graph.nodes):
        for name in node.reads:
            if name in makers and makers[name] != groups[number]:
                edges[makers[name]].add(groups[number])
    return edges


def _detour(edges: dict[int, set[int]], start: int, end: int) -> bool:
    """Whether a way leads from `start` to `end` through something else: as one they would be a cycle."""
    todo, seen = list(edges[start] - {end}), set[int]()
    while todo:
        group = todo.pop()
        if group == end:
            return True
        if group not in seen:
            seen.add(group)
            todo.extend(edges[group])
    return False


def _in_order(edges: dict[int, set[int]], groups: list[int]) -> list[int]:
    """Groups, makers before readers, else as their first nodes stood."""
    waits: dict[int, int] = defaultdict(int)
    for targets in edges.values():
        for target in targets:
            waits[target] += 1
    ready = [group for group in sorted(set(groups)) if not waits[group]]
    order = []
    while ready:
        group = heapq.heappop(ready)
        order.append(group)
        for target in edges[group]:
            waits[target] -= 1
            if not waits[target]:
                heapq.heappush(ready, target)
    return order
