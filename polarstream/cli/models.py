"""`models`: the folder of models that workers serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polarstream.cli.gpu import engine_errors
from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json, print_table, size
from streams.errors import UsageError

app = typer.Typer(
    help="The folder of models that workers serve.", no_args_is_help=True, rich_markup_mode=None
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME@VERSION")]


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


def split(name: str) -> tuple[str, str]:
    """Take `name@version` apart.

    Raises:
        UsageError: it is something else.
    """
    model, _, version = name.partition("@")
    if not model or not version:
        raise UsageError(f"'{name}' names no version: write name@version")
    return model, version
