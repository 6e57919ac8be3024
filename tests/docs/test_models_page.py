"""The page of models against the structs that read model.toml and the records, and against the tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec import inspect

from gpu_inference.errors import ManifestError
from gpu_inference.models import manifest, records
from gpu_inference.models.comparison import Rules
from gpu_inference.models.ensemble import CascadeRule

PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"
ROW: Final = re.compile(r"^\| `(?P<name>\w+)` \|(?P<type>[^|]+)\|(?P<default>[^|]+)\|(?P<meaning>.*)\|$")

#: The headings of the page that have a table, and the struct of each.
SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "[input] kind image": manifest.ImageInput,
    "[input] kind series": manifest.SeriesInput,
    "[input] kind tensor": manifest.TensorInput,
    "[output] task classification": manifest.Classification,
    "[output] task detection": manifest.Detection,
    "[output] task segmentation": manifest.Segmentation,
    "[output] task embedding": manifest.Embedding,
    "[output] task regression": manifest.Regression,
    "[output] task series": manifest.Series,
    "[output] task raw": manifest.Raw,
    "[limits]": manifest.Limits,
    "[meta]": manifest.About,
    "version record": records.VersionRecord,
    "model record": records.ModelRecord,
    "canary": records.Canary,
    "alias record": records.AliasRecord,
    "share": records.Share,
    "ensemble record": records.EnsembleRecord,
    "cascade record": records.CascadeRecord,
    "trial rules": Rules,
    "cascade rule": CascadeRule,
}


def type_text(info: inspect.Type) -> str:
    """A type in words; the page uses the same."""
    match info:
        case inspect.Metadata():
            return type_text(info.type)
        case inspect.UnionType():
            kinds = [type_text(kind) for kind in info.types if not isinstance(kind, inspect.NoneType)]
            return " or ".join(dict.fromkeys(kinds))
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in info.values)
        case inspect.IntType() | inspect.FloatType():
            return ("integer" if isinstance(info, inspect.IntType) else "number") + _range(info)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text"
        case inspect.VarTupleType():
            return f"list of {type_text(info.item_type)}"
        case inspect.TupleType():
            return f"{len(info.item_types)} of {type_text(info.item_types[0])}"
        case inspect.StructType():
            return "table"
    raise AssertionError(info)


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    low = (
        f" above {info.gt:g}" if info.gt is not None else f" from {info.ge:g}" if info.ge is not None else ""
    )
    return low if info.le is None else f"{low} to {info.le:g}"


def default_text(field: inspect.Field) -> str:
    """A default as the page says it."""
    if field.required:
        return "required"
    if field.default is None:
        return "unset"
    if field.default == 1 / 255:
        return "`1/255`"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def settings_of(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [(field.encode_name, type_text(field.type), default_text(field)) for field in info.fields]


def written() -> dict[str, list[tuple[str, str, str]]]:
    page: dict[str, list[tuple[str, str, str]]] = {}
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.lstrip("#").replace("`", "").strip()
        row = ROW.match(line)
        if row is not None and section in SECTIONS:
            assert row["meaning"].strip(), f"{section} {row['name']} has no meaning"
            page.setdefault(section, []).append((row["name"], row["type"].strip(), row["default"].strip()))
    return page


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_on_the_page_with_its_type_and_default(section: str) -> None:
    assert written().get(section) == settings_of(SECTIONS[section])


def test_every_struct_of_a_manifest_is_on_the_page() -> None:
    structs: set[Any] = {
        kind
        for module in (manifest, records)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not name.startswith("_")
    }
    assert structs - set(SECTIONS.values()) == {manifest.Manifest}


def test_the_examples_of_the_page_are_valid() -> None:
    text = PAGE.read_text(encoding="utf-8")
    manifests = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(manifests) >= 4
    for example in manifests:
        try:
            manifest.parse(example)
        except ManifestError as error:
            raise AssertionError(f"{error}\nin\n{example}") from error


def test_the_records_of_the_page_are_valid() -> None:
    lines = re.findall(r"^(\w+/[^\s]+) +(\{.*\})$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    kinds = {records.decode(key.encode(), value.encode())[0][0] for key, value in lines}
    assert kinds == {"version", "model", "alias", "ensemble", "cascade"}
