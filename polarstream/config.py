"""The configuration of polarstream: one TOML file, environment overrides, checked whole.

    config = load(None)

reads, in this order, the file that is named, `$POLARSTREAM_CONFIG`, `./polarstream.toml`, or nothing; then
every `POLARSTREAM_<SECTION>__<SETTING>` of the environment. A configuration with faults is refused with all
of them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from polarstream.config_rules import check_config
from polarstream.demo import requirements
from polarstream.validation import BAD, Converter, EnvText, suggest
from streams.config import (
    FrameStreamConfig,
    InferenceConfig,
    KafkaConfig,
    RequestsConfig,
    StreamConfig,
    TopicsConfig,
    WorkerConfig,
)
from streams.errors import ConfigError, Fault

PREFIX: Final = "POLARSTREAM_"

#: The streams of a first look: this machine's telemetry and the simulated plant. `ewz` is warm in half a
#: minute, `auto` at one reading a second after more than three.
DEMO_STREAMS: Final[list[dict[str, Any]]] = [
    {
        "name": "host",
        "topic": "sensors.host",
        "fields": {"value": {}},
        "detector": {"type": "ewz"},
        "windows": [{"type": "tumbling", "name": "1min", "size_s": 60, "allowed_lateness_s": 5}],
    },
    {
        "name": "plant",
        "topic": "sensors.plant",
        "fields": {
            "temperature": {"unit": "°C", "min": -60, "max": 200},
            "humidity": {"unit": "%", "min": 0, "max": 100},
            "pressure": {"unit": "hPa", "min": 850, "max": 1100},
        },
        "detector": {"type": "ewz"},
        "windows": [{"type": "tumbling", "name": "1min", "size_s": 60, "allowed_lateness_s": 5}],
    },
]

#: Camera frames, where the packages for that are installed. Frames that wait are dropped rather than answered
#: late: on a small machine they must not hold up the readings.
DEMO_FRAMES: Final[list[dict[str, Any]]] = [
    {
        "name": "camera",
        "topic": "frames.camera",
        "model": "efficientnet-lite0",
        "partitions": 2,
        "policy": "latest",
    }
]


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """All settings of polarstream."""

    #: Consumer group of the workers and the head of the names of their state topics.
    app_id: str = "polarstream"
    #: Where the local broker, the workers' runtime files and the outboxes live.
    data_dir: Path
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    kafka: KafkaConfig = KafkaConfig()
    topics: TopicsConfig = TopicsConfig()
    worker: WorkerConfig = WorkerConfig()
    streams: list[StreamConfig]
    #: Streams of camera frames.
    frames: list[FrameStreamConfig] = []
    requests: RequestsConfig = RequestsConfig()
    inference: InferenceConfig = InferenceConfig()

    @property
    def inputs(self) -> list[StreamConfig | FrameStreamConfig | RequestsConfig]:
        """All that a worker reads."""
        return [*self.streams, *self.frames, *([self.requests] if self.requests.enabled else [])]

    @property
    def models_dir(self) -> Path:
        """The folder of models."""
        given = self.inference.models_dir
        return self.data_dir / "models" if given is None else Path(os.path.expanduser(given))

    def describe(self) -> dict[str, Any]:
        """Plain values for printing; the password is masked."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        if plain["kafka"]["sasl_password"] is not None:
            plain["kafka"]["sasl_password"] = "***"
        return plain


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read, override and check the configuration.

    Args:
        path: the file; None: `$POLARSTREAM_CONFIG`, else `./polarstream.toml` if there is one, else the
            built-in defaults, which are the demo.
        env: the environment; None: that of this process.

    Raises:
        ConfigError: with every fault, each with its path or the variable that it comes from.
    """
    env = os.environ if env is None else env
    path = find(path, env)
    raw = _read(path) if path is not None else {}
    return parse(raw, env)


def left_out_of_demo(config: Config) -> list[str]:
    """The packages without which the demo runs without camera frames; none for other configurations."""
    is_demo = config.streams == msgspec.convert(DEMO_STREAMS, list[StreamConfig])
    return requirements.missing() if is_demo and not config.frames else []


def find(path: Path | None = None, env: Mapping[str, str] | None = None) -> Path | None:
    """The file that `load` reads; None: the defaults."""
    env = os.environ if env is None else env
    if path is not None:
        return path
    if env.get(PREFIX + "CONFIG"):
        return Path(os.path.expanduser(env[PREFIX + "CONFIG"]))
    local = Path("polarstream.toml")
    return local if local.is_file() else None


def parse(raw: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Config:
    """Make the configuration of TOML's tables and the environment; see `load`."""
    env = {} if env is None else env
    faults: list[Fault] = []
    origins: dict[str, str] = {}
    created: dict[str, str] = {}
    tree = _copy(raw)
    # the demo streams only for who configures no streams: a kafka section alone still shows something
    if "streams" not in tree:
        asked = tree.get("requests")
        demo = not tree.get("frames") and not (isinstance(asked, dict) and asked.get("enabled") is True)
        tree["streams"] = _copy(DEMO_STREAMS) if demo else []
        if demo and not requirements.missing():
            tree.setdefault("frames", _copy(DEMO_FRAMES))
    _override(tree, env, origins, created, faults)
    tree.setdefault("data_dir", str(default_data_dir(env)))

    bad_paths: set[str] = set()

    def note(path: str, message: str) -> None:
        bad_paths.add(path)
        faults.append(Fault(created.get(path) or _named(path, origins), message))

    def note_rule(path: str, message: str) -> None:
        if path not in bad_paths:
            faults.append(Fault(created.get(path) or _named(path, origins), message))

    config = Converter(note).struct(Config, tree, "")
    sound = config
    if config is BAD:
        # a text that is missing or bad is empty here, and "" has faults of its own: they are not told twice
        sound = Converter(lambda path, message: None, salvage=True).struct(Config, tree, "")
    if sound is not BAD:
        check_config(sound, frozenset(bad_paths), note_rule)
    if faults or config is BAD:
        raise ConfigError(faults)
    made: Config = config
    return made


