"""The key that OpenSSL reads from a file is in none that outlives the call, or a kill."""

import os
import tempfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network import tls


@pytest.mark.parametrize("is_linux", [True, False])
def test_nothing_is_left_where_temporary_files_are(tmp_path, monkeypatch, is_linux):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not is_linux:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        return
    seen = []
    key = Ed25519PrivateKey.generate()
    certificate = tls.make_certificate(key, "north")
    real = tls.ssl.SSLContext.load_cert_chain

    def load(context, path, **options):
        seen.append(os.path.dirname(path) == str(tmp_path))
        return real(context, path, **options)

    monkeypatch.setattr(tls.ssl.SSLContext, "load_cert_chain", load)
    tls.TrustedContexts(key, certificate, [certificate])
    assert set(seen) == {not is_linux}
    assert list(tmp_path.iterdir()) == []
