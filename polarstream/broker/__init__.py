"""The local broker: Apache Kafka from wheels and locked jars, one node on loopback."""

from polarstream.broker.jars import JarSource
from polarstream.broker.local import BrokerStatus, LocalBroker, running_bootstrap
from polarstream.broker.progress import Progress, download_bar
from polarstream.broker.settings import SaslSsl

__all__ = [
    "BrokerStatus",
    "JarSource",
    "LocalBroker",
    "Progress",
    "SaslSsl",
    "download_bar",
    "running_bootstrap",
]
