"""Brokers for tests: short-lived ones, and certificates made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polarstream.broker import LocalBroker, SaslSsl
from polarstream.broker.runtime import QUICK

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder

USERS = {"alice": 'pa"ss\\word 1', "bob": "second"}


def quick_broker(
    data_dir: Path,
    *,
    port: int | None = None,
    properties: Mapping[str, str] | None = None,
    sasl_ssl: SaslSsl | None = None,
) -> LocalBroker:
    """A broker that starts fast; not started yet."""
    return LocalBroker(data_dir, port=port, properties=properties, sasl_ssl=sasl_ssl, jvm_options=QUICK)


def make_sasl_ssl(folder: Path, users: Mapping[str, str] = USERS) -> SaslSsl:
    """An authority, and a certificate for 127.0.0.1 and localhost signed by it, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def signed(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            builder.issuer_name(named("polarstream test authority"))
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .sign(key, hashes.SHA256())
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = signed(
        x509.CertificateBuilder()
        .subject_name(named("polarstream test authority"))
        .public_key(authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False),
        authority_key,
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = signed(
        x509.CertificateBuilder()
        .subject_name(named("localhost"))
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        ),
        authority_key,
    )
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    paths = SaslSsl(
        certificate=folder / "broker.pem",
        key=folder / "broker.key",
        authority=folder / "authority.pem",
        users=users,
    )
    paths.authority.write_bytes(authority.public_bytes(pem))
    paths.certificate.write_bytes(certificate.public_bytes(pem) + authority.public_bytes(pem))
    paths.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
