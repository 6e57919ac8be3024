"""Several models' answers made one, and cascades. A member that fails degrades the answer, which says so.

| method | classification | numbers (regression, series) | detection |
|---|---|---|---|
| mean | mean score of each class | mean | boxes fused |
| weighted | the same by weight | by weight | the same by weight |
| vote | the label of most members | - | boxes that most members found, fused |
| median | median score of each class | median | - |

Boxes are fused as in R. Solovyev, W. Wang, T. Gabruseva, "Weighted boxes fusion" (2021): boxes of one label
that overlap become their mean by score and weight; the score is the mean over all members that answered, so
that a box which few found gets less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np

from gpu_inference.errors import ModelError
from gpu_inference.tasks.answers import BOX_DIGITS, SCORE_DIGITS, Answer, significant

Method: TypeAlias = Literal["mean", "weighted", "vote", "median"]
METHODS: Final[tuple[str, ...]] = get_args(Method)


class Ensemble:
    """Combines the answers of its members.

    Args:
        members: aliases or models, by name.
        method: see above.
        weights: of each member, for weighted and as a vote's weight; None: all alike.
        same_box: overlap from which on boxes are the same.

    Raises:
        ModelError: the numbers of members and weights differ, or a weight isn't positive.
    """

    def __init__(
        self,
        members: Sequence[str],
        method: Method = "mean",
        weights: Sequence[float] | None = None,
        same_box: float = 0.55,
    ) -> None:
        weights = [1.0] * len(members) if weights is None else list(weights)
        if not members or len(weights) != len(members) or min(weights) <= 0:
            raise ModelError(f"{len(weights)} weights for {len(members)} members: give each a positive one")
        if len(set(members)) < len(members):
            raise ModelError("a member is named twice: name each once, and give it a larger weight")
        self._weights = dict(zip(members, weights, strict=True))
        self._method, self._same_box = method, same_box

    def combine(self, answers: Mapping[str, Answer]) -> Answer:
        """Makes one answer.

        Args:
            answers: of the members to one input; one that is absent, or whose answer has an error, failed.

        Returns:
            The answer of the task. `members` says how many have answered ("2 of 3"), `failed` who didn't and
            why, where somebody didn't. If nobody did: `{"error": "no_member"}` with both.

        Raises:
            ModelError: the members' answers are of different tasks, or the method has no meaning for theirs.
        """
        failed = {
            name: str(answers[name]["error"]) if name in answers else "no answer"
            for name in self._weights
            if name not in answers or "error" in answers[name]
        }
        good = {name: answers[name] for name in self._weights if name not in failed}
        told: Answer = {"members": f"{len(good)} of {len(self._weights)}"}
        if failed:
            told["failed"] = failed
        if not good:
            return {"error": "no_member"} | told
        weights = [self._weights[name] if self._method in ("weighted", "vote") else 1.0 for name in good]
        given = list(good.values())
        for kind, combine in (("boxes", self._boxes), ("values", self._values), ("forecast", self._forecast)):
            if all(kind in answer for answer in given):
                return combine(given, weights) | told
        if all("top" in answer for answer in given):
            return self._classes(given, weights) | told
        keys = "; ".join(", ".join(answer) for answer in given)
        raise ModelError(f"answers of different tasks can't be combined ({keys}): take members of one task")

    def _classes(self, given: list[Answer], weights: list[float]) -> Answer:
        scores = [{one["label"]: one["score"] for one in answer["top"]} for answer in given]
        labels = list(dict.fromkeys(label for one in scores for label in one))
        numbers = {one["label"]: one["class"] for answer in given for one in answer["top"]}
        table = np.array([[one.get(label, 0.0) for label in labels] for one in scores])
        by = np.array(weights) / sum(weights)
        means = np.median(table, axis=0) if self._method == "median" else by @ table
        votes = np.zeros(len(labels))
        if self._method == "vote":
            for one, weight in zip(given, by, strict=True):
                votes[labels.index(one["label"])] += weight
        order = sorted(range(len(labels)), key=lambda i: (-votes[i], -means[i], numbers[labels[i]]))
        most = max(len(answer["top"]) for answer in given)
        top = [
            {"label": labels[i], "class": numbers[labels[i]], "score": round(float(means[i]), SCORE_DIGITS)}
            for i in order[:most]
        ]
        answer: Answer = {"label": top[0]["label"], "score": top[0]["score"], "top": top}
        if self._method == "vote":
            answer["votes"] = round(float(votes[order[0]]), SCORE_DIGITS)
        return answer

    def _values(self, given: list[Answer], weights: list[float]) -> Answer:
        names = self._same_names([answer["values"] for answer in given])
        table = np.array([[answer["values"][name] for name in names] for answer in given])
        values = self._numbers(table, weights)
        answer: Answer = {
            "values": {name: significant(x) for name, x in zip(names, values.tolist(), strict=True)}
        }
        if "units" in given[0]:
            answer["units"] = given[0]["units"]
        return answer

    def _forecast(self, given: list[Answer], weights: list[float]) -> Answer:
        names = self._same_names([answer["forecast"] for answer in given])
        forecast = {}
        for name in names:
            steps = min(len(answer["forecast"][name]) for answer in given)
            table = np.array([answer["forecast"][name][:steps] for answer in given])
            forecast[name] = [significant(x) for x in self._numbers(table, weights).tolist()]
        return {"forecast": forecast}

    def _numbers(self, table: Any, weights: list[float]) -> Any:
        match self._method:
            case "vote":
                raise ModelError("numbers can't vote: take mean, weighted or median")
            case "median":
                return np.median(table, axis=0)
        return np.average(table, axis=0, weights=weights)

    def _same_names(self, given: list[dict[str, Any]]) -> list[str]:
        if any(one.keys() != given[0].keys() for one in given):
            raise ModelError("the members tell different values: take members that tell the same")
        return list(given[0])

    def _boxes(self, given: list[Answer], weights: list[float]) -> Answer:
        if self._method == "median":
            raise ModelError("boxes have no median: take mean, weighted or vote")
        return {
            "boxes": fuse(
                [answer["boxes"] for answer in given], weights, self._same_box, self._method == "vote"
            )
        }


def fuse(
    given: Sequence[Sequence[Answer]], weights: Sequence[float], same_box: float, by_majority: bool = False
) -> list[Answer]:
    """Fuses boxes.

    Args:
        given: the boxes of each member that answered.
        weights: of the members.
        same_box: overlap with the fused box from which on a box belongs to it.
        by_majority: only boxes that members of more than half the weight found.

    Returns:
        The fused boxes, best first.
    """
    flat = sorted(
        ((box, member) for member, boxes in enumerate(given) for box in boxes),
        key=lambda one: -one[0]["score"] * weights[one[1]],
    )
    clusters: list[_Cluster] = []
    for box, member in flat:
        same = [
            cluster for cluster in clusters if cluster.label == box["label"] and member not in cluster.members
        ]
        if same:
            shared = [_overlap(box["box"], cluster.corners) for cluster in same]
            best = max(shared)
            if best > same_box:
                same[shared.index(best)].add(box, member, weights[member])
                continue
        clusters.append(_Cluster(box, member, weights[member]))
    total = sum(weights)
    found = []
    for cluster in clusters:
        if by_majority and 2 * sum(weights[member] for member in cluster.members) <= total:
            continue
        corners = [round(side, BOX_DIGITS) for side in cluster.corners]
        score = round(cluster.power / total, SCORE_DIGITS)
        found.append({"label": cluster.label, "class": cluster.number, "score": score, "box": corners})
    return sorted(found, key=lambda one: -one["score"])


class _Cluster:
    """Boxes that are the same object."""

    def __init__(self, box: Answer, member: int, weight: float) -> None:
        self.label, self.number = box["label"], box["class"]
        self.members: list[int] = []
        self.power = 0.0
        self.corners: list[float] = box["box"]
        self._sums = [0.0] * 4
        self.add(box, member, weight)

    def add(self, box: Answer, member: int, weight: float) -> None:
        """Takes a box in."""
        power = box["score"] * weight
        self._sums = [total + side * power for total, side in zip(self._sums, box["box"], strict=True)]
        self.power += power
        self.members.append(member)
        if self.power:
            self.corners = [total / self.power for total in self._sums]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """As `agreement.overlaps`, of two boxes: NumPy costs more than so few numbers (3 x 20 boxes: 0.8 ms)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


