"""A second verifier of proof files, written from docs/developers/proof-format.md alone.

Imports nothing of RadLedger: that it agrees with the first one shows that the specification says
all that is needed. It favours the words of the specification over speed.
"""

import base64
import hashlib
import json
from itertools import pairwise

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

P = 2**255 - 19
Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER = {0, 1, P - 1, Y8, P - Y8}  # y coordinates


class Invalid(Exception):
    """The file proves nothing."""


def need(condition, why):
    if not condition:
        raise Invalid(why)


def H(data):
    return hashlib.sha256(data).digest()


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def plain(value, depth=16):
    if type(value) is list:
        return depth > 0 and all(plain(each, depth - 1) for each in value)
    return value is None or type(value) in (bool, int, bytes, str)


def unpack(data):
    """Canonical msgpack only."""
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=False)
        need(plain(value) and pack(value) == data, "not canonical")
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise Invalid("not msgpack") from error
    return value


def array(value, count):
    need(type(value) is list and len(value) == count, f"not an array of {count}")
    return value


def at_most(value, most):
    need(type(value) is list and len(value) <= most, f"not an array of at most {most}")
    return value


def octets(value, size=None):
    need(type(value) is bytes and size in (None, len(value)), f"not {size} bytes")
    return value


def integer(value, low, high):
    need(type(value) is int and low <= value <= high, f"not an integer of {low} to {high}")
    return value


def text(value):
    need(type(value) is str, "not text")
    return value


def signed_by(key, message, signature):
    y = int.from_bytes(key, "little") & (2**255 - 1)
    if y >= P or y in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Genesis:
    """From the JSON file of a consortium."""

    def __init__(self, content):
        document = json.loads(content)
        institutions = [
            [
                each["name"],
                each["display_name"],
                each["country"],
                [[bytes.fromhex(m["public_key"]), sorted(m["roles"])] for m in each["members"]],
            ]
            for each in document["institutions"]
        ]
        nodes = [
            [
                [
                    n["institution"],
                    bytes.fromhex(n["public_key"]),
                    base64.b64decode(n["certificate"]),
                ]
                for n in document[role]
            ]
            for role in ("validators", "observers")
        ]
        head = [document["name"], document["time_ms"], document["protocol_version"]]
        parameters = [[name, value] for name, value in document["parameters"].items()]
        encoded = pack([2, *head, parameters, institutions, *nodes])
        self.chain_id = H(b"radledger/genesis/1" + encoded)
        self.protocol_version = document["protocol_version"]
        self.validators = [[name, key] for name, key, _ in nodes[0]]


def header_of(data, genesis):
    fields = array(unpack(octets(data)), 11)
    need(type(fields[0]) is int and fields[0] == 1, "header version")
    integer(fields[2], 0, 2**53)
    integer(fields[3], 1, 2**53)
    for digest in (fields[1], *fields[4:]):
        octets(digest, 32)
    need(fields[1] == genesis.chain_id, "a header of another chain")
    names = (
        "height time_ms parent transactions_root receipts_root state_root history_root "
        "validators next_validators"
    )
    header = dict(zip(names.split(), fields[2:], strict=True))
    header["digest"] = H(b"radledger/header/1" + data)
    return header


def set_digest(members):
    return H(b"radledger/validators/1" + pack(members))


