"""What must hold between settings: the rules that no single setting's type can say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from polarstream.validation import BAD
from streams.aligned import panes
from streams.config import (
    ClipConfig,
    FieldConfig,
    FrameStreamConfig,
    HoppingConfig,
    JoinConfig,
    KafkaConfig,
    LimitConfig,
    RequestsConfig,
    StreamConfig,
    ThresholdConfig,
    WorkerConfig,
)
from streams.control import matches
from streams.errors import ConfigError

if TYPE_CHECKING:
    from polarstream.config import Config

Note: TypeAlias = Callable[[str, str], None]

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MODEL: Final = re.compile(r"[A-Za-z0-9._-]{1,128}(@[A-Za-z0-9._-]{1,128})?")
_LETTERS: Final = "letters, digits, '.', '_' and '-'"
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:,/\[\]]+):(\d{1,5})")

#: The broker ends a transaction after this many ms (Kafka's transaction.timeout.ms by default).
_TRANSACTION_TIMEOUT_MS: Final = 60_000
#: Bytes of a sensor's state: one row must fit into a message, and brokers take 1 MiB by default.
_MOST_ROW_BYTES: Final = 1_000_000


def check_config(config: Config, bad_paths: frozenset[str], note: Note) -> None:
    """Check the rules between settings.

    Args:
        config: the settings; `BAD` may stand for items of lists and tables.
        bad_paths: settings that have a fault already and hold their default here.
        note: called with (path, message) for each fault.
    """
    if not _NAME.fullmatch(config.app_id):
        note("app_id", f"'{config.app_id}' is not a name: use 1 to 100 {_LETTERS}")
    _check_servers(config.kafka, note)
    if not bad_paths & {"kafka.security_protocol", "kafka.bootstrap_servers"}:
        _check_sasl(config.kafka, note)
        _check_tls(config.kafka, note)
    _check_worker(config.worker, note)
    taken: dict[str, str] = {}
    for setting in ("predictions", "alerts", "analytics", "dead_letter", "control", "models"):
        _check_topic(getattr(config.topics, setting), f"topics.{setting}", taken, note)
    names: dict[str, str] = {}
    for i, stream in enumerate(config.streams):
        if stream is not BAD:
            _check_stream(stream, f"streams[{i}]", names, taken, note)
            _check_thresholds(stream, f"streams[{i}]", bad_paths, note)
    for i, frames in enumerate(config.frames):
        if frames is not BAD:
            _check_names(frames, f"frames[{i}]", names, taken, note)
            if not _MODEL.fullmatch(frames.model):
                note(f"frames[{i}].model", f"'{frames.model}' is no model: write name or name@version")
    if config.requests.enabled:
        _check_requests(config.requests, names, taken, note)
    for i, key in enumerate(config.inference.trusted_keys):
        if key is not BAD and not Path(key).is_file():
            note(f"inference.trusted_keys[{i}]", f"there is no file '{key}': name a readable PEM file")


def _check_requests(
    requests: RequestsConfig, names: dict[str, str], taken: dict[str, str], note: Note
) -> None:
    if requests.name in names:
        note(f"{names[requests.name]}.name", f"'{requests.name}' is the name of [requests]: use another one")
    for setting in ("topic", "results_topic"):
        _check_topic(getattr(requests, setting), f"requests.{setting}", taken, note)
    for i, model in enumerate(requests.models):
        if model is not BAD and not _MODEL.fullmatch(model):
            note(f"requests.models[{i}]", f"'{model}' is no model: write name or name@version")


def _check_servers(kafka: KafkaConfig, note: Note) -> None:
    for i, server in enumerate(kafka.bootstrap_servers):
        match = None if server is BAD else _SERVER.fullmatch(server)
        if match is None or not 0 < int(match[2]) < 65_536:
            note(f"kafka.bootstrap_servers[{i}]", f"'{server}' is not host:port: write e.g. broker-1:9092")


def _check_sasl(kafka: KafkaConfig, note: Note) -> None:
    protocol = kafka.security_protocol
    if protocol != "PLAINTEXT" and not kafka.bootstrap_servers:
        note(
            "kafka.security_protocol",
            f"{protocol} is set without kafka.bootstrap_servers, and the local broker speaks PLAINTEXT: "
            "name the servers",
        )
    if protocol.startswith("SASL_"):
        for setting in ("sasl_username", "sasl_password"):
            if not getattr(kafka, setting):
                mechanism = kafka.sasl_mechanism or "PLAIN"
                note(f"kafka.{setting}", f"is missing: {protocol} with {mechanism} needs it")
        return
    other = "SASL_SSL" if protocol == "SSL" else "SASL_SSL or SASL_PLAINTEXT"
    for setting in ("sasl_mechanism", "sasl_username", "sasl_password"):
        if getattr(kafka, setting) is not None:
            note(
                f"kafka.{setting}",
                f"is set, but kafka.security_protocol is {protocol}: set that to {other}, or remove this",
            )


def _check_tls(kafka: KafkaConfig, note: Note) -> None:
    files = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
    protocol = kafka.security_protocol
    if protocol not in ("SSL", "SASL_SSL"):
        other = "SASL_SSL" if protocol == "SASL_PLAINTEXT" else "SSL or SASL_SSL"
        for setting in files:
            if getattr(kafka, setting) is not None:
                note(
                    f"kafka.{setting}",
                    f"is set, but kafka.security_protocol is {protocol}: set that to {other}, or remove this",
                )
        if not kafka.ssl_check_hostname:
            note(
                "kafka.ssl_check_hostname", f"is off, but kafka.security_protocol is {protocol}: remove this"
            )
        return
    readable = True
    for setting in files:
        name = getattr(kafka, setting)
        if name is not None and not Path(name).is_file():
            readable = False
            note(f"kafka.{setting}", f"there is no file '{name}': name a readable PEM file")
    if kafka.ssl_keyfile is not None and kafka.ssl_certfile is None:
        note("kafka.ssl_certfile", "is missing: kafka.ssl_keyfile is the key of a certificate, name that too")
    elif readable:
        from streams.kafka import ssl_context

        try:
            ssl_context(kafka)
        except ConfigError as error:
            for fault in error.faults:
                note(fault.path, fault.message)


def _check_worker(worker: WorkerConfig, note: Note) -> None:
    if worker.instance_id is not None and not _NAME.fullmatch(worker.instance_id):
        note("worker.instance_id", f"'{worker.instance_id}' is not a name: use 1 to 100 {_LETTERS}")
    interval = worker.checkpoint_interval_ms
    if worker.delivery == "exactly_once" and interval is not None and interval > _TRANSACTION_TIMEOUT_MS / 2:
        note(
            "worker.checkpoint_interval_ms",
            f"{interval} is too long for exactly_once, where a checkpoint is a transaction that the broker "
            f"ends after {_TRANSACTION_TIMEOUT_MS}: use {_TRANSACTION_TIMEOUT_MS // 2} or less",
        )


def _check_topic(topic: str, path: str, taken: dict[str, str], note: Note) -> None:
    if topic in ("", ".", "..") or not _TOPIC.fullmatch(topic):
        note(path, f"'{topic}' is not a topic's name: use 1 to 249 {_LETTERS}")
    elif topic in taken:
        note(path, f"'{topic}' is the topic of {taken[topic]} already: use another one")
    else:
        taken[topic] = path


def _check_names(
    stream: StreamConfig | FrameStreamConfig,
    path: str,
    names: dict[str, str],
    taken: dict[str, str],
    note: Note,
) -> None:
    if not _NAME.fullmatch(stream.name):
        note(f"{path}.name", f"'{stream.name}' is not a name: use 1 to 100 {_LETTERS}")
    elif stream.name in names:
        note(f"{path}.name", f"'{stream.name}' is the name of {names[stream.name]} already: use another one")
    else:
        names[stream.name] = path
    _check_topic(stream.topic, f"{path}.topic", taken, note)


def _check_stream(
    stream: StreamConfig, path: str, names: dict[str, str], taken: dict[str, str], note: Note
) -> None:
    _check_names(stream, path, names, taken, note)
    if not stream.fields:
        note(f"{path}.fields", "is empty: name the measured fields")
    if stream.id_field is not None and stream.id_field == stream.time_field:
        note(f"{path}.time_field", f"'{stream.time_field}' is the id_field too: name another field")
    for name, spec in stream.fields.items():
        if spec is not BAD:
            _check_field(name, spec, stream, f"{path}.fields.{name}", note)
    windows: dict[str, str] = {}
    for i, window in enumerate(stream.windows):
        if window is BAD:
            continue
        where = f"{path}.windows[{i}]"
        if not _NAME.fullmatch(window.name):
            note(f"{where}.name", f"'{window.name}' is not a name: use 1 to 100 {_LETTERS}")
        elif window.name in windows:
            note(f"{where}.name", f"'{window.name}' is the name of {windows[window.name]}: use another one")
        else:
            windows[window.name] = where
        if isinstance(window, HoppingConfig) and window.hop_s > window.size_s:
            note(
                f"{where}.hop_s",
                f"{window.hop_s:g} is above size_s {window.size_s:g}, which leaves readings in no window: "
                "use size_s or less",
            )
        elif isinstance(window, HoppingConfig):
            try:
                panes(window.size_s, window.hop_s)
            except ConfigError as error:
                for fault in error.faults:
                    note(f"{where}.{fault.path}", fault.message)
    for i, limit in enumerate(stream.prognosis.limits):
        if limit is not BAD:
            _check_limit(limit, stream, f"{path}.prognosis.limits[{i}]", note)
    _check_detector(stream, path, note)
    if stream.join is not None:
        _check_join(stream.join, stream, f"{path}.join", note)


def _check_limit(limit: LimitConfig, stream: StreamConfig, path: str, note: Note) -> None:
    if limit.field not in stream.fields:
        note(f"{path}.field", f"'{limit.field}' is no field: use one of {', '.join(stream.fields)}")
    if limit.low is None and limit.high is None:
        note(path, "has no bound: set low or high")
    elif limit.low is not None and limit.high is not None and limit.low >= limit.high:
        note(f"{path}.low", f"{limit.low:g} is not below high {limit.high:g}: swap or change them")


def _check_thresholds(stream: StreamConfig, path: str, bad_paths: frozenset[str], note: Note) -> None:
    if stream.sensor_pattern is not None:
        where = f"{path}.sensor_pattern"
        try:
            groups = set(re.compile(stream.sensor_pattern).groupindex)
        except re.error as error:
            note(where, f"'{stream.sensor_pattern}' is no regular expression ({error}): mend it")
        else:
            if not groups or not groups <= {"site", "type"}:
                told = ", ".join(sorted(groups)) or "none"
                note(where, f"its named groups are {told}: write (?P<site>...), (?P<type>...) or both")
    for i, rule in enumerate(stream.thresholds):
        if rule is BAD:
            continue
        where = f"{path}.thresholds[{i}]"
        for setting, message in rule_faults(rule, stream).items():
            # a rule whose only setting is bad sets something all the same
            if setting or not any(bad.startswith(f"{where}.") for bad in bad_paths):
                note(f"{where}.{setting}".rstrip("."), message)


def rule_faults(rule: ThresholdConfig, stream: StreamConfig) -> dict[str, str]:
    """What is wrong with a threshold rule for a stream, by setting."""
    faults = rule.faults()
    if rule.field and not any(matches(rule.field, field) for field in stream.field_names):
        known = ", ".join(stream.field_names)
        faults["field"] = f"'{rule.field}' matches no field: use one of {known}, or a pattern"
    if rule.once_in is not None and stream.detector.get("type") == "ewz":
        faults["once_in"] = "says nothing to ewz, whose score is in standard deviations: use threshold"
    return faults


def _check_field(name: str, spec: FieldConfig, stream: StreamConfig, path: str, note: Note) -> None:
    if not name:
        note(path, "has no name: name the field")
    for setting in ("id_field", "time_field"):
        if name == getattr(stream, setting):
            note(path, f"is the {setting} too: measured fields are numbers of their own")
    _check_bounds(spec.min, spec.max, path, note)
    for i, transform in enumerate(spec.transforms):
        if isinstance(transform, ClipConfig):
            where = f"{path}.transforms[{i}]"
            if transform.min is None and transform.max is None:
                note(where, "clips nothing: set min or max")
            _check_bounds(transform.min, transform.max, where, note)


def _check_bounds(low: float | None, high: float | None, path: str, note: Note) -> None:
    if low is not None and high is not None and low > high:
        note(f"{path}.min", f"{low:g} is above max {high:g}: swap them")


def _check_join(join: JoinConfig, stream: StreamConfig, path: str, note: Note) -> None:
    try:
        named = re.compile(stream.sensor_pattern or "").groupindex
    except re.error:
        named = {join.by: 0}  # told already
    if join.by not in named:
        note(f"{path}.by", f"needs a sensor_pattern with (?P<{join.by}>...), which finds the groups: set it")
    if len(join.members) < 2:
        note(f"{path}.members", "names less than two members, and joins nothing: name at least two")
    taken: dict[tuple[str, str], str] = {}
    for name, member in join.members.items():
        where = f"{path}.members.{name}"
        if not _NAME.fullmatch(name):
            note(where, f"'{name}' is not a name: use 1 to 100 {_LETTERS}")
        if member is BAD:
            continue
        if not member.sensor:
            note(f"{where}.sensor", "is empty, which nothing matches: write a pattern, * for all")
        known = ", ".join(stream.fields)
        if member.field is None and len(stream.fields) > 1:
            note(f"{where}.field", f"is missing, and the stream has several: set one of {known}")
        elif member.field is not None and member.field not in stream.fields:
            note(f"{where}.field", f"'{member.field}' is no field: use one of {known}")
        elif member.sensor:
            source = member.sensor, member.field or known
            if source in taken:
                note(where, f"is the same as {taken[source]}: give it another sensor or field")
            taken.setdefault(source, name)
    if len(join.members) >= 2:
        _check_table(join.detector, tuple(join.members), {}, path, note)


def _check_detector(stream: StreamConfig, path: str, note: Note) -> None:
    thresholds = {name: spec.threshold for name, spec in stream.fields.items() if spec is not BAD}
    _check_table(stream.detector, stream.field_names, thresholds, path, note)


def _check_table(
    detector: dict[str, Any],
    fields: tuple[str, ...],
    thresholds: dict[str, float | None],
    path: str,
    note: Note,
) -> None:
    from anomaly.errors import BadDetector
    from anomaly.registry import build_detector

    try:
        row_bytes = build_detector(detector, fields, thresholds).dtype.itemsize
        if row_bytes > _MOST_ROW_BYTES:
            note(
                f"{path}.detector",
                f"the state of one sensor takes {row_bytes:,} bytes, and a message of the changelog holds "
                f"{_MOST_ROW_BYTES:,}: use fewer trees, a smaller size or depth, or fewer fields",
            )
    except BadDetector as error:
        for fault in error.faults:
            inside = fault.path if fault.path.startswith("fields.") else f"detector.{fault.path}"
            note(f"{path}.{inside}".rstrip("."), fault.message)