class CascadeRule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """When the answer of the first, cheap model isn't enough and the second one runs."""

    #: Labels that the second model is for; empty: all.
    labels: tuple[str, ...] = ()
    #: The score of such a label, or of any such box, must be in this range: unsure, or sure enough to look.
    min_score: float = 0.0
    max_score: float = 1.0

    def wants_second(self, first: Answer) -> bool:
        """Whether the second model runs on the same input; it does where the first one failed."""
        if "error" in first:
            return True
        if "boxes" in first:
            return any(self._meant(box["label"], box["score"]) for box in first["boxes"])
        if "masks" in first:
            return any(not self.labels or mask["label"] in self.labels for mask in first["masks"])
        return self._meant(first.get("label", ""), first.get("score", 1.0))

    def final(self, first: Answer, second: Answer | None) -> Answer:
        """The answer of both.

        Args:
            first: of the cheap model.
            second: of the dear one; None if it wasn't asked.

        Returns:
            The second answer if there is one, else the first, with `stage` 1 or 2. A second one that failed
            is told in `failed`.
        """
        if second is None:
            return first | {"stage": 1}
        if "error" in second and "error" not in first:
            return first | {"stage": 1, "failed": {"second": second["error"]}}
        return second | {"stage": 2}

    def _meant(self, label: str, score: float) -> bool:
        return (not self.labels or label in self.labels) and self.min_score <= score <= self.max_score