def default_data_dir(env: Mapping[str, str]) -> Path:
    """`$POLARSTREAM_DATA_DIR`, else `$XDG_DATA_HOME/polarstream`, else `~/.local/share/polarstream`."""
    if env.get(PREFIX + "DATA_DIR"):
        return Path(os.path.expanduser(env[PREFIX + "DATA_DIR"]))
    if env.get("XDG_DATA_HOME"):
        return Path(env["XDG_DATA_HOME"]) / "polarstream"
    return Path(env.get("HOME") or Path.home()) / ".local" / "share" / "polarstream"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([Fault(str(path), f"cannot be read ({why}): name a readable file")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Fault(str(path), f"is not UTF-8 ({error.reason}): save it as UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Fault(str(path), f"is not TOML: {_lower(str(error))}")]) from error


def _override(
    tree: dict[str, Any],
    env: Mapping[str, str],
    origins: dict[str, str],
    created: dict[str, str],
    faults: list[Fault],
) -> None:
    """Put the environment's settings into the tables.

    Args:
        tree: changed in place.
        env: the environment.
        origins: gets the variable of each path that is set.
        created: gets the variable of each table that is made on the way there.
        faults: gets what can't be put anywhere.
    """
    known = Config.__struct_fields__
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX):
            continue
        head, *rest = variable.removeprefix(PREFIX).split("__")
        section = head.lower()
        if section not in known:
            # others use this prefix too (our own caches, Kubernetes' POLARSTREAM_PORT): only what looks
            # like a setting is taken for a slip
            close = suggest(section, known)
            if rest or (close and abs(len(close) - len(section)) <= 2):
                hint = f"did you mean {PREFIX}{'__'.join([close.upper(), *rest])}?" if close else "remove it"
                faults.append(Fault(variable, f"is not a setting: {hint}"))
            continue
        if section == "data_dir" and not text:
            continue
        node: Any = tree
        path = ""
        for word in (head, *rest[:-1]) if rest else ():
            key = _key(node, word)
            path = _step(path, key)
            if isinstance(node, list):
                node = node[key] if isinstance(key, int) and key < len(node) else None
            else:
                if key not in node:
                    node[key] = {}
                    created[path] = variable
                node = node[key]
            if not isinstance(node, (dict, list)):
                faults.append(Fault(variable, f"there is no {path} to set it in: add that to the file"))
                break
        else:
            key = _key(node, rest[-1] if rest else head)
            if isinstance(node, list) and not (isinstance(key, int) and key < len(node)):
                faults.append(Fault(variable, f"there is no {_step(path, key)}: add it to the file"))
                continue
            node[key] = EnvText(text)
            origins[_step(path, key)] = variable


def _key(node: Any, word: str) -> str | int:
    """The key that a variable's word means: an index in a list, in a table the key of any case."""
    if isinstance(node, list):
        return int(word) if word.isdecimal() else word
    same = [key for key in node if key.lower() == word.lower()]
    return same[0] if same else word.lower()


def _step(path: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _named(path: str, origins: Mapping[str, str]) -> str:
    """The path, or the variable that set it (with what comes below the variable's own path)."""
    for origin in sorted(origins, key=len, reverse=True):
        if path == origin or path.startswith((f"{origin}.", f"{origin}[")):
            return origins[origin] + path[len(origin) :]
    return path


def _copy(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        return {key: _copy(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_copy(value) for value in raw]
    return raw


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
