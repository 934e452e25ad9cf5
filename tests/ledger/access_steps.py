"""Requests brought to where a test of the access contract begins."""

from tests.ledger.access_world import ROOT, SUBJECT, WHO, asking, digest, identity, key_of

R1, R2, R3 = (identity("request", n) for n in range(3))
WRAPPED = digest("wrapped")
KEY_ID = identity("encryption key")


def names(events):
    return [name for name, _ in events]


def ask(world, request_id=R1, sender=WHO.asker, **changes):
    return world.act(sender, "access.request", *asking(request_id, **changes))


def ask_code(world, request_id=R1, sender=WHO.asker, **changes):
    return world.code(sender, "access.request", *asking(request_id, **changes))


def grant(world, request_id=R1, **changes):
    """A request that is granted at once, and may be used one height later."""
    world.consent()
    world.publish("permit")
    ask(world, request_id, **changes)
    world.height += 1


def deliver(world, request_id=R1):
    return world.act(WHO.gateway, "access.deliver", request_id, WRAPPED)


def receive(world, request_id=R1, root=ROOT):
    return world.act(WHO.asker, "access.receive", request_id, root)


def use(world, request_id=R1):
    return world.act(WHO.asker, "access.use", request_id)


def held_for(world, state):
    """Bring request R1 into `state`."""
    if state == "waiting_person":
        ask(world)
    elif state == "waiting_consent":
        world.publish("permit")
        ask(world)
    elif state == "denied":
        world.publish("deny")
        ask(world)
    elif state == "cancelled":
        ask(world)
        world.act(WHO.asker, "access.cancel", R1)
    else:
        grant(world)
        if state in ("delivered", "received"):
            deliver(world)
        if state == "received":
            receive(world)
        if state == "revoked":
            world.act(WHO.clinician, "access.revoke", R1, "misuse")
        if state == "expired":
            world.height = world.held(R1).expires_height
            world.act(WHO.third, "access.expire", R1)
    assert world.held(R1).state == state


def bind(world):
    world.act(WHO.gateway, "consent.bind", SUBJECT, key_of(*WHO.patient))


def publish_key(world):
    world.act(WHO.asker_gateway, "registry.key_publish", KEY_ID, "x25519", b"\xff" * 32)
