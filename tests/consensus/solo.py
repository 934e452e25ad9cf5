"""One replica alone with the test, which plays all the others."""

from consensus.effects import Broadcast
from consensus.inputs import MessageReceived, PayloadReady
from consensus.messages import Commit, Prepare, PrePrepare
from tests.consensus.cluster import Cluster, digest, signed_by

D = digest("batch")


class Solo:
    """One replica of four, alone with the test."""

    def __init__(self, index=1, n=4, options=None):
        self.cluster = Cluster(n, options)
        self.member = self.cluster[index]
        self.replica = self.member.replica
        self.validators = self.cluster.validators

    def receive(self, message):
        return self.replica.step(MessageReceived(signed_by(self.validators, message)))

    def step(self, happened):
        return self.replica.step(happened)

    def accept(self, height=1, batch=D, view=0):
        primary = self.validators.primary(view)
        effects = self.receive(PrePrepare(view, height, batch, primary))
        return effects + self.step(PayloadReady(height, batch))

    def prepare(self, height=1, batch=D, view=0, senders=(2,)):
        return [e for s in senders for e in self.receive(Prepare(view, height, batch, s))]

    def commit(self, height=1, batch=D, view=0, senders=(0, 2)):
        return [e for s in senders for e in self.receive(Commit(view, height, batch, s))]

    def decide(self, height, batch=D):
        return self.accept(height, batch) + self.prepare(height, batch) + self.commit(height, batch)


def votes(effects, kind):
    return [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, kind)]


def only(effects, kind):
    return [e for e in effects if isinstance(e, kind)]
