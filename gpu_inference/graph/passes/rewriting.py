"""What rewriting passes ask of a graph: who reads a tensor, and whether it may disappear."""

from __future__ import annotations

from gpu_inference.graph.ir import Array, Graph, Node


class Readers:
    """Consumers of every tensor, kept up to date while nodes are merged.

    Args:
        graph: being rewritten.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers = graph.consumers()
        self._outputs = graph.output_names()

    def only(self, name: str) -> Node | None:
        """The one node that reads a tensor once, where nobody else needs it."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def all(self, name: str) -> list[Node]:
        """Every reading; empty where the tensor must stay."""
        return [] if name in self._outputs else self._readers.get(name, [])

    def constant(self, name: str) -> Array | None:
        """A constant's elements."""
        return self._graph.constants.get(name)

    def moved(self, name: str, old: Node, new: Node) -> None:
        """`new` reads the tensor instead of `old`."""
        self._readers[name] = [new if node is old else node for node in self._readers.get(name, [])]


def remove(graph: Graph, gone: set[int]) -> None:
    """Drops nodes by id()."""
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
