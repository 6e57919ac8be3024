"""Which models are live: reading the models topic, and the changes that the commands make to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectors.errors import TopicMissing
from gpu_inference.errors import ModelError, RecordError
from gpu_inference.models import records
from gpu_inference.models.ensemble import CascadeRule, Method
from gpu_inference.models.folder import ModelFolder
from gpu_inference.models.live import LiveModels
from gpu_inference.models.records import AliasRecord, CascadeRecord, EnsembleRecord, Message, Share
from polarstream.control import store
from polarstream.reader import Reader, Start
from streams.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polarstream.config import Config
    from streams.config import KafkaConfig


def split(name: str) -> tuple[str, str]:
    """Take `name@version` apart.

    Raises:
        UsageError: it is something else.
    """
    model, _, version = name.partition("@")
    if not model or not version:
        raise UsageError(f"'{name}' names no version: write name@version")
    return model, version


async def read_models(config: Config, kafka: KafkaConfig) -> LiveModels:
    """What the models topic says now; what can't be used is left out."""
    live = LiveModels()
    try:
        async with Reader(kafka, [config.topics.models], Start("earliest")) as reader:
            async for messages in reader.to_end():
                for message in messages:
                    try:
                        live.apply(message.key, message.value)
                    except RecordError:
                        continue
    except TopicMissing:
        pass
    return live


async def promote(config: Config, kafka: KafkaConfig, name: str, keep_previous: bool = False) -> None:
    """Make a version of the folder live; the one before stays known for a roll back.

    Raises:
        UsageError: the name is no `name@version`.
        RegistryError: there is no such version in the folder, or it is another file than was added.
        BrokerUnavailable: no broker stored it.
    """
    model, version = split(name)
    live = await read_models(config, kafka)
    added = _added(config, live, model, version)
    if model not in live.models:
        # what workers serve by themselves until now is what a roll back brings back
        older = [v for v in ModelFolder(config.models_dir).scan().versions.get(model, []) if v != version]
        if older:
            added += _added(config, live, model, older[-1])
            live.apply(*live.promote(model, older[-1]))
    await _store(config, kafka, [*added, live.promote(model, version, keep_previous)])


async def roll_back(config: Config, kafka: KafkaConfig, model: str) -> str:
    """Make the version before live again, or end a canary; returns what is live then.

    Raises:
        RegistryError: there is none before.
        BrokerUnavailable: no broker stored it.
    """
    live = await read_models(config, kafka)
    message = live.roll_back(model)
    await _store(config, kafka, [message])
    live.apply(*message)
    return live.models[model].live


async def try_out(config: Config, kafka: KafkaConfig, name: str, part: float) -> None:
    """Let a version answer for a part of the sources, or with part 0 only look on.

    Raises:
        RegistryError: the model is not live, or there is no such version.
        BrokerUnavailable: no broker stored it.
    """
    model, version = split(name)
    live = await read_models(config, kafka)
    added = _added(config, live, model, version)
    await _store(config, kafka, [*added, live.try_out(model, version, part)])


async def unload(config: Config, kafka: KafkaConfig, model: str) -> None:
    """End a model on all workers.

    Raises:
        BrokerUnavailable: no broker stored it.
    """
    await _store(config, kafka, [LiveModels.unload(model)])


async def set_alias(config: Config, kafka: KafkaConfig, alias: str, shares: Sequence[str]) -> None:
    """Say where the traffic of an alias goes; without shares the alias is taken back.

    Args:
        config: settings.
        kafka: the brokers.
        alias: its name, which streams use as that of a model.
        shares: `model=weight` or `model@version=weight` each.

    Raises:
        UsageError: a share can't be read.
        RegistryError: there is no such version.
        BrokerUnavailable: no broker stored it.
    """
    if not shares:
        await _store(config, kafka, [records.encode(("alias", alias), None)])
        return
    live = await read_models(config, kafka)
    added: list[Message] = []
    traffic = []
    for text in shares:
        target, _, weight = text.partition("=")
        model, _, version = target.partition("@")
        try:
            traffic.append(Share(model=model, version=version or None, weight=float(weight or 1)))
        except ValueError:
            raise UsageError(f"'{text}' is no share: write model=weight or model@version=weight") from None
        if version:
            added += _added(config, live, model, version)
        elif model not in live.models:
            raise UsageError(f"model '{model}' is not live: promote a version of it first")
    await _store(
        config, kafka, [*added, records.encode(("alias", alias), AliasRecord(traffic=tuple(traffic)))]
    )


async def set_ensemble(
    config: Config, kafka: KafkaConfig, name: str, members: Sequence[str], method: Method
) -> None:
    """Let several models answer together under one name; without members it is taken back.

    Args:
        config: settings.
        kafka: the brokers.
        name: which streams use as that of a model.
        members: models or aliases, for `weighted` and `vote` each with `=weight`.
        method: how answers become one.

    Raises:
        UsageError: members and weights can't be used.
        BrokerUnavailable: no broker stored it.
    """
    record = None
    if members:
        pairs = [text.partition("=") for text in members]
        try:
            weights = tuple(float(weight) for _, _, weight in pairs if weight)
        except ValueError:
            raise UsageError(f"'{' '.join(members)}': write model or model=weight each") from None
        record = EnsembleRecord(members=tuple(one for one, _, _ in pairs), method=method, weights=weights)
        try:
            record.ensemble()
        except ModelError as error:
            raise UsageError(str(error)) from error
    await _store(config, kafka, [records.encode(("ensemble", name), record)])


async def set_cascade(
    config: Config, kafka: KafkaConfig, name: str, first: str, second: str, rule: CascadeRule
) -> None:
    """Let a cheap model decide whether a dear one runs.

    Args:
        config: settings.
        kafka: the brokers.
        name: which streams use as that of a model.
        first: the cheap model or alias.
        second: the dear one.
        rule: when it runs.

    Raises:
        UsageError: a name can't be one.
        BrokerUnavailable: no broker stored it.
    """
    record = CascadeRecord(first=first, second=second, rule=rule)
    await _store(config, kafka, [records.encode(("cascade", name), record)])


def _added(config: Config, live: LiveModels, model: str, version: str) -> list[Message]:
    """The record of a version, unless there is one."""
    found = ModelFolder(config.models_dir).load(model, version)
    message = live.added(model, version, found.model_sha256)
    if (model, version) in live.versions:
        return []
    live.apply(*message)
    return [message]


async def _store(config: Config, kafka: KafkaConfig, messages: Sequence[Message]) -> None:
    for key, value in messages:
        try:
            records.decode(key, value)
        except RecordError as error:
            raise UsageError(str(error)) from error
    await store(config, kafka, config.topics.models, messages)
