"""`models`: the folder of models that workers serve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from polarstream.cli.gpu import engine_errors
from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json, print_table, size
from polarstream.target import resolve_kafka
from streams.errors import UsageError

if TYPE_CHECKING:
    from gpu_inference.models.ensemble import Method

app = typer.Typer(
    help="The folder of models that workers serve.", no_args_is_help=True, rich_markup_mode=None
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME@VERSION")]
ModelNameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("list", epilog=examples("polarstream models list", "polarstream models list --json"))
def list_models(config: ConfigOption = None, json: JsonOption = False) -> int:
    """List models and their versions, with what is wrong in the folder.

    Exit code 1 when something in the folder can't be used.
    """
    from gpu_inference.models.folder import SIGNATURE_FILE, ModelFolder

    folder = ModelFolder(load_config(config).models_dir)
    found = folder.scan()
    with engine_errors():
        versions = [folder.load(name, one) for name, all_of in found.versions.items() for one in all_of]
    if json:
        print_json(
            {
                "folder": str(folder.root),
                "models": [
                    {
                        "name": version.name,
                        "version": version.version,
                        "sha256": version.model_sha256,
                        "size_bytes": version.size_bytes,
                        "task": version.manifest.output.__struct_config__.tag,
                        "signed": (version.path / SIGNATURE_FILE).exists(),
                    }
                    for version in versions
                ],
                "faults": found.faults,
            }
        )
    else:
        print(f"folder  {folder.root}")
        if versions:
            rows = [
                (
                    version.name,
                    version.version,
                    str(version.manifest.output.__struct_config__.tag),
                    size(version.size_bytes),
                    "yes" if (version.path / SIGNATURE_FILE).exists() else "no",
                    version.model_sha256[:12],
                )
                for version in versions
            ]
            print_table(("MODEL", "VERSION", "TASK", "SIZE", "SIGNED", "SHA-256"), rows)
        else:
            print("no models: polarstream models add NAME@VERSION model.onnx --manifest model.toml")
        for fault in found.faults:
            print(f"fault: {fault}")
    return int(bool(found.faults))


@app.command(
    epilog=examples(
        "polarstream models add gate@1 model.onnx --manifest model.toml --file labels.txt",
        "polarstream models add gate@2 model.onnx --manifest model.toml --key ours.key",
    )
)
def add(
    name: NameArgument,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")],
    manifest: Annotated[Path, typer.Option(metavar="FILE", help="Its model.toml.")],
    file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="What else belongs to it, such as labels.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key to sign it with.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Add a version; the manifest is held against the model first. A version never changes afterwards."""
    import gpu_inference
    from gpu_inference.models import manifest as manifests
    from gpu_inference.models import signature
    from gpu_inference.models.binding import bind
    from gpu_inference.models.folder import ModelFolder
    from polarstream.models import split

    model_name, version_name = split(name)
    folder = ModelFolder(load_config(config).models_dir)
    with engine_errors():
        session = gpu_inference.load(model, engine="onnxruntime")
        try:
            bind(manifests.read(manifest), session.inputs, session.outputs)
        finally:
            session.close()
        private_key = None if key is None else signature.read_private_key(key)
        version = folder.add(model_name, version_name, model, manifest, file or ())
        if private_key is not None:
            signature.sign(version, private_key)
    if json:
        print_json({"path": str(version.path), "sha256": version.model_sha256})
    else:
        print(f"added {name}: {version.path}, SHA-256 {version.model_sha256}")
    return 0


@app.command(epilog=examples("polarstream models verify gate@1"))
def verify(name: NameArgument, config: ConfigOption = None, json: JsonOption = False) -> int:
    """Check a version's signature against `inference.trusted_keys`."""
    from gpu_inference.models import signature
    from gpu_inference.models.folder import ModelFolder
    from polarstream.models import split

    loaded = load_config(config)
    with engine_errors():
        version = ModelFolder(loaded.models_dir).load(*split(name))
        trusted = signature.TrustedKeys.read(map(Path, loaded.inference.trusted_keys))
        signed_by = trusted.verify(version)
    if json:
        print_json({"signed_by": signed_by, "sha256": version.sha256})
    else:
        print(f"{name} is as '{signed_by}' signed it")
    return 0


@app.command(epilog=examples("polarstream models keys ours"))
def keys(path: Annotated[Path, typer.Argument(metavar="PATH")], json: JsonOption = False) -> int:
    """Make a pair of keys: PATH.key signs models, PATH.pub goes into `inference.trusted_keys`."""
    from gpu_inference.models import signature

    with engine_errors():
        private, public = signature.write_keys(path)
    if json:
        print_json({"private": str(private), "public": str(public)})
    else:
        print(f"{private} signs models: keep it to yourself; {public} goes into inference.trusted_keys")
    return 0


