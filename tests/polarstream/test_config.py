"""The configuration: where it comes from, and that every fault is told at once with its path."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarstream.config import DEMO_STREAMS, Config, find, load, parse
from polarstream.config_template import TEMPLATE
from streams.errors import ConfigError, Fault

HOME = {"HOME": "/home/someone"}
STREAM: dict[str, Any] = {"name": "s", "topic": "t", "fields": {"x": {}}}


def faults(raw: dict[str, Any], env: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(raw, HOME | (env or {}))
    found = {fault.path: fault.message for fault in caught.value.faults}
    assert len(found) == len(caught.value.faults), "a fault was told twice"
    return found


def faults_of(raw: dict[str, Any], env: dict[str, str] | None = None) -> list[Fault]:
    try:
        parse(raw, env)
    except ConfigError as error:
        return error.faults or [Fault("", "")]
    return []


def kafka_faults(**kafka: Any) -> dict[str, str]:
    return faults({"kafka": kafka})


def stream_faults(**changes: Any) -> dict[str, str]:
    found = faults({"streams": [STREAM | changes]})
    assert all(path.startswith("streams[0].") for path in found)
    return {path.removeprefix("streams[0]."): message for path, message in found.items()}


def test_without_anything_the_demo_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, HOME)
    assert [stream.name for stream in config.streams] == ["host", "plant"]
    assert config.data_dir == Path("/home/someone/.local/share/polarstream")
    assert config.kafka.bootstrap_servers == []


def test_file_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(None, {}) is None
    (tmp_path / "polarstream.toml").write_text('app_id = "local"')
    (tmp_path / "other.toml").write_text('app_id = "variable"')
    (tmp_path / "named.toml").write_text('app_id = "named"')
    assert load(None, HOME).app_id == "local"
    assert load(None, HOME | {"POLARSTREAM_CONFIG": "other.toml"}).app_id == "variable"
    assert load(tmp_path / "named.toml", HOME | {"POLARSTREAM_CONFIG": "other.toml"}).app_id == "named"


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read"), (b"a = ", "is not TOML"), (b"\xff", "is not UTF-8")],
)
def test_unreadable_file_is_told_by_its_name(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        load(path, HOME)
    assert caught.value.faults[0].path == str(path)


@pytest.mark.parametrize(
    ("env", "data_dir"),
    [
        ({"POLARSTREAM_DATA_DIR": "/a", "XDG_DATA_HOME": "/b"}, "/a"),
        ({"XDG_DATA_HOME": "/b"}, "/b/polarstream"),
        ({"XDG_DATA_HOME": "", "POLARSTREAM_DATA_DIR": ""}, "/home/someone/.local/share/polarstream"),
    ],
)
def test_data_folder_follows_the_environment(env: dict[str, str], data_dir: str) -> None:
    assert parse({}, HOME | env).data_dir == Path(data_dir)


def test_every_fault_is_told_at_once() -> None:
    found = faults(
        {
            "app_id": "a b",
            "kafak": {},
            "log_level": "loud",
            "kafka": {"bootstrap_servers": ["x"], "security_protocol": "sasl_ssl"},
            "topics": {"alerts": "predictions", "retention_hours": 0},
            "worker": {
                "linger_ms": -1,
                "delivery": "exactly-once",
                "metrics_port": "x",
                "chunk_max_bytes": 1.5,
            },
            "streams": [
                {"name": "a", "topic": "t x", "fields": {"f": {"min": 5, "max": 3, "unti": "K"}}},
                {
                    "name": "a",
                    "topic": "alerts",
                    "fields": {"ts": {"max": float("nan"), "min": float("inf")}},
                },
                {"nmae": "x"},
                7,
            ],
        }
    )
    assert set(found) == {
        "app_id",
        "kafak",
        "log_level",
        "kafka.bootstrap_servers[0]",
        "kafka.security_protocol",
        "topics.alerts",
        "topics.retention_hours",
        "worker.linger_ms",
        "worker.delivery",
        "worker.metrics_port",
        "worker.chunk_max_bytes",
        "streams[0].topic",
        "streams[0].fields.f.unti",
        "streams[0].fields.f.min",
        "streams[1].name",
        "streams[1].fields.ts",
        "streams[1].fields.ts.max",
        "streams[1].fields.ts.min",
        "streams[2].nmae",
        "streams[2].name",
        "streams[2].topic",
        "streams[2].fields",
        "streams[3]",
    }


@pytest.mark.parametrize(
    ("raw", "path", "hint"),
    [
        ({"kafak": {}}, "kafak", "did you mean 'kafka'?"),
        ({"worker": {"deliveri": 1}}, "worker.deliveri", "did you mean 'delivery'?"),
        ({"worker": {"delivery": "exactly-once"}}, "worker.delivery", "did you mean 'exactly_once'?"),
        ({"zzz": 1}, "zzz", "use one of app_id, data_dir"),
    ],
)
def test_slip_of_the_pen_gets_a_suggestion(raw: dict[str, Any], path: str, hint: str) -> None:
    assert hint in faults(raw)[path]


def test_requests_bring_topics_that_workers_read_and_no_demo() -> None:
    asked = parse({"requests": {"enabled": True, "models": ["a", "b@2"]}}, HOME)
    assert [stream.topic for stream in asked.inputs] == ["inference.requests"]
    # settings of requests that are off change nothing: the demo, with a camera where its extra is installed
    assert parse({"requests": {"partitions": 2}}, HOME).inputs == parse({}, HOME).inputs
    assert [stream.name for stream in parse({}, HOME).streams] == ["host", "plant"]


def test_requests_take_no_name_or_topic_of_others() -> None:
    wrong = {
        "streams": [STREAM | {"name": "requests"}],
        "requests": {"enabled": True, "topic": "t", "results_topic": "alerts", "models": ["a b"]},
    }
    assert set(faults(wrong)) == {
        "streams[0].name",
        "requests.topic",
        "requests.results_topic",
        "requests.models[0]",
    }
    wrong["requests"]["enabled"] = False  # type: ignore[call-overload]
    assert parse(wrong, HOME).inputs[0].name == "requests"


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        ({"security_protocol": "SASL_SSL"}, {"sasl_username", "sasl_password"}),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_username": "u"}, {"sasl_password"}),
        ({"sasl_mechanism": "PLAIN", "sasl_password": "p"}, {"sasl_mechanism", "sasl_password"}),
        ({"security_protocol": "SSL", "sasl_username": "u"}, {"sasl_username"}),
        ({"ssl_cafile": "/x", "ssl_check_hostname": False}, {"ssl_cafile", "ssl_check_hostname"}),
        ({"security_protocol": "SSL", "ssl_cafile": "/no/such"}, {"ssl_cafile"}),
        ({"security_protocol": "SSL", "ssl_keyfile": __file__}, {"ssl_certfile"}),
        ({"security_protocol": "SSL", "ssl_cafile": __file__}, {"ssl_cafile"}),
        ({"security_protocol": "SSL", "ssl_certfile": __file__}, {"ssl_certfile"}),
    ],
)
def test_contradictory_security_is_refused(settings: dict[str, Any], paths: set[str]) -> None:
    found = kafka_faults(bootstrap_servers=["b:9092"], **settings)
    assert set(found) == {f"kafka.{path}" for path in paths}


def test_security_without_servers_is_refused() -> None:
    assert set(kafka_faults(security_protocol="SSL")) == {"kafka.security_protocol"}


@pytest.mark.parametrize(
    "server", ["b", "b:", "b:0", "b:65536", "b:x", ":9092", "a b:1", "http://b:9092", ""]
)
def test_address_without_host_and_port_is_refused(server: str) -> None:
    assert set(kafka_faults(bootstrap_servers=[server])) == {"kafka.bootstrap_servers[0]"}


@pytest.mark.parametrize("server", ["b:9092", "10.0.0.1:1", "[::1]:9092", "broker-1.example.com:65535"])
def test_address_with_host_and_port_is_taken(server: str) -> None:
    assert parse({"kafka": {"bootstrap_servers": [server]}}).kafka.bootstrap_servers == [server]


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"name": ""}, {"name"}),
        ({"name": "a/b"}, {"name"}),
        ({"topic": ".."}, {"topic"}),
        ({"topic": "x" * 250}, {"topic"}),
        ({"topic": "predictions"}, {"topic"}),
        ({"fields": {}}, {"fields"}),
        ({"fields": {"sensor_id": {}}}, {"fields.sensor_id"}),
        ({"time_field": "sensor_id"}, {"time_field"}),
        ({"partitions": 0}, {"partitions"}),
        ({"max_clock_skew_s": -1}, {"max_clock_skew_s"}),
        ({"alerts": {"resolve_below": 1.5, "open_after": 0}}, {"alerts.resolve_below", "alerts.open_after"}),
        ({"fields": {"x": {"threshold": 0}}}, {"fields.x.threshold"}),
        (
            {"fields": {"x": {"transforms": [{"type": "clip", "min": 2, "max": 1}]}}},
            {"fields.x.transforms[0].min"},
        ),
        ({"fields": {"x": {"transforms": [{"type": "clip"}]}}}, {"fields.x.transforms[0]"}),
        ({"fields": {"x": {"transforms": [{"type": "rollin"}]}}}, {"fields.x.transforms[0].type"}),
        (
            {"fields": {"x": {"transforms": [{}, 1]}}},
            {"fields.x.transforms[0].type", "fields.x.transforms[1]"},
        ),
        (
            {"windows": [{"type": "hopping", "name": "w", "size_s": 1, "hop_s": 2}]},
            {"windows[0].hop_s"},
        ),
        (
            {"windows": [{"type": "session", "name": "w", "gap_s": 1}] * 2},
            {"windows[1].name"},
        ),
        ({"windows": [{"type": "tumbling", "name": "w"}]}, {"windows[0].size_s"}),
        ({"detector": {"type": "no such"}}, {"detector.type"}),
        ({"detector": {"type": "ewz", "alpha": "x", "warmpu": 3}}, {"detector.alpha", "detector.warmpu"}),
        ({"detector": {"type": "ewz", "alpha": 2}}, {"detector.alpha"}),
        # more state of one sensor than a message holds
        ({"detector": {"type": "half_space_trees", "trees": 1000, "depth": 8}}, {"detector"}),
    ],
)
def test_impossible_stream_is_refused(changes: dict[str, Any], paths: set[str]) -> None:
    assert set(stream_faults(**changes)) == paths


def test_names_and_topics_are_given_once() -> None:
    found = faults({"streams": [STREAM, STREAM]})
    assert set(found) == {"streams[1].name", "streams[1].topic"}


def test_transaction_may_not_outlast_the_broker() -> None:
    found = faults({"worker": {"delivery": "exactly_once", "checkpoint_interval_ms": 60_000}})
    assert set(found) == {"worker.checkpoint_interval_ms"}


def test_environment_overrides_the_file() -> None:
    config = parse(
        {"kafka": {"bootstrap_servers": ["x:1"]}, "streams": [STREAM]},
        {
            "POLARSTREAM_APP_ID": "123",
            "POLARSTREAM_LOG_LEVEL": "debug",
            "POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS": "a:1, b:2",
            "POLARSTREAM_KAFKA__SASL_PASSWORD": "12,3",
            "POLARSTREAM_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "POLARSTREAM_KAFKA__SASL_USERNAME": "true",
            "POLARSTREAM_WORKER__LINGER_MS": "2.5",
            "POLARSTREAM_WORKER__CHECKPOINT_INTERVAL_MS": "",
            "POLARSTREAM_TOPICS__RETENTION_HOURS": "5",
            "POLARSTREAM_STREAMS__0__TOPIC": "u",
            "POLARSTREAM_STREAMS__0__FIELDS__X__MAX": "7",
            "POLARSTREAM_STREAMS__0__FIELDS__Y__REQUIRED": "false",
            "POLARSTREAM_STREAMS__0__DETECTOR__BUDGET_US": "0.8",
            "POLARSTREAM_STREAMS__0__WINDOWS": '[{"type": "session", "name": "w", "gap_s": 9}]',
            "POLARSTREAM_CACHE_DIR": "/cache",
            "POLARSTREAM_PORT": "tcp://10.0.0.1:80",
        },
    )
    assert (config.app_id, config.log_level) == ("123", "debug")
    assert config.kafka.bootstrap_servers == ["a:1", "b:2"]
    assert (config.kafka.sasl_username, config.kafka.sasl_password) == ("true", "12,3")
    assert (config.worker.linger_ms, config.worker.checkpoint_interval_ms) == (2.5, None)
    assert config.topics.retention_hours == 5
    (stream,) = config.streams
    assert (stream.topic, stream.fields["x"].max, stream.fields["y"].required) == ("u", 7.0, False)
    assert stream.detector["budget_us"] == 0.8
    assert stream.windows[0].name == "w"


def test_override_reaches_the_demo_streams() -> None:
    assert parse({}, {"POLARSTREAM_STREAMS__1__TOPIC": "u"}).streams[1].topic == "u"
    assert DEMO_STREAMS[1]["topic"] == "sensors.plant"


def test_fault_of_the_environment_names_the_variable() -> None:
    found = faults(
        {"streams": [STREAM]},
        {
            "POLARSTREAM_WORKER__METRICS_PORT": "99999",
            "POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS": "a:1,b",
            "POLARSTREAM_KAFKA__NO_SUCH": "1",
            "POLARSTREAM_STREAMS__0__TOPIC": "predictions",
            "POLARSTREAM_STREAMS__7__TOPIC": "x",
            "POLARSTREAM_LOGLEVEL": "debug",
            "POLARSTREAM_WROKER__LINGER_MS": "1",
            "POLARSTREAM_APP_ID__X": "1",
        },
    )
    assert set(found) == {
        "POLARSTREAM_WORKER__METRICS_PORT",
        "POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS[1]",
        "POLARSTREAM_KAFKA__NO_SUCH",
        "POLARSTREAM_STREAMS__0__TOPIC",
        "POLARSTREAM_STREAMS__7__TOPIC",
        "POLARSTREAM_LOGLEVEL",
        "POLARSTREAM_WROKER__LINGER_MS",
        "POLARSTREAM_APP_ID__X",
    }
    assert "POLARSTREAM_LOG_LEVEL" in found["POLARSTREAM_LOGLEVEL"]
    assert "POLARSTREAM_WORKER__LINGER_MS" in found["POLARSTREAM_WROKER__LINGER_MS"]


def test_empty_field_name_stands_for_none() -> None:
    (stream,) = parse({"streams": [STREAM | {"id_field": "", "time_field": ""}]}).streams
    assert (stream.id_field, stream.time_field) == (None, None)


def test_description_hides_the_password() -> None:
    kafka = {
        "bootstrap_servers": ["b:1"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": "u",
        "sasl_password": "secret",
    }
    assert "secret" not in str(parse({"kafka": kafka}).describe())


def test_written_file_is_valid_and_means_the_defaults() -> None:
    written, default = parse(tomllib.loads(TEMPLATE), HOME), parse({}, HOME)
    # but for the detector: the demo must be warm within a minute
    streams = [msgspec.structs.replace(s, detector={"type": "auto"}) for s in default.streams]
    assert {stream.name: stream for stream in written.streams} == {s.name: s for s in streams}
    for section in ("app_id", "data_dir", "log_level", "kafka", "topics", "worker"):
        assert getattr(written, section) == getattr(default, section)


def test_every_line_that_is_commented_out_is_valid() -> None:
    settings = [
        line.removeprefix("# ")
        if line.startswith("# ") and " = " in line and line[2:].split(" = ")[0].isidentifier()
        else line
        for line in TEMPLATE.splitlines()
    ]
    raw = tomllib.loads("\n".join(settings))
    raw["kafka"] = {k: v for k, v in raw["kafka"].items() if not k.startswith(("ssl_", "sasl_"))}
    config = parse(raw, HOME)
    default = parse({}, HOME)
    assert config.topics == default.topics
    assert config.kafka == default.kafka
    for section in ("topics", "worker", "kafka"):
        known = set(getattr(default, section).__struct_fields__)
        written = set(tomllib.loads("\n".join(settings))[section])
        assert known == written, "the template lacks a setting"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*Config.__struct_fields__, "x"]), json_values, max_size=4),
    st.dictionaries(
        st.sampled_from(
            ["POLARSTREAM_" + n.upper() + t for n in Config.__struct_fields__ for t in ("", "__0", "__X")]
        ),
        st.text(max_size=6),
        max_size=3,
    ),
)
def test_any_tables_are_taken_or_refused_with_faults(raw: dict[str, Any], env: dict[str, str]) -> None:
    assert all(fault.message for fault in faults_of(raw, env))


def mutated_streams() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"name": st.just("s") | json_values, "topic": st.just("t") | json_values},
        optional={
            "fields": st.dictionaries(st.text(max_size=2), json_values, max_size=2),
            "windows": st.lists(json_values | st.just({"type": "hopping", "hop_s": 3}), max_size=2)
            | json_values,
            "detector": json_values | st.just({"type": "ewz"}),
            "alerts": json_values,
            "id_field": json_values,
        },
    )


@given(st.lists(mutated_streams(), max_size=2))
def test_any_streams_are_taken_or_refused_with_faults(streams: list[dict[str, Any]]) -> None:
    assert all(fault.path.startswith("streams") for fault in faults_of({"streams": streams}))


def test_a_hop_that_cuts_a_window_too_fine_is_refused() -> None:
    window = {"type": "hopping", "name": "w", "size_s": 100, "hop_s": 0.007}
    stream = {"name": "p", "topic": "p", "fields": {"x": {}}, "windows": [window]}
    with pytest.raises(ConfigError, match=r"streams\[0\]\.windows\[0\]\.hop_s"):
        parse({"streams": [stream]}, HOME)


JOIN: dict[str, Any] = {
    "sensor_pattern": "(?P<site>[^/]+)/",
    "fields": {"x": {}, "y": {}},
}


def join_faults(join: dict[str, Any], **changes: Any) -> dict[str, str]:
    found = stream_faults(**JOIN | changes, join=join)
    assert all(path.startswith("join.") for path in found)
    return {path.removeprefix("join."): message for path, message in found.items()}


def test_a_join_is_checked_whole() -> None:
    members = {
        "a": {"sensor": "*/a", "field": "x"},
        "b": {"sensor": "*/a", "field": "x"},
        "c": {"sensor": "*/c"},
        "d": {"sensor": "*/d", "field": "z"},
        "e f": {"sensor": "", "field": "x"},
        "g": {"field": "y"},
        "h": 7,
    }
    found = join_faults({"by": "type", "members": members, "max_age_s": 0, "detector": {"type": "grph"}})
    assert set(found) == {
        "by",
        "members.b",
        "members.c.field",
        "members.d.field",
        "members.e f",
        "members.e f.sensor",
        "members.g.sensor",
        "members.h",
        "max_age_s",
        "detector.type",
    }
    assert found["members.b"] == "is the same as a: give it another sensor or field"


def test_a_join_needs_members_and_a_pattern_that_finds_groups() -> None:
    one = {"a": {"sensor": "a", "field": "x"}}
    two = one | {"b": {"sensor": "b", "field": "x"}}
    assert "at least two" in join_faults({"members": one})["members"]
    assert set(join_faults({})) == {"members"}
    assert "set it" in join_faults({"members": two}, sensor_pattern=None)["by"]
    assert set(join_faults({"members": two, "detector": {"type": "graph", "memory": 1}})) == {
        "detector.memory"
    }
    config = parse({"streams": [STREAM | JOIN | {"join": {"members": two}}]}, HOME)
    assert config.streams[0].join is not None
    assert config.streams[0].join.detector == {"type": "graph"}
