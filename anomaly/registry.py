"""Which detectors there are, and how one is made from configuration.

Another package adds its own under the entry-point group `polarstream.detectors`; the name of the entry
point is the `type` that a configuration asks for, its value a class that meets `Detector`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any, cast

import msgspec

from anomaly.errors import BadDetector
from streams.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anomaly.detector import Detector, DetectorConfig

ENTRY_POINTS = "polarstream.detectors"
DEFAULT = "auto"

#: The detectors that come with polarstream, by `type`, and where each is: imported when it is asked for,
#: since the compiled ones need numba (65 MB).
DETECTORS: dict[str, str] = {
    "ar": "anomaly.detectors.ar:ArDetector",
    "auto": "anomaly.detectors.auto:AutoDetector",
    "bocpd": "anomaly.detectors.bocpd:BocpdDetector",
    "cusum": "anomaly.detectors.cusum:CusumDetector",
    "dropout": "anomaly.detectors.dropout:DropoutDetector",
    "ewz": "anomaly.detectors.ewz:EwzDetector",
    "graph": "anomaly.detectors.graph:GraphDetector",
    "half_space_trees": "anomaly.detectors.half_space_trees:HalfSpaceTreesDetector",
    "knn": "anomaly.detectors.knn:KnnDetector",
    "novelty": "anomaly.detectors.novelty:NoveltyDetector",
    "onnx": "agents.onnx_detector:OnnxDetector",
    "out_of_range": "anomaly.detectors.out_of_range:OutOfRangeDetector",
    "pca": "anomaly.detectors.pca:PcaDetector",
    "physics": "anomaly.detectors.physics:PhysicsDetector",
    "rate_of_change": "anomaly.detectors.rate_of_change:RateOfChangeDetector",
    "rrcf": "anomaly.detectors.rrcf:RrcfDetector",
    "seasonal": "anomaly.detectors.seasonal:SeasonalDetector",
    "robust": "anomaly.detectors.robust:RobustDetector",
    "spiking": "anomaly.detectors.spiking:SpikingDetector",
    "stuck": "anomaly.detectors.stuck:StuckDetector",
}


def find_detector(name: str) -> type[Detector]:
    """Return the class of a detector, ours or another package's.

    Raises:
        BadDetector: there is none of this name.
    """
    if name in DETECTORS:
        module, _, attribute = DETECTORS[name].partition(":")
        return cast("type[Detector]", getattr(importlib.import_module(module), attribute))
    others = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in others.names:
        return cast("type[Detector]", others[name].load())
    known = ", ".join(sorted({*DETECTORS, *others.names}))
    raise BadDetector([Fault("type", f"{name!r} is not a detector: use one of {known}")])


def build_detector(
    config: Mapping[str, Any],
    fields: Sequence[str],
    field_thresholds: Mapping[str, float | None] | None = None,
) -> Detector:
    """Make a detector from its table of the configuration.

    Args:
        config: the table; `type` names the detector ("auto" without it), the rest are its parameters.
        fields: the names of the value columns, in order.
        field_thresholds: thresholds of single fields that override the detector's own; None counts as none.

    Raises:
        BadDetector: with every fault, each with its path inside the table.
    """
    kind = find_detector(str(config.get("type", DEFAULT)))
    parameters = {key: value for key, value in config.items() if key != "type"}
    overrides = {field: value for field, value in (field_thresholds or {}).items() if value is not None}
    faults = [
        Fault(f"fields.{field}.threshold", f"{value} is not positive")
        for field, value in overrides.items()
        if not value > 0
    ]
    settings = _convert(parameters, kind.config_type, faults)
    if settings is None or faults:
        raise BadDetector(faults)
    make = cast("Any", kind)
    return cast("Detector", make(settings, tuple(fields), overrides))


def _convert(
    parameters: Mapping[str, Any], kind: type[DetectorConfig], faults: list[Fault]
) -> DetectorConfig | None:
    """Check every parameter on its own, so that all faults are found at once."""
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    good = True
    for key, value in parameters.items():
        if key not in known:
            faults.append(Fault(key, f"is not a parameter: use one of {', '.join(known)}"))
            good = False
            continue
        try:
            msgspec.convert(value, known[key].type)
        except msgspec.ValidationError as error:
            faults.append(Fault(key, f"{value!r}: {str(error)[:1].lower()}{str(error)[1:]}"))
            good = False
    missing = [name for name, field in known.items() if field.required and name not in parameters]
    faults.extend(Fault(name, "is missing") for name in missing)
    if not good or missing:
        return None
    settings = msgspec.convert(dict(parameters), kind)
    faults.extend(Fault(path, message) for path, message in settings.faults().items())
    return settings
