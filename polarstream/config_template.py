"""The commented configuration file that `polarstream config init` writes.

Settings that are commented out show their defaults; `tests/polarstream/test_config.py` holds the
file to the structs, so that it can't fall behind them.
"""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
# polarstream.toml: all settings of polarstream.
#
# What is commented out shows the default. Check with `polarstream config check`.
# Every setting can be overridden by an environment variable, with two underscores for each step inside:
#   POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS=broker-1:9092,broker-2:9092
#   POLARSTREAM_WORKER__DELIVERY=exactly_once
#   POLARSTREAM_STREAMS__0__FIELDS__TEMPERATURE__MAX=150

# Consumer group of the workers, and the head of the names of their state topics.
# app_id = "polarstream"
# Where the local broker and the workers' files live. Default: $XDG_DATA_HOME/polarstream or
# ~/.local/share/polarstream
# data_dir = "/var/lib/polarstream"
# debug, info, warning or error
# log_level = "info"

# Topics of camera frames and the models that look at them. A frame is a JPEG, PNG or WebP file with the
# camera's id as its key; policy (block, latest or sample) says what happens when they come too fast.
# frames = [{ name = "gate", topic = "frames.gate", model = "animals", policy = "latest" }]

[kafka]
# Brokers as host:port. Empty: the local broker, which `polarstream up` starts.
# bootstrap_servers = []
# PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
# security_protocol = "PLAINTEXT"
# With SASL_*: PLAIN (the default), SCRAM-SHA-256 or SCRAM-SHA-512. Better in the environment than here:
# POLARSTREAM_KAFKA__SASL_PASSWORD
# sasl_mechanism = "SCRAM-SHA-512"
# sasl_username = "polarstream"
# sasl_password = "..."
# With SSL and SASL_SSL: PEM files. Authorities (default: the system's), own certificate and its key.
# ssl_cafile = "/etc/polarstream/ca.pem"
# ssl_certfile = "/etc/polarstream/client.pem"
# ssl_keyfile = "/etc/polarstream/client.key"
# ssl_check_hostname = true
# request_timeout_ms = 40000

# Topics that polarstream writes.
[topics]
# predictions = "predictions"
# alerts = "alerts"
# analytics = "analytics"
# dead_letter = "dead-letter"
# Compacted: what `polarstream thresholds`, `alerts` and `maintenance` set while workers run.
# control = "control"
# Compacted: which models are live.
# models = "models"
# retention_hours = 168
# Bytes kept per partition.
# retention_bytes = 1073741824
# replication_factor = 1

[worker]
# at_least_once: after a crash some predictions are written again, with the same id.
# exactly_once: a reader of committed messages sees each prediction once; a little more latency.
# delivery = "at_least_once"
# Messages are handled in chunks of at most so many messages and bytes; a trickle is gathered for linger_ms.
# chunk_max_messages = 4096
# chunk_max_bytes = 4194304
# linger_ms = 7.0
# How often outputs, state and offsets are made safe. Default: 1000, with exactly_once 100.
# checkpoint_interval_ms = 1000
# After so long without a sign of life, another worker takes over.
# session_timeout_ms = 10000
# This worker's name, the same after each restart. Default: the host's name.
# instance_id = "edge-1"
# Copies of the state on other workers.
# standby_replicas = 0
# Prometheus endpoint; port 0 is any free one, shown by `polarstream status`.
# metrics_host = "127.0.0.1"
# metrics_port = 0
# Where a new consumer group begins: earliest or latest.
# start_from = "earliest"

[inference]
# Models and devices, for streams of camera frames (docs/inference.md).
# Default: models in the data folder.
# models_dir = "models"
# auto: every OpenCL GPU, with the CPU as a last resort. Else cpu, and what `polarstream devices` lists.
# devices = ["auto"]
# How a device is chosen: round-robin, least-loaded or adaptive.
# strategy = "adaptive"
# decode_threads = 4
# Files of public keys: with any, models that none of them signed are refused.
# trusted_keys = []

