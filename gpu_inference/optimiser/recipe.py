"""Recipes: transforms by name, with their numbers, in the one order in which they make sense.

parse_recipe("channels=0.25+low-rank=0.95+int8").apply(model, judge)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx import ModelProto

from gpu_inference.errors import RecipeError
from gpu_inference.optimiser.channels import prune_channels
from gpu_inference.optimiser.evolution import evolve_sparsity
from gpu_inference.optimiser.folding import fold
from gpu_inference.optimiser.halves import compute_in_halves
from gpu_inference.optimiser.loading import set_metadata
from gpu_inference.optimiser.low_rank import decompose
from gpu_inference.optimiser.magnitude import prune_globally, prune_layers
from gpu_inference.optimiser.quantisation import quantise_dynamic, quantise_static
from gpu_inference.optimiser.repair import repair
from gpu_inference.optimiser.storage import store_halves, store_integers, store_sparse

if TYPE_CHECKING:
    from gpu_inference.optimiser.measure import Judge

#: The property of a model that says what was done to it.
RECIPE_KEY: Final = "polarstream.recipe"

Apply = Callable[[ModelProto, float, "Judge"], ModelProto]


@dataclass(frozen=True, slots=True)
class Transform:
    """One kind of step.

    Attributes:
        stage: transforms run by rising stage; of one stage there is one in a recipe.
        apply: (model, number, judge) to model.
        usual: the number where none is given; None where there is none to give.
        text: for people.
    """

    stage: int
    apply: Apply
    usual: float | None
    text: str


TRANSFORMS: Final[Mapping[str, Transform]] = {
    "fold": Transform(
        0,
        lambda m, _, __: fold(m),
        None,
        "constants computed, batch norms into convolutions, dead code dropped",
    ),
    "channels": Transform(1, lambda m, x, _: prune_channels(m, x), 0.25, "the share of channels is removed"),
    "low-rank": Transform(
        2,
        lambda m, x, _: decompose(m, x),
        0.95,
        "layers in parts that keep the share of their weights' squares",
    ),
    "prune": Transform(
        3, lambda m, x, _: prune_globally(m, x), 0.5, "weights that their layers miss least are zero"
    ),
    "prune-layers": Transform(
        3, lambda m, x, _: prune_layers(m, float(x)), 0.5, "the smallest weights of each layer are zero"
    ),
    "evolve": Transform(
        3,
        lambda m, x, judge: evolve_sparsity(m, judge.calibrator.kept, floor=x),
        0.99,
        "zeros by layer, as many as an evolution finds that keep the share",
    ),
    "fp16": Transform(4, lambda m, _, __: store_halves(m), None, "weights stored as float16"),
    "fp16-whole": Transform(4, lambda m, _, __: compute_in_halves(m), None, "the model computes in float16"),
    "int8": Transform(4, lambda m, _, __: store_integers(m, "int8"), None, "weights stored as int8"),
    "int4": Transform(4, lambda m, _, __: store_integers(m, "int4"), None, "weights stored as int4"),
    "int8-dynamic": Transform(
        4, lambda m, _, __: quantise_dynamic(m), None, "int8 arithmetic, ranges measured at each run"
    ),
    "int8-static": Transform(
        4,
        lambda m, _, judge: quantise_static(m, judge.calibrator.samples.pieces),
        None,
        "int8 arithmetic, ranges measured on the data",
    ),
    "repair": Transform(
        5,
        lambda m, _, judge: repair(m, fold(judge.original), judge.calibrator.samples.pieces),
        None,
        "channels get back their mean and spread on the data",
    ),
    "sparse": Transform(6, lambda m, _, __: store_sparse(m), None, "zeros are not stored"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A transform and its number.

    Attributes:
        name: of the transform.
        number: None where it has none.
    """

    name: str
    number: float | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}={self.number:.3g}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps by stage; `fold` is always the first."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "+".join(str(step) for step in self.steps if step.name != "fold") or "fold"

    def apply(self, model: ModelProto, judge: Judge) -> ModelProto:
        """The transformed model; `model` stays as it is.

        Raises:
            ModelError: a step can't be done to this model.
        """
        for step in self.steps:
            model = TRANSFORMS[step.name].apply(model, step.number or 0.0, judge)
        set_metadata(model, RECIPE_KEY, str(self))  # a copy: fold has made one
        return model


def recipe_of(steps: Mapping[str, float | None]) -> Recipe:
    """A recipe of steps in any order.

    Raises:
        RecipeError: no such transform, a number out of range, or two of one stage.
    """
    found: dict[int, Step] = {0: Step("fold")}
    for name, number in steps.items():
        transform = TRANSFORMS.get(name)
        if transform is None:
            raise RecipeError(f"no transform {name!r}: take {', '.join(TRANSFORMS)}")
        if number is not None and transform.usual is None:
            raise RecipeError(f"{name} takes no number: leave '={number:g}' out")
        value = transform.usual if number is None else number
        if value is not None and not 0 < value <= (1 if name in ("low-rank", "evolve") else 0.99):
            raise RecipeError(f"{name}={value:g} is out of range: give a share between 0 and 1")
        other = found.get(transform.stage)
        if other is not None and other.name != name:
            raise RecipeError(f"{other.name} and {name} exclude each other: take one of them")
        found[transform.stage] = Step(name, value)
    return Recipe(tuple(found[stage] for stage in sorted(found)))


def parse_recipe(text: str) -> Recipe:
    """A recipe as people write it: names with `+` between them, numbers after `=`.

    Raises:
        RecipeError: see recipe_of.
    """
    steps: dict[str, float | None] = {}
    for part in text.split("+"):
        name, _, number = part.strip().partition("=")
        try:
            steps[name] = float(number) if number else None
        except ValueError:
            raise RecipeError(f"'{part}' has no number after '=': write {name}=0.5") from None
    return recipe_of(steps)


#: What a first look at a model tries.
USUAL: Final = tuple(
    parse_recipe(text)
    for text in (
        "fold",
        "fp16",
        "fp16-whole",
        "int8",
        "int8-dynamic",
        "int8-static",
        "int4",
        "prune=0.5",
        "prune=0.8+sparse",
        "channels=0.25",
        "low-rank=0.95",
    )
)
