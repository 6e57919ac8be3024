"""Write `jars.toml` and `classes.lst.gz` anew: python -m polarstream.broker.relock 4.3.1 [URL].

For the maintainers of polarstream: it resolves Kafka's dependencies through jgo, fetches every jar
and writes down its SHA-256, then runs a broker on them and notes the classes that it loads. A change
of the lock is reviewed like code.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import tempfile
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from polarstream.broker import runtime
from polarstream.broker.jars import sha256_of
from polarstream.broker.local import LocalBroker

# Kafka's own dependencies bring the logging interface and no implementation. This one is the Java
# runtime's: it starts fastest, rotates its file by size and needs no further jar.
_LOG_BINDING = "org.slf4j:slf4j-jdk14:1.7.36"
_HEADER = """\
# The jars of the local broker. Each is used only if its SHA-256 is this one.
# Written by: python -m polarstream.broker.relock {kafka}
kafka = "{kafka}"
repository = "{repository}"
"""


def relock(kafka: str, repository: str, target: Path) -> int:
    """Resolve, fetch and hash; returns the number of jars."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as scratch:
        maven = MavenContext(repo_cache=Path(scratch), remote_repos={"repository": repository}, timeout=60)
        wanted = [
            maven.create_dependency(f"org.apache.kafka:kafka_2.13:{kafka}"),
            maven.create_dependency(_LOG_BINDING),
        ]
        own, others = maven.resolver.resolve(wanted)
        entries = [_HEADER.format(kafka=kafka, repository=repository)]
        for artifact in sorted((found.artifact for found in own + others), key=str):
            path = Path(artifact.resolve())
            entries.append(
                "[[jar]]\n"
                f'coordinates = "{artifact.groupId}:{artifact.artifactId}:{artifact.version}"\n'
                f'sha256 = "{sha256_of(path)}"\n'
                f"size = {path.stat().st_size}\n"
            )
    target.write_text("\n".join(entries), encoding="utf-8")
    return len(entries) - 1


def list_classes(target: Path) -> int:
    """Run a broker and write the classes that it loads; returns their number.

    Names and lambdas are kept; what hangs on the order of loading would only make the list longer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "classes.lst"
        options = (*runtime.QUICK, f"-XX:DumpLoadedClassList={listed}")
        with LocalBroker(Path(scratch), jvm_options=options) as broker:
            asyncio.run(_exercise(broker.bootstrap))
        lines = listed.read_text(encoding="utf-8").splitlines()
    names = [line.split(" ")[0] for line in lines if line[:1] not in ("@", "#")]
    lambdas = [line for line in lines if line.startswith("@lambda")]
    text = "\n".join([*names, *lambdas, ""])
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(names)


async def _exercise(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("classes", 2, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="classes")
    async with producer, producer.transaction():
        await producer.send_and_wait("classes", b"value", b"key")
    consumer = AIOKafkaConsumer(
        "classes", bootstrap_servers=bootstrap, group_id="classes", auto_offset_reset="earliest"
    )
    async with consumer:
        await consumer.getone()
        await consumer.commit()


def main(arguments: list[str]) -> None:
    """Entry point of `python -m polarstream.broker.relock`."""
    kafka = arguments[0]
    repository = arguments[1] if len(arguments) > 1 else "https://repo.maven.apache.org/maven2"
    target = Path(__file__).with_name("jars.toml")
    print(f"{relock(kafka, repository, target)} jars in {target}")
    classes = target.with_name("classes.lst.gz")
    print(f"{list_classes(classes)} classes in {classes}")


if __name__ == "__main__":
    main(sys.argv[1:])