[requests]
# Models asked by message: polarstream submit, connectors.client (docs/inference.md).
# enabled = true
# topic = "inference.requests"
# results_topic = "inference.results"
# Opened at the start; others answer once they are promoted.
# models = ["animals"]
# partitions = 4
# results_partitions = 8
# linger_ms = 2.0
# max_timeout_s = 300.0
# max_pixels = 40000000

# One [[streams]] for each topic of readings. A reading is a JSON object such as
#   {"sensor_id": "boiler-7", "ts": 1737500000.123, "temperature": 21.4, "humidity": 40.2}
[[streams]]
name = "plant"
topic = "sensors.plant"
# Partitions of the topic, where polarstream makes it.
# partitions = 4
# Key of the sensor's id; "": the Kafka key is the id.
# id_field = "sensor_id"
# Key of the time (epoch seconds or milliseconds, or RFC 3339); "": the Kafka timestamp counts.
# time_field = "ts"
# Finds site and type in a sensor's id, for thresholds, groups and silences.
# sensor_pattern = "(?P<site>[^/]+)/(?P<type>[a-z]+)"
# Thresholds of some sensors (sensor, site, sensor_type and field are patterns); the most specific rule wins.
# thresholds = [{ sensor = "boiler-*", field = "temperature", high = 90.0, threshold = 8.0 }]
# Sensors of one site (by = "site" or "type") scored together by a detector of their own (graph); members that
# are older than the newest one by more than max_age_s (60.0) are left out. See docs/detectors.md.
# join = { members = { a = { sensor = "*a", field = "pressure" }, b = { sensor = "*b", field = "humidity" }}}
# Readings further in the future go to the dead-letter topic.
# max_clock_skew_s = 300.0

# Measured values. A reading with a value outside min and max goes to the dead-letter topic.
[streams.fields.temperature]
unit = "°C"
min = -60
max = 200
# false: a reading may come without it.
# required = true
# Overrides the detector's threshold for this field.
# threshold = 8.0
# Applied in order before the detector: scale (factor, offset), clip (min, max), delta, rate (per_s),
# rolling (stat = mean, min or max; window_s).
# transforms = [{ type = "rolling", stat = "mean", window_s = 10 }]

[streams.fields.humidity]
unit = "%"
min = 0
max = 100

[streams.fields.pressure]
unit = "hPa"
min = 850
max = 1100

# What finds anomalies; docs/detectors.md says how to choose. auto: three detectors, weighed for each sensor.
[streams.detector]
type = "auto"
# An alarm on a sensor without faults comes once in so many readings, or more rarely ...
# once_in = 300
# ... and once in so many days.
# once_in_days = 2
# warmup = 150

[streams.alerts]
# Anomalous readings in a row that open an alert.
# open_after = 1
# Readings in a row below resolve_below * threshold that resolve it.
# resolve_below = 0.7
# resolve_after = 5
# info, warning or critical
# severity = "warning"
# The anomalous readings must also last so long.
# min_duration_s = 0.0
# Alerts of one site that begin within so many seconds get one alert as a group, from group_min sensors on.
# group_window_s = 60.0
# group_min = 3
# A sensor that is missing for so many times its usual gap, and at least silent_min_s, is an alert.
# silent_after = 10.0
# silent_min_s = 30.0

# Statistics by sensor and field, written to topics.analytics: tumbling (size_s), hopping (size_s, hop_s),
# session (gap_s).
[[streams.windows]]
type = "tumbling"
name = "1min"
size_s = 60
allowed_lateness_s = 5

# This machine's own telemetry: sensors <host>:cpu, <host>:memory ...
[[streams]]
name = "host"
topic = "sensors.host"

[streams.fields.value]

[[streams.windows]]
type = "tumbling"
name = "1min"
size_s = 60
allowed_lateness_s = 5
"""