def sealed(data, seals, members, since, genesis):
    header = header_of(data, genesis)
    need(header["height"] >= max(1, since), "not a height that these seal")
    need(header["validators"] == set_digest(members), "other validators")
    n = len(members)
    quorum = (n + (n - 1) // 3) // 2 + 1
    need(len(at_most(seals, 1_000)) == quorum, "not a quorum of seals")
    previous = -1
    for seal in seals:
        index, signature = array(seal, 2)
        need(previous < integer(index, 0, 999) < n, "indexes")
        previous = index
        voted = [header["height"], header["digest"], index]
        head = [genesis.protocol_version, genesis.chain_id, header["validators"], voted]
        message = b"radledger/seal/1" + pack(head)
        need(signed_by(members[index][1], message, octets(signature, 64)), "a seal")
    return header


def included(leaf, index, size, path, root):
    """RFC 9162 §2.1.3.2."""
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = H(b"\1" + p + r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = H(b"\1" + r + p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def tree_hash(leaves):
    """RFC 6962 §2.1."""
    if not leaves:
        return H(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return H(b"\1" + tree_hash(leaves[:k]) + tree_hash(leaves[k:]))


def hashes(value):
    for each in at_most(value, 64):
        octets(each, 32)
    return value


def target_of(lineage, anchor, genesis):
    if lineage is None:
        return anchor
    need(type(lineage) is list and lineage, "lineage")
    if lineage[0] == "parents":
        (headers,) = array(lineage[1:], 1)
        need(at_most(headers, 1_024), "no parents")
        below = anchor
        for data in headers:
            header = header_of(data, genesis)
            need(header["digest"] == below["parent"], "not the parent")
            below = header
        return below
    need(lineage[0] == "history", "lineage")
    data, path = array(lineage[1:], 2)
    header = header_of(data, genesis)
    leaf = H(b"\0" + header["digest"])
    heights = header["height"], anchor["height"]
    need(included(leaf, *heights, hashes(path), anchor["history_root"]), "not in the history")
    return header


def check_state(root, key, value, proof):
    depth, bitmap, siblings, other = array(unpack(octets(proof)), 4)
    integer(depth, 0, 128)
    octets(bitmap, (3 * depth + 7) // 8)
    bits = int.from_bytes(bitmap, "big")
    need(bits < 2 ** (3 * depth), "bitmap")
    need(len(octets(siblings)) == 32 * bits.bit_count(), "siblings")
    need(len(octets(other)) in (0, 64), "other")
    digits = [H(key)[i // 4] >> (6 - 2 * (i % 4)) & 3 for i in range(128)]
    rows, at = [], 0
    for level in range(depth):
        row = []
        for i in range(3):
            if bits >> (3 * depth - 1 - 3 * level - i) & 1:
                row.append(siblings[at : at + 32])
                at += 32
                need(row[-1] != bytes(32), "an empty sibling is spelled out")
            else:
                row.append(bytes(32))
        rows.append(row)
    if value is not None:
        need(not other, "a value names no other pair")
        current = H(b"\0" + H(key) + H(value))
    elif other:
        theirs = [other[i // 4] >> (6 - 2 * (i % 4)) & 3 for i in range(128)]
        need(other[:32] != H(key) and theirs[:depth] == digits[:depth], "another place")
        current = H(b"\0" + other)
    else:
        current = bytes(32)
    for level in reversed(range(depth)):
        rows[level].insert(digits[level], current)
        current = H(b"\1" + b"".join(rows[level]))
    need(current == root, "another state root")


def check_rows(rows, proofs, target):
    need(1 <= len(at_most(rows, 16)) == len(at_most(proofs, 16)), "rows and proofs")
    keys = [octets(array(row, 2)[0]) for row in rows]
    need(all(a < b for a, b in pairwise(keys)), "order of keys")
    for (key, value), proof in zip(rows, proofs, strict=True):
        need(value is None or type(value) is bytes, "a value")
        check_state(target["state_root"], key, value, proof)


def version_of(rows):
    (root_key, version), (study_key, study) = array(rows, 2)
    need(version is not None and study is not None, "a record is missing")
    need(root_key[:5] == b"root/" and len(root_key) == 37, "no root")
    record = array(unpack(version), 7)
    need(record[0] == 1 and study_key == b"study/" + octets(record[1], 16), "another study")
    return root_key[5:], record[1:4]


def manifest_root(bound, count, tree):
    return H(b"radledger/manifest/1" + pack([*bound, count, tree]))


def record_bytes(value):
    need(1 <= len(octets(value)) <= 256, "a record")
    return value


def check_instance(claim, details, target):
    rows, record = array(claim, 2)
    proofs, position, count, path, tree, blinding = array(details, 6)
    check_rows(rows, proofs, target)
    root, bound = version_of(rows)
    integer(position, 0, 99_999)
    integer(count, 1, 100_000)
    leaf = H(b"\0" + octets(blinding, 32) + record_bytes(record))
    need(included(leaf, position, count, hashes(path), octets(tree, 32)), "not in the manifest")
    need(manifest_root(bound, count, tree) == root, "another root")


def check_manifest(claim, details, target):
    rows, records = array(claim, 2)
    proofs, blindings = array(details, 2)
    check_rows(rows, proofs, target)
    root, bound = version_of(rows)
    need(len(at_most(records, 100_000)) == len(at_most(blindings, 100_000)), "blindings")
    leaves = [
        H(b"\0" + octets(b, 32) + record_bytes(r)) for b, r in zip(blindings, records, strict=True)
    ]
    need(manifest_root(bound, len(leaves), tree_hash(leaves)) == root, "another root")


def climb(leaf, sides, path):
    for i, beside in enumerate(path):
        leaf = H(b"\1" + beside + leaf) if sides >> i & 1 else H(b"\1" + leaf + beside)
    return leaf


def check_transaction(claim, details, target, genesis):
    body, receipt = (octets(each) for each in array(claim, 2))
    sides, path, receipt_path = array(details, 3)
    need(len(hashes(path)) == len(hashes(receipt_path)), "paths")
    need(integer(sides, 0, 2**64 - 1) < 2 ** len(path), "sides")
    need(climb(H(b"\0" + body), sides, path) == target["transactions_root"], "not in the block")
    leaf = H(b"\0" + receipt)
    need(climb(leaf, sides, receipt_path) == target["receipts_root"], "not in the block")
    fields = array(unpack(body), 8)
    need(fields[0] == 1 and fields[1] == genesis.chain_id, "a transaction of another chain")
    message = b"radledger/transaction/1" + pack(fields[:7])
    need(signed_by(octets(fields[3], 32), message, octets(fields[7], 64)), "the signature")
    outcome = array(unpack(receipt), 5)
    need(outcome[0] == H(message), "the receipt of another transaction")
    return outcome


def verify(data, genesis):
    """Return what the file proves, as the vectors name it. Raises `Invalid`."""
    need(len(data) <= 25_165_824, "too large")
    magic, version, chain_id, statement, evidence, digest = array(unpack(data), 6)
    need(octets(digest, 32) == H(b"radledger/proof/1" + data[:-32]), "damaged")
    need(magic == "radledger-proof" and type(version) is int and version == 1, "another format")
    need(octets(chain_id, 32) == genesis.chain_id, "another chain")
    changes, anchor, lineage, details = array(evidence, 4)
    members, since, heights = genesis.validators, 1, []
    for change in at_most(changes, 1_000):
        data_, seals, following = array(change, 3)
        last = sealed(data_, seals, members, since, genesis)
        for member in at_most(following, 1_000):
            name, key = array(member, 2)
            text(name)
            octets(key, 32)
        names, keys = [m[0] for m in following], [m[1] for m in following]
        need(following and len(set(names)) == len(set(keys)) == len(following), "members")
        need(set_digest(following) == last["next_validators"], "not announced")
        need(set_digest(following) != set_digest(members), "no change")
        members, since = following, last["height"] + 1
        heights.append(since)
    head = sealed(*array(anchor, 2), members, since, genesis)
    target = target_of(lineage, head, genesis)
    need(type(statement) is list and statement, "statement")
    kind, *claim = statement
    proved = {
        "kind": kind,
        "height": target["height"],
        "time_ms": target["time_ms"],
        "anchor_height": head["height"],
        "sealed_by": [members[index][0] for index, _ in anchor[1]],
        "changes": heights,
    }
    if kind == "time":
        array(claim, 0)
        array(details, 0)
    elif kind == "state":
        check_rows(*array(claim, 1), *array(details, 1), target)
    elif kind == "instance":
        check_instance(claim, details, target)
    elif kind == "manifest":
        check_manifest(claim, details, target)
    elif kind == "transaction":
        outcome = check_transaction(claim, details, target, genesis)
        proved |= {"transaction_id": outcome[0].hex(), "receipt_code": outcome[1]}
    else:
        raise Invalid("another kind")
    if kind in ("state", "instance", "manifest"):
        rows = [[key.hex(), None if value is None else value.hex()] for key, value in claim[0]]
        proved["rows"] = rows
    return proved
