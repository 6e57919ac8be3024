"""What the local broker is told: `server.properties` and the logging of its Java runtime."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streams.errors import UsageError

HOST = "127.0.0.1"
NODE_ID = 1
_MIB = 1 << 20
_SCRAM_ITERATIONS = 8192

#: What one node on a user's own machine needs, beside ports and folders.
DEFAULTS: Mapping[str, str] = {
    # one node: nothing can be replicated, and a group's first members need not wait for others
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "group.initial.rebalance.delay.ms": "0",
    # few partitions for the internal topics: each is a folder, files and a start-up cost
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # a dead worker is noticed as fast as its own session timeout asks for
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "300",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # topics are made on purpose, with their partition count, never by a typing error
    "auto.create.topics.enable": "false",
    # a machine's disk is bounded: bytes for each partition, in segments small enough to drop
    "log.retention.hours": "168",
    "log.retention.bytes": str(1024 * _MIB),
    "log.segment.bytes": str(128 * _MIB),
    "log.retention.check.interval.ms": "30000",
    "log.index.size.max.bytes": str(_MIB),
    "offsets.topic.segment.bytes": str(16 * _MIB),
    "transaction.state.log.segment.bytes": str(16 * _MIB),
    "metadata.log.segment.bytes": str(16 * _MIB),
    "metadata.max.retention.bytes": str(64 * _MIB),
    # memory and threads for a heap of 384 MiB; the cleaner's default buffer alone is 128 MiB
    "log.cleaner.dedupe.buffer.size": str(16 * _MIB),
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.threads": "1",
    # after kill -9 the broker waits for the session of its dead self: 13 s until ready with the
    # default of 9 s, 6 s with this
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


@dataclass(frozen=True, slots=True)
class SaslSsl:
    """A listener with TLS and passwords instead of the plain one.

    Args:
        certificate: PEM file: the broker's certificate, then those that signed it. Clients reach
            the broker at 127.0.0.1, so that must be among its subject alternative names.
        key: PEM file: its private key, PKCS#8, unencrypted.
        authority: PEM file: the certificate that signed it; also what a client certificate, which
            is asked for but not demanded, is checked against.
        users: password by user name, valid for PLAIN and SCRAM alike. SCRAM's are written when the
            data folder is formatted and do not change later.
    """

    certificate: Path
    key: Path
    authority: Path
    users: Mapping[str, str] = field(repr=False)

    #: Mechanisms that the listener offers.
    MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

    def __post_init__(self) -> None:
        for user in self.users:
            if not re.fullmatch(r"[A-Za-z0-9._@-]+", user):
                raise UsageError(f"user name {user!r} is refused: use letters, digits and . _ @ -")

    def properties(self) -> dict[str, str]:
        """The part of `server.properties` for this listener."""
        (name, password), *_ = self.users.items()
        plain = " ".join(f"user_{user}={_quoted(word)}" for user, word in self.users.items())
        own = f"username={_quoted(name)} password={_quoted(password)}"
        module = "org.apache.kafka.common.security"
        listener = "listener.name.sasl_ssl"
        properties = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": self.certificate.read_text(encoding="ascii"),
            "ssl.keystore.key": self.key.read_text(encoding="ascii"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": self.authority.read_text(encoding="ascii"),
            "ssl.client.auth": "requested",
            "sasl.enabled.mechanisms": ",".join(self.MECHANISMS),
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            f"{listener}.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required {own} {plain};",
        }
        for mechanism in self.MECHANISMS[1:]:
            properties[f"{listener}.{mechanism.lower()}.sasl.jaas.config"] = (
                f"{module}.scram.ScramLoginModule required;"
            )
        return properties

    def format_arguments(self) -> list[str]:
        """What `kafka.tools.StorageTool format` is told beside the rest."""
        arguments = []
        for mechanism in self.MECHANISMS[1:]:
            algorithm = mechanism.removeprefix("SCRAM-").replace("-", "").lower()
            for user, password in self.users.items():
                # salted here: a command line is no place for a password
                salt = secrets.token_bytes(16)
                salted = hashlib.pbkdf2_hmac(algorithm, password.encode(), salt, _SCRAM_ITERATIONS)
                words = (
                    f"name={user}",
                    f"iterations={_SCRAM_ITERATIONS}",
                    f'salt="{base64.b64encode(salt).decode()}"',
                    f'saltedpassword="{base64.b64encode(salted).decode()}"',
                )
                arguments += ["--add-scram", f"{mechanism}=[{','.join(words)}]"]
        return arguments


def server_properties(
    *, data: Path, port: int, controller_port: int, sasl_ssl: SaslSsl | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """All settings of one broker; `extra` wins over ours."""
    listener = "SASL_SSL" if sasl_ssl else "PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{listener}://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"{listener}://{HOST}:{port}",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{listener}:{listener}",
        "inter.broker.listener.name": listener,
        "log.dirs": data.as_posix(),
        **DEFAULTS,
        **(sasl_ssl.properties() if sasl_ssl else {}),
        **extra,
    }


def to_properties(settings: Mapping[str, str]) -> str:
    """Text of a Java properties file."""
    escapes = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "", "\t": "\\t"})
    lines = []
    for key, value in settings.items():
        text = value.translate(escapes)
        lead = "\\" if text.startswith(" ") else ""
        text = "".join(c if c.isascii() else _java_escape(c) for c in text)
        lines.append(f"{key}={lead}{text}\n")
    return "".join(lines)


def logging_properties(folder: Path) -> str:
    """Configuration of java.util.logging: three files of at most 10 MB, kafka.0.log the newest."""
    pattern = folder.as_posix().replace("%", "%%") + "/kafka.%g.log"
    return to_properties(
        {
            "handlers": "java.util.logging.FileHandler",
            ".level": "INFO",
            "java.util.logging.FileHandler.pattern": pattern,
            "java.util.logging.FileHandler.limit": "10000000",
            "java.util.logging.FileHandler.count": "3",
            "java.util.logging.FileHandler.append": "true",
            "java.util.logging.FileHandler.encoding": "UTF-8",
            "java.util.logging.FileHandler.formatter": "java.util.logging.SimpleFormatter",
            "java.util.logging.SimpleFormatter.format": "%1$tFT%1$tT.%1$tL %4$s %5$s (%3$s)%6$s%n",
            # a broker prints all its settings, some four hundred, three times a start
            "org.apache.kafka.common.config.level": "WARNING",
            "kafka.server.KafkaConfig.level": "WARNING",
        }
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _java_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