@app.command(
    epilog=examples("polarstream models promote gate@2", "polarstream models promote gate@2 --keep-previous")
)
def promote(
    name: NameArgument,
    keep_previous: Annotated[
        bool, typer.Option("--keep-previous", help="Keep the one before loaded: a roll back takes no time.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Make a version live on all workers; the one before serves until it is ready."""
    from polarstream import models

    loaded = load_config(config)
    with engine_errors():
        asyncio.run(models.promote(loaded, resolve_kafka(loaded), name, keep_previous))
    return _told(json, {"live": name}, f"{name} goes live")


@app.command(epilog=examples("polarstream models rollback gate"))
def rollback(name: ModelNameArgument, config: ConfigOption = None, json: JsonOption = False) -> int:
    """Make the version before live again; where a canary runs, only end that."""
    from polarstream import models

    loaded = load_config(config)
    with engine_errors():
        version = asyncio.run(models.roll_back(loaded, resolve_kafka(loaded), name))
    return _told(json, {"live": f"{name}@{version}"}, f"{name}@{version} goes live")


@app.command(epilog=examples("polarstream models canary gate@3 --part 0.1"))
def canary(
    name: NameArgument,
    part: Annotated[
        float, typer.Option(min=0.001, max=1, help="Part of the sources, the same ones all along.")
    ],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Let a version answer for a part of the sources; `rollback` ends it, `promote` makes it live."""
    from polarstream import models

    loaded = load_config(config)
    with engine_errors():
        asyncio.run(models.try_out(loaded, resolve_kafka(loaded), name, part))
    return _told(json, {"canary": name, "part": part}, f"{name} answers for {part:.1%} of the sources")


@app.command(epilog=examples("polarstream models shadow gate@3"))
def shadow(name: NameArgument, config: ConfigOption = None, json: JsonOption = False) -> int:
    """Let a version see every frame without its answers being published."""
    from polarstream import models

    loaded = load_config(config)
    with engine_errors():
        asyncio.run(models.try_out(loaded, resolve_kafka(loaded), name, 0.0))
    return _told(json, {"shadow": name}, f"{name} looks on")


@app.command(epilog=examples("polarstream models unload gate"))
def unload(name: ModelNameArgument, config: ConfigOption = None, json: JsonOption = False) -> int:
    """End a model on all workers: streams that name it wait until a version is promoted."""
    from polarstream import models

    loaded = load_config(config)
    asyncio.run(models.unload(loaded, resolve_kafka(loaded), name))
    return _told(json, {"unloaded": name}, f"{name} is unloaded")


@app.command(
    epilog=examples("polarstream models alias best gate@1=9 gate@2=1", "polarstream models alias best")
)
def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS")],
    shares: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL[@VERSION]=WEIGHT", help="None: take the alias back.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Share the traffic of a name among models and versions, by weight and stable for each source."""
    from polarstream import models

    loaded = load_config(config)
    with engine_errors():
        asyncio.run(models.set_alias(loaded, resolve_kafka(loaded), name, shares or ()))
    return _told(
        json, {"alias": name, "shares": shares or []}, f"alias {name}: {', '.join(shares or ['gone'])}"
    )


@app.command(
    epilog=examples(
        "polarstream models ensemble both gate yard",
        "polarstream models ensemble both gate=2 yard=1 --method weighted",
        "polarstream models ensemble both",
    )
)
def ensemble(
    name: ModelNameArgument,
    members: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL[=WEIGHT]", help="None: take the ensemble back.")
    ] = None,
    method: Annotated[str, typer.Option(help="mean, weighted, vote or median.")] = "mean",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Let several models answer together under one name."""
    from gpu_inference.models.ensemble import METHODS
    from polarstream import models

    if method not in METHODS:
        raise UsageError(f"--method {method} is none of {', '.join(METHODS)}")
    loaded = load_config(config)
    wanted = cast("Method", method)
    asyncio.run(models.set_ensemble(loaded, resolve_kafka(loaded), name, members or (), wanted))
    return _told(
        json,
        {"ensemble": name, "members": members or []},
        f"ensemble {name}: {', '.join(members or ['gone'])}",
    )


@app.command(
    epilog=examples(
        "polarstream models cascade guard gate yard --max-score 0.6",
        "polarstream models cascade guard gate yard --label person --min-score 0.3",
    )
)
def cascade(
    name: ModelNameArgument,
    first: Annotated[str, typer.Argument(metavar="FIRST", help="The cheap model.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The dear one.")],
    label: Annotated[list[str] | None, typer.Option(help="Run the second for these labels only.")] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Run it from this score on.")] = 0.0,
    max_score: Annotated[float, typer.Option(min=0, max=1, help="Run it up to this score.")] = 1.0,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> int:
    """Let a cheap model's answer decide whether a dear one runs."""
    from gpu_inference.models.ensemble import CascadeRule
    from polarstream import models

    loaded = load_config(config)
    rule = CascadeRule(labels=tuple(label or ()), min_score=min_score, max_score=max_score)
    asyncio.run(models.set_cascade(loaded, resolve_kafka(loaded), name, first, second, rule))
    return _told(
        json, {"cascade": name, "first": first, "second": second}, f"cascade {name}: {first}, then {second}"
    )


@app.command(epilog=examples("polarstream models live", "polarstream models live --json"))
def live(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Show what is live by the models topic."""
    from polarstream import models

    loaded = load_config(config)
    found = asyncio.run(models.read_models(loaded, resolve_kafka(loaded)))
    if json:
        print_json(
            {
                "models": found.models,
                "aliases": found.aliases,
                "ensembles": found.ensembles,
                "cascades": found.cascades,
            }
        )
        return 0
    if not (found.models or found.aliases or found.ensembles or found.cascades):
        print("nothing is set: workers serve the newest version of the models that their streams name")
    for name, record in found.models.items():
        more = [f"before {record.previous}"] if record.previous else []
        more += [f"canary {record.canary.version} for {record.canary.part:.1%}"] if record.canary else []
        more += [f"shadow {version}" for version in record.shadows]
        print(f"{name}@{record.live}" + (f"  ({', '.join(more)})" if more else ""))
    for name, alias_record in found.aliases.items():
        shares = [
            f"{s.model}{'@' + s.version if s.version else ''}={s.weight:g}" for s in alias_record.traffic
        ]
        print(f"{name}  alias: {', '.join(shares)}")
    for name, together in found.ensembles.items():
        print(f"{name}  {together.method} of {', '.join(together.members)}")
    for name, steps in found.cascades.items():
        print(f"{name}  cascade: {steps.first}, then {steps.second}")
    return 0


def _told(json: bool, what: dict[str, object], text: str) -> int:
    if json:
        print_json(what)
    else:
        print(text)
    return 0
