"""Configuration of streams as typed structs: what a topic holds, how it is read and watched.

The structs only say what is legal for one value (`Meta`); what must hold between values is checked by
`polarstream.config`, which also reports every fault at once. Transform and window settings stand here as
data; `streams.transforms` and `streams.windows` give them meaning. A detector's settings are a plain dict,
since `streams` knows no detector: the registry in `anomaly` converts it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta

PositiveInt: TypeAlias = Annotated[int, Meta(ge=1)]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
NonNegative: TypeAlias = Annotated[float, Meta(ge=0)]
NonNegativeInt: TypeAlias = Annotated[int, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Severity: TypeAlias = Literal["info", "warning", "critical"]

SecurityProtocol: TypeAlias = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class KafkaConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How Kafka is reached. Without `bootstrap_servers` the local broker is meant."""

    bootstrap_servers: list[str] = []
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    #: PEM file of the authorities that sign the brokers' certificates; None: those of the system.
    ssl_cafile: str | None = None
    #: PEM files of the client's own certificate and key, where the broker asks for one.
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    request_timeout_ms: Annotated[int, Meta(ge=1000, le=600_000)] = 40_000


class TopicsConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Names and storage of the topics that polarstream writes."""

    predictions: str = "predictions"
    alerts: str = "alerts"
    analytics: str = "analytics"
    dead_letter: str = "dead-letter"
    #: Compacted: rules, silences and labels that are set while workers run.
    control: str = "control"
    #: Compacted: which models are live.
    models: str = "models"
    retention_hours: PositiveInt = 168
    #: Bytes kept per partition.
    retention_bytes: Annotated[int, Meta(ge=1_048_576)] = 1_073_741_824
    replication_factor: Annotated[int, Meta(ge=1, le=32_767)] = 1


class ScaleConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="scale"):
    """`x * factor + offset`."""

    factor: float = 1.0
    offset: float = 0.0


class ClipConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="clip"):
    """`x` held between `min` and `max`; either may be left out."""

    min: float | None = None
    max: float | None = None


class DeltaConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="delta"):
    """The difference to the sensor's value before."""


class RateConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="rate"):
    """The change in `per_s` seconds, from the sensor's value before."""

    per_s: Positive = 1.0


class RollingConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="rolling"):
    """A statistic of the sensor's values of the last `window_s` seconds of event time."""

    stat: Literal["mean", "min", "max"]
    window_s: Positive


TransformConfig: TypeAlias = ScaleConfig | ClipConfig | DeltaConfig | RateConfig | RollingConfig


class TumblingConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="tumbling"):
    """Windows of `size_s` seconds side by side, aligned to the epoch."""

    name: str
    size_s: Positive
    allowed_lateness_s: NonNegative = 0.0


class HoppingConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="hopping"):
    """Windows of `size_s` seconds, one begun every `hop_s` seconds, aligned to the epoch."""

    name: str
    size_s: Positive
    hop_s: Positive
    allowed_lateness_s: NonNegative = 0.0


class SessionConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True, tag="session"):
    """Windows that end when a sensor is silent for `gap_s` seconds."""

    name: str
    gap_s: Positive
    allowed_lateness_s: NonNegative = 0.0


WindowConfig: TypeAlias = TumblingConfig | HoppingConfig | SessionConfig


class FieldConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One measured value of a reading."""

    unit: str = ""
    #: A reading with a value outside `min` and `max` is refused (`out_of_bounds`).
    min: float | None = None
    max: float | None = None
    #: A reading without a required field is refused; an optional one is NaN where it is absent or null.
    required: bool = True
    #: Overrides the detector's threshold for this field.
    threshold: Positive | None = None
    #: Applied in order, before the detector and the windows.
    transforms: list[TransformConfig] = []


class AlertConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """When an alert opens and resolves."""

    #: Consecutive anomalous readings of a sensor that open an alert.
    open_after: PositiveInt = 1
    #: A reading counts as calm below this fraction of the threshold ...
    resolve_below: Fraction = 0.7
    #: ... and so many calm readings in a row resolve the alert.
    resolve_after: PositiveInt = 5
    severity: Severity = "warning"
    #: Anomalous readings in a row must also last so long, in event time, before they open an alert.
    min_duration_s: NonNegative = 0.0
    #: Alerts of one site that begin in the same so many seconds are a group; 0: no groups.
    group_window_s: NonNegative = 0.0
    #: From so many sensors on, a group has an alert of its own.
    group_min: Annotated[int, Meta(ge=2)] = 3
    #: A sensor that is missing for so many times its usual gap is an alert; None: silence is no alert.
    silent_after: Annotated[float, Meta(ge=2)] | None = None
    #: ... but not before so many seconds.
    silent_min_s: NonNegative = 30.0


class ThresholdConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What counts as anomalous for some sensors and fields. Patterns have `*`, `?` and `[...]`."""

    #: Where the rule holds; site and type come from the stream's `sensor_pattern`.
    sensor: str = "*"
    site: str = "*"
    sensor_type: str = "*"
    field: str = "*"
    #: A value beyond these is anomalous, whatever its score; in the field's unit, after the transforms.
    low: float | None = None
    high: float | None = None
    #: Score from which a reading is anomalous, in the detector's unit ...
    threshold: Positive | None = None
    #: ... or the same as a tail probability, for detectors whose score is a surprise ...
    once_in: Annotated[float, Meta(ge=2, le=1e15)] | None = None
    #: ... or following the sensor: about once in so many of its own recent readings.
    adaptive: Annotated[float, Meta(ge=20, le=1e9)] | None = None
    #: At most so many alerts in 24 h ...
    budget_per_day: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    #: ... for all sensors of the rule together, for each site of it, or for each sensor.
    budget_by: Literal["rule", "site", "sensor"] = "rule"
    severity: Severity | None = None

    def faults(self) -> dict[str, str]:
        """What is wrong between these values, by setting; types are already checked."""
        faults = {}
        scores = [name for name in ("threshold", "once_in", "adaptive") if getattr(self, name) is not None]
        if len(scores) > 1:
            faults[scores[1]] = f"is set beside {scores[0]}, and both say from which score on: set one"
        if self.low is not None and self.high is not None and self.low >= self.high:
            faults["low"] = f"{self.low:g} is not below high {self.high:g}: swap them"
        if self.field != "*" and self.budget_per_day is not None:
            faults["budget_per_day"] = "holds for whole sensors, and this rule names a field: split it in two"
        if self.field != "*" and self.severity is not None:
            faults["severity"] = "holds for whole sensors, and this rule names a field: split it in two"
        for name in ("sensor", "site", "sensor_type", "field"):
            if not getattr(self, name):
                faults[name] = "is empty, which nothing matches: write a pattern, * for all"
        settings = ("low", "high", "threshold", "once_in", "adaptive", "budget_per_day", "severity")
        if all(getattr(self, name) is None for name in settings):
            faults[""] = f"sets nothing: set one of {', '.join(settings)}"
        return faults


class LimitConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Bounds of a field that prognosis looks ahead to."""

    field: str
    low: float | None = None
    high: float | None = None
    #: What approaches them: the value, its root mean square, or how many anomalous readings there were.
    of: Literal["value", "rms", "anomalies"] = "value"
    #: The bound is the end of a life: exponential growth is tried too.
    wear: bool = False


class PrognosisConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What is predicted, and how far ahead."""

    limits: list[LimitConfig] = []
    #: An alert opens when a limit may be reached within this time.
    horizon_s: Positive = 86_400.0
    #: How far back a trend is learned; None: twice the horizon.
    memory_s: Positive | None = None
    #: Of the interval that is given.
    confidence: Annotated[float, Meta(ge=0.5, le=0.99)] = 0.8
    severity: Literal["info", "warning", "critical"] = "warning"

    @property
    def memory(self) -> float:
        """Seconds that a trend is learned from, with the default filled in."""
        return 2 * self.horizon_s if self.memory_s is None else self.memory_s

    def state_parts(self) -> object:
        """What kept state depends on; where the bounds are is not in it."""
        limits = [[limit.field, limit.of] for limit in self.limits]
        return [limits, any(limit.wear for limit in self.limits), self.memory]


class DriftConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """When a change counts as lasting."""

    enabled: bool = False
    #: A change must last so many readings ...
    readings: Annotated[int, Meta(ge=64)] = 128
    #: ... and so long, in event time.
    lasting_s: NonNegative = 10_800.0
    #: Standard deviations of the usual movement of level or spread that a change must exceed.
    sigmas: Positive = 6.0
    #: The least change of level, in standard deviations of the readings.
    least_sd: NonNegative = 1.0
    #: The least factor by which the spread changes.
    least_factor: Annotated[float, Meta(ge=1)] = 1.5


class MemberConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One member of a group of sensors."""

    #: Pattern of the sensor's id, with `*`, `?` and `[...]`.
    sensor: str
    #: The field of its readings; None: the stream's only one.
    field: str | None = None


def _graph() -> dict[str, Any]:
    return {"type": "graph"}


class JoinConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Sensors of one site, or of one type, that are scored together."""

    #: What a group is: the sensors for which `sensor_pattern` finds the same of this.
    by: Literal["site", "type"] = "site"
    #: The columns of a group's rows, by name.
    members: dict[str, MemberConfig]
    #: A row is made without members that are older than its newest one by more than this.
    max_age_s: Positive = 60.0
    #: What scores the rows.
    detector: dict[str, Any] = msgspec.field(default_factory=_graph)


def _auto() -> dict[str, Any]:
    return {"type": "auto"}


class StreamConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One topic of readings: what is in it and what is done with it."""

    name: str
    topic: str
    #: Partitions of the topic (and of its outputs) where polarstream creates it.
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 4
    #: Key of the sensor's id in the JSON object or Arrow schema; None or "": the Kafka key is the id.
    id_field: str | None = "sensor_id"
    #: Key of the time; None or "", or absent from a reading: the Kafka timestamp counts.
    time_field: str | None = "ts"
    #: A reading further in the future than this is refused (`future_timestamp`).
    max_clock_skew_s: NonNegative = 300.0
    fields: dict[str, FieldConfig]
    detector: dict[str, Any] = msgspec.field(default_factory=_auto)
    alerts: AlertConfig = AlertConfig()
    #: Failure prediction.
    prognosis: PrognosisConfig = PrognosisConfig()
    #: Lasting changes.
    drift: DriftConfig = DriftConfig()
    #: Detection over several sensors together; None: each is scored alone.
    join: JoinConfig | None = None
    #: The most specific rule wins, setting by setting.
    thresholds: list[ThresholdConfig] = []
    #: Regular expression that finds `(?P<site>...)` and `(?P<type>...)` in a sensor's id. None: the site of
    #: all sensors is the stream's name.
    sensor_pattern: str | None = None
    windows: list[WindowConfig] = []

    def __post_init__(self) -> None:
        # TOML has no null, so an empty string stands for it there
        for name in ("id_field", "time_field"):
            if getattr(self, name) == "":
                msgspec.structs.force_setattr(self, name, None)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the value fields, in the order of every array's columns."""
        return tuple(self.fields)

    def state_fingerprint(self) -> str:
        """A word that changes when kept detector state no longer fits this configuration.

        It covers the fields and their order, the transforms, what tells one sensor from another, the
        detector without its thresholds (another threshold judges the same state), and what prognosis
        and drift keep.
        """
        detector = _without_thresholds(self.detector)
        parts: list[object] = [
            self.id_field,
            [[name, field.transforms] for name, field in self.fields.items()],
            detector,
        ]
        # only where they are configured: state from before stays good without them
        if self.prognosis.limits:
            parts.append(["prognosis", self.prognosis.state_parts()])
        if self.drift.enabled:
            parts.append(["drift", self.drift])
        return _fingerprint(parts)

    def join_fingerprint(self) -> str:
        """Like `state_fingerprint`, for the state of groups of sensors."""
        assert self.join is not None
        detector = _without_thresholds(self.join.detector)
        fields = [[name, field.transforms] for name, field in self.fields.items()]
        members = list(self.join.members.items())
        return _fingerprint([self.id_field, fields, self.sensor_pattern, self.join.by, members, detector])

    def windows_fingerprint(self) -> str:
        """Like `state_fingerprint`, for the state of the windows."""
        return _fingerprint(
            [
                self.id_field,
                [[name, field.transforms] for name, field in self.fields.items()],
                self.windows,
            ]
        )


class FrameStreamConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One topic of camera frames, and the model that looks at them."""

    name: str
    topic: str
    #: Name of a model in the folder of models, or `name@version`; without a version the newest one.
    model: str
    #: Partitions of the topic (and of its outputs) where polarstream creates it.
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 4
    #: When frames come faster than they are answered. block: all of them wait; latest: only the newest frame
    #: of a camera waits; sample: every k-th frame of the busiest cameras is kept.
    policy: Literal["block", "latest", "sample"] = "block"
    #: Frames of a higher priority go first.
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    #: For how long an answer is given again to a picture of the same camera that looks the same, in seconds;
    #: None: every picture is run.
    cache_ttl_s: Positive | None = None
    #: By how much the mean brightness of a part of the picture may differ for that, in levels of 0 to 255.
    cache_tolerance: Annotated[float, Meta(ge=0, le=255)] = 5.0
    #: A larger picture is refused, whatever its file's size.
    max_pixels: Annotated[int, Meta(ge=1, le=80_000_000)] = 40_000_000
    #: A frame further in the future than this is refused (`future_timestamp`).
    max_clock_skew_s: NonNegative = 300.0


class RequestsConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Models asked by message, and answered by message."""

    #: Names the topic's state and metrics, as a stream's name does.
    name: ClassVar[str] = "requests"

    enabled: bool = False
    topic: str = "inference.requests"
    results_topic: str = "inference.results"
    #: Models that workers open at the start, `name` or `name@version`; others answer once they are promoted.
    models: list[str] = []
    #: Partitions where polarstream creates the topics.
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 4
    #: A client reads one of them, and so the answers of others that have the same.
    results_partitions: Annotated[int, Meta(ge=1, le=10_000)] = 8
    #: How long requests that trickle in are gathered.
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 2.0
    #: A request without a deadline, or with a later one, expires after so long.
    max_timeout_s: Positive = 300.0
    #: A larger picture is refused, whatever its file's size.
    max_pixels: Annotated[int, Meta(ge=1, le=80_000_000)] = 40_000_000


class InferenceConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Where models lie and what runs them."""

    #: Folder of models; None: `<data_dir>/models`.
    models_dir: str | None = None
    #: `auto`: every OpenCL GPU, with the CPU as a last resort, or the CPU alone where there is none. Else
    #: `cpu` and OpenCL devices by part of their name or by index, as `polarstream devices` lists them.
    devices: Annotated[list[str], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["auto"])
    #: How a device is chosen for a batch.
    strategy: Literal["round-robin", "least-loaded", "adaptive"] = "adaptive"
    #: Threads that decode pictures; None: as many as there are cores.
    decode_threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    #: PEM files of the public keys whose models are run; empty: signatures are not asked for.
    trusted_keys: list[str] = []


class WorkerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How a worker process reads, keeps state and reports."""

    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    #: 4096 is about what one fetch of a partition brings: larger ones only take more memory.
    chunk_max_messages: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    chunk_max_bytes: Annotated[int, Meta(ge=1024)] = 4_194_304
    #: How long a trickle is gathered before it is handed on.
    linger_ms: Annotated[float, Meta(ge=0, le=60_000)] = 7.0
    #: None: 1000 at least once, 100 exactly once.
    checkpoint_interval_ms: Annotated[int, Meta(ge=1)] | None = None
    session_timeout_ms: Annotated[int, Meta(ge=1000)] = 10_000
    #: Name of this worker, the same after each restart; None: the host's name.
    instance_id: str | None = None
    standby_replicas: NonNegativeInt = 0
    metrics_host: str = "127.0.0.1"
    #: 0: any free port, written to `<data_dir>/run/worker-<instance>.json`.
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    start_from: Literal["earliest", "latest"] = "earliest"

    @property
    def checkpoint_s(self) -> float:
        """Seconds between checkpoints, with the default of the delivery filled in."""
        if self.checkpoint_interval_ms is not None:
            return self.checkpoint_interval_ms / 1000
        return 1.0 if self.delivery == "at_least_once" else 0.1


def _fingerprint(parts: object) -> str:
    data = msgspec.json.encode(parts, order="sorted")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _without_thresholds(detector: dict[str, Any]) -> dict[str, Any]:
    thresholds = ("threshold", "thresholds", "once_in", "once_in_days")
    return {key: value for key, value in detector.items() if key not in thresholds}
