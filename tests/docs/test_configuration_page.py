"""The page of settings against the structs that read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from msgspec import inspect

from anomaly.detectors.balances import Balance
from anomaly.registry import DETECTORS, find_detector
from polarstream.config import Config, parse
from streams import config as settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "configuration.md"
HEADING: Final = re.compile(r"^#{2,4} .*?`(?P<name>[^`]+)`")
ROW: Final = re.compile(r"^\| `(?P<name>\w+)` \|(?P<type>[^|]+)\|(?P<default>[^|]+)\|(?P<rest>.*)\|$")
UNITS: Final = {"ms": "ms", "s": "s", "hours": "h", "bytes": "bytes"}

#: The headings of the page that have a table, and the struct of each.
SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "polarstream.toml": Config,
    "[kafka]": settings.KafkaConfig,
    "[topics]": settings.TopicsConfig,
    "[worker]": settings.WorkerConfig,
    "[inference]": settings.InferenceConfig,
    "[requests]": settings.RequestsConfig,
    "[[frames]]": settings.FrameStreamConfig,
    "[[streams]]": settings.StreamConfig,
    "[streams.fields.<name>]": settings.FieldConfig,
    "scale": settings.ScaleConfig,
    "clip": settings.ClipConfig,
    "rate": settings.RateConfig,
    "rolling": settings.RollingConfig,
    "[streams.join]": settings.JoinConfig,
    "[streams.join.members.<name>]": settings.MemberConfig,
    "[streams.alerts]": settings.AlertConfig,
    "[streams.drift]": settings.DriftConfig,
    "[streams.prognosis]": settings.PrognosisConfig,
    "[[streams.prognosis.limits]]": settings.LimitConfig,
    "[[streams.thresholds]]": settings.ThresholdConfig,
    "tumbling": settings.TumblingConfig,
    "hopping": settings.HoppingConfig,
    "session": settings.SessionConfig,
    "[[streams.detector.balances]]": Balance,
    **{name: find_detector(name).config_type for name in DETECTORS},
}
#: Settings whose default is worked out, and how the page says it.
WORKED_OUT: Final = {
    ("polarstream.toml", "data_dir"): "see below",
    ("[[streams]]", "detector"): '`{ type = "auto" }`',
}
#: The sections whose settings have one environment variable each.
PREFIXES: Final = {
    "polarstream.toml": "POLARSTREAM_",
    "[kafka]": "POLARSTREAM_KAFKA__",
    "[topics]": "POLARSTREAM_TOPICS__",
    "[worker]": "POLARSTREAM_WORKER__",
    "[inference]": "POLARSTREAM_INFERENCE__",
    "[requests]": "POLARSTREAM_REQUESTS__",
}


class Setting(NamedTuple):
    name: str
    type: str
    default: str
    variable: str = ""


def type_text(info: inspect.Type) -> str:
    """A type in words; the page uses the same."""
    match info:
        case inspect.Metadata():
            return type_text(info.type)
        case inspect.UnionType() if any(isinstance(kind, inspect.StructType) for kind in info.types):
            return "table"
        case inspect.UnionType():
            return type_text(next(kind for kind in info.types if not isinstance(kind, inspect.NoneType)))
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in info.values)
        case inspect.IntType() | inspect.FloatType():
            return ("integer" if isinstance(info, inspect.IntType) else "number") + _range(info)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text"
        case inspect.ListType():
            return f"list of {type_text(info.item_type)}s"
        case inspect.CustomType() if info.cls is Path:
            return "path"
        case inspect.DictType() | inspect.StructType():
            return "table"
    raise AssertionError(info)


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    if info.gt is not None:
        return f" above {info.gt:g}"
    if info.ge is not None and info.le is not None:
        return f" {info.ge:.15g} to {info.le:.15g}"
    return "" if info.ge is None else f" from {info.ge:.15g}"


def default_text(section: str, field: inspect.Field) -> str:
    """A default as the page says it."""
    if (section, field.name) in WORKED_OUT:
        return WORKED_OUT[section, field.name]
    if field.required:
        return "required"
    if field.default_factory is not inspect.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if field.default is None:
        return "unset"
    if isinstance(field.default, msgspec.Struct):
        return "its defaults"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def settings_of(section: str) -> list[Setting]:
    info = inspect.type_info(SECTIONS[section])
    assert isinstance(info, inspect.StructType)
    found = []
    for field in info.fields:
        kind = type_text(field.type)
        if section == "polarstream.toml" and kind in ("table", "list of tables"):
            continue  # a section of its own
        unit = UNITS.get(field.name.rpartition("_")[2])
        variable = f"`{PREFIXES[section]}{field.name.upper()}`" if section in PREFIXES else ""
        text = f"{kind}, {unit}" if unit else kind
        found.append(Setting(field.encode_name, text, default_text(section, field), variable))
    return found


def written() -> dict[str, list[Setting]]:
    page: dict[str, list[Setting]] = {}
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = HEADING.match(line)
            section = heading["name"] if heading else ""
        row = ROW.match(line)
        if row is None or not section:
            continue
        rest = [cell.strip() for cell in row["rest"].split("|")]
        assert rest[-1], f"{section} {row['name']} has no meaning"
        variable = rest[0] if section in PREFIXES else ""
        page.setdefault(section, []).append(
            Setting(row["name"], row["type"].strip(), row["default"].strip(), variable)
        )
    return page


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_on_the_page_with_its_type_default_and_variable(section: str) -> None:
    assert written().get(section) == settings_of(section)


def test_the_page_has_no_settings_of_other_sections() -> None:
    assert set(written()) == set(SECTIONS)


def test_every_struct_of_the_configuration_is_on_the_page() -> None:
    structs: set[Any] = {
        kind
        for kind in vars(settings).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_fields__
    }
    assert structs - set(SECTIONS.values()) == set()


@pytest.mark.parametrize("section", PREFIXES)
def test_every_variable_on_the_page_sets_its_setting(section: str) -> None:
    info = inspect.type_info(SECTIONS[section])
    assert isinstance(info, inspect.StructType)
    fields = {field.name: field for field in info.fields}
    for setting in written()[section]:
        field = fields[setting.name]
        if field.required or field.default is None or field.default_factory is not inspect.NODEFAULT:
            continue
        value = field.default
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        # given as a fault, the variable is named; given as the default, it is taken
        parse({}, {setting.variable.strip("`"): text})


def test_the_examples_of_the_page_are_valid() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    import tomllib

    for block in blocks:
        parse(tomllib.loads(block), {})
