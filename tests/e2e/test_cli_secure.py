from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polarstream.broker import LocalBroker
from tests.brokers import USERS, make_sasl_ssl
from tests.e2e.cli import Cli


def test_the_command_line_speaks_tls_with_passwords(
    tmp_path: Path, own_broker: Callable[..., LocalBroker]
) -> None:
    files = make_sasl_ssl(tmp_path / "certificates")
    secure = own_broker(sasl_ssl=files)
    settings = {
        "POLARSTREAM_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "POLARSTREAM_KAFKA__SASL_MECHANISM": "PLAIN",
        "POLARSTREAM_KAFKA__SASL_USERNAME": "alice",
        "POLARSTREAM_KAFKA__SASL_PASSWORD": USERS["alice"],
        "POLARSTREAM_KAFKA__SSL_CAFILE": str(files.authority),
    }
    cli = Cli(tmp_path, secure.bootstrap, **settings)
    cli.ok("topics", "create", "t")
    cli.ok("publish", "t", stdin='{"sensor_id": "a"}\n')
    [found] = cli.json_lines("subscribe", "t", "--from", "earliest", "--until-end")
    assert found["value"] == {"sensor_id": "a"}
    assert [c["verdict"] for c in cli.json("doctor") if c["name"] == "broker"] == ["ok"]

    wrong = Cli(tmp_path, secure.bootstrap, **{**settings, "POLARSTREAM_KAFKA__SASL_PASSWORD": "wrong"})
    for command in (["topics", "list"], ["publish", "t"], ["subscribe", "t"]):
        told = wrong.fails(69, *command)
        assert "security settings fit" in told
        assert "wrong" not in told
