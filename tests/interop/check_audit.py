"""Debian's rsyslog takes the audit trail over mutual TLS, in order, through its own outage."""

import datetime
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node.gateway.audit.acts import KINDS, Act
from node.gateway.audit.connection import Repository
from node.gateway.audit.message import Site
from node.gateway.audit.sender import Sender
from node.gateway.audit.trail import Trail
from tests.gateway.audit import structure
from tests.interop.tools import free_port, program, until

NAME = "audit: rsyslog takes the trail by syslog over mutual TLS"
PACKAGES = {"rsyslog": "rsyslogd", "rsyslog-gnutls": "/usr/lib/*/rsyslog/lmnsd_gtls.so"}
SERVER, CLIENT = "repository.hospital.example", "gateway.hospital.example"
SITE = Site("north", "RADLEDGER")
_LINE = re.compile(r'(\d+) DICOM\+RFC3881 \[meta sequenceId="(\d+)"\] (.*)')


def run(work: Path) -> list[str]:
    """Check, and return what was found."""
    make_certificates(work)
    port, out = free_port(), work / "messages"
    trail = Trail(work / "audit")
    for kind in KINDS:
        last = trail.append(Act(kind, who="MODALITY", studies=(bytes(16),), code="a <b> & c"))
    with rsyslogd(work, port, out):
        send(work, port, last, lambda: numbers(out)[-1:] == [last])
        refused = try_stranger(work, port)
    taken = numbers(out)
    for _ in range(200):
        last = trail.append(Act("refused", who="MODALITY"))
    with rsyslogd(work, port, out):  # the same again, after an outage
        send(work, port, last, lambda: numbers(out)[-1:] == [last])
    for _ in range(2_000):
        last = trail.append(Act("refused", who="MODALITY"))
    with rsyslogd(work, port, out) as process:  # killed while it writes
        kill_midway(work, port, process)
    with rsyslogd(work, port, out):
        send(work, port, last, lambda: numbers(out)[-1:] == [last])
    found = numbers(out)
    assert list(dict.fromkeys(found)) == list(range(1, last + 1)), "out of order, or not whole"
    for text in out.read_text("utf-8").splitlines():
        message = _LINE.fullmatch(text)
        assert message is not None, text
        root = ET.fromstring(message[3].lstrip("\ufeff"))
        assert structure.problems(root) == [], structure.problems(root)
    repeated = len(found) - last
    return [
        f"{len(taken)} messages of every kind, 200 after a restart of rsyslog,",
        f"2,000 while it was killed (kill -9): in order, none missing, {repeated} twice",
        "each valid by PS3.15 A.5.1",
        f"a certificate of nobody is refused: {refused}",
    ]


def send(work: Path, port: int, last: int, has_come) -> None:
    """Send until everything is at the repository and counts as sent."""
    sender = Sender(work / "audit", place(work, port, CLIENT), SITE, settle_seconds=1.0)
    until(lambda: sender.turn(0.05) and has_come() and sender.sent == last, what="the last record")
    sender._break_off()


def kill_midway(work: Path, port: int, process: subprocess.Popen) -> None:
    """Send until rsyslog's system has taken some, and kill rsyslog before that counts."""
    sender = Sender(work / "audit", place(work, port, CLIENT), SITE)
    until(lambda: sender.turn(0.05) == 0.0, what="a batch")
    sender.turn()
    process.kill()
    until(lambda: sender.turn(0.05) >= 1.0, what="the end of the connection")


def place(work: Path, port: int, name: str) -> Repository:
    files = work / f"{name}.crt", work / f"{name}.key"
    # The certificate is for a name; on this network the name is that of loopback.
    return Repository("localhost", port, *files, trust_file=work / "authority.crt")


def try_stranger(work: Path, port: int) -> str:
    """Return how a client that nobody vouches for fares."""
    sender = Sender(work / "audit", place(work, port, "stranger"), SITE, settle_seconds=1.0)
    until(lambda: sender.turn(0.05) >= 1.0, what="the refusal")
    assert not sender.is_connected, "a stranger may send"
    return "the connection is closed"


def numbers(out: Path) -> list[int]:
    """Return the sequence ids that rsyslog has written."""
    text = out.read_text("utf-8") if out.exists() else ""
    return [int(match[2]) for match in map(_LINE.fullmatch, text.splitlines()) if match]


@contextmanager
def rsyslogd(work: Path, port: int, out: Path):
    """Run rsyslogd with TLS and the clients' certificates demanded."""
    config = work / "rsyslog.conf"
    config.write_text(f"""
global(workDirectory="{work}" maxMessageSize="64k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="{work}/authority.crt"
  defaultNetstreamDriverCertFile="{work}/{SERVER}.crt"
  defaultNetstreamDriverKeyFile="{work}/{SERVER}.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1"
  streamDriver.authMode="x509/name" permittedPeer=["{CLIENT}"])
template(name="whole" type="string"
  string="%pri% %msgid% %structured-data% %msg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="audit")
ruleset(name="audit") {{ action(type="omfile" file="{out}" template="whole") }}
""")
    log = (work / "rsyslog.log").open("ab")
    command = [program("rsyslogd"), "-n", "-f", str(config), "-i", str(work / "pid")]
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def make_certificates(work: Path) -> None:
    """Write an authority, certificates of it for both sides, and one of nobody."""
    authority = ec.generate_private_key(ec.SECP256R1())
    write(work, "authority", authority, "authority", authority, is_authority=True)
    for name in (SERVER, CLIENT):
        write(work, name, ec.generate_private_key(ec.SECP256R1()), "authority", authority)
    stranger = ec.generate_private_key(ec.SECP256R1())
    write(work, "stranger", stranger, "stranger", stranger)


def write(work: Path, name, key, issuer, signer, *, is_authority=False) -> None:
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(name), x509.DNSName("localhost")] if name == SERVER else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    )
    if not is_authority:
        names = names or [x509.DNSName(name)]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (work / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (work / f"{name}.key").write_bytes(key.private_bytes(pem, pkcs8, plain))
