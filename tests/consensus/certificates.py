"""Certificates and ViewChanges for tests of view changes."""

from consensus.messages import Prepare, PreparedCertificate, PrePrepare, SealCertificate, ViewChange
from tests.consensus.cluster import GENESIS_CERTIFICATE, digest, signed_by, validator_set

A, B = digest("a"), digest("b")


def prepared(view, height, batch, validators=None):
    validators = validators or validator_set(range(4))
    primary = validators.primary(view)
    backups = [i for i in range(validators.n) if i != primary][: validators.quorum - 1]
    sign = lambda message: signed_by(validators, message)  # noqa: E731
    prepares = ((s, sign(Prepare(view, height, batch, s)).signature) for s in backups)
    return PreparedCertificate(sign(PrePrepare(view, height, batch, primary)), tuple(prepares))


def stable_at(height, validators=None):
    if height == 0:
        return GENESIS_CERTIFICATE
    return SealCertificate(height, digest(("header", height)), ())


def change(sender, *certificates, view=9, stable=0):
    return ViewChange(view, stable_at(stable), certificates, sender)
