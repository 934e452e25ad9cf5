"""`radledger proof make`: asks the node for a proof, checks it, and writes the file."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import typer

from consensus.wire import pack
from node.cli.arguments import DEFAULT_CONFIG, ConfigFile
from node.cli.context import Desk
from node.cli.failures import UNABLE, USAGE, WRONG, Failure, explained
from node.cli.output import Json, say, show_json
from node.cli.proof_verify import facts, show
from node.cli.registrar import vault_of
from node.imaging.commitment import SERIES_INSTANCE
from node.imaging.manifest import ID_BYTES, Instance, Manifest, blinding
from node.imaging.reader import StudyFiles, read_studies
from node.imaging.vault import Vault
from node.imaging.verify import Verdict, compare
from node.ledger.genesis import Genesis
from node.ledger.proofs.describe import describe
from node.ledger.proofs.opening import open_instance, open_manifest
from node.ledger.proofs.questions import KINDS, BadRequest, read_request
from node.ledger.proofs.verify import Proved, verify
from node.rpc.client import Client
from storage.errors import InvalidProof

OPENED = ("instance", "manifest")  # kinds that need the institution's vault
_NAME_PART = re.compile(r"[0-9a-z-]{1,16}")


@dataclass(frozen=True, slots=True)
class _Made:
    """A proof that verifies and is about what was asked."""

    proof: bytes
    proved: Proved
    name: str  # of the file, unless another is given


def make(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help=f"One of {', '.join((*KINDS, *OPENED))}.",
            autocompletion=lambda: [*KINDS, *OPENED],
        ),
    ],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS...", help="What exactly; see below.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    config_file: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write a proof file that anybody with the genesis can verify, without a node.

    time HEIGHT, study STUDY, version STUDY ROOT, consent INSTITUTION SUBJECT, grant REQUEST,
    access TRANSACTION, transaction TRANSACTION, absence SUBJECT..., state SUBJECT...: the node's
    own word is not needed, since everything in the file is checked.

    SUBJECT is: study STUDY, root ROOT, consent INSTITUTION SUBJECT, request REQUEST,
    asked STUDY INSTITUTION, institution NAME, member INSTITUTION KEY, key HEX.

    instance FILE and manifest FOLDER (or STUDY) open what the institution registered: whoever has
    such a file can link the images to the study.
    """
    with explained(as_json):
        if output is not None and output.exists() and not force:
            raise Failure(USAGE, f"{output} exists; name another file or give --force")
        desk = Desk.open(config_file)
        genesis = desk.genesis()
        made = asyncio.run(_make(desk, genesis, kind, words or []))
        path = Path(made.name) if output is None else output
        if path.exists() and not force:
            raise Failure(USAGE, f"{path} exists; name another file with --output, or give --force")
        _write(path, made.proof)
        description = describe(made.proved)
        if as_json:
            about = facts(made.proved, description, genesis)
            show_json({"file": path, "bytes": len(made.proof), **about})
        else:
            show(made.proved, description, genesis)
            say("")
            say(f"Written to {path}, {len(made.proof)} bytes. To check it, without any node:")
            say(f"  radledger proof verify {path} --genesis {desk.config.genesis_file}")


async def _make(desk: Desk, genesis: Genesis, kind: str, words: Sequence[str]) -> _Made:
    async with desk.client() as client:
        if kind in OPENED:
            return await _opened(desk, client, genesis, kind, words)
        try:
            request = read_request(kind, words)
        except BadRequest as error:
            raise Failure(USAGE, str(error)) from error
        answer = await client.proof(kind, words)
        proved = _checked(answer.proof, genesis)
        # A node that is not one's own could answer with a proof of something else.
        transaction_id = proved.transaction and proved.transaction.id
        height = proved.header.height if proved.kind == "time" else None
        shown = height, transaction_id, tuple([key for key, _ in proved.rows])
        if shown != (request.height, request.transaction_id, request.keys):
            raise Failure(UNABLE, "the node answered with a proof of something else")
        label = _NAME_PART.match(words[-1].lower())
        return _Made(answer.proof, proved, f"{kind}-{label.group() if label else 'x'}.proof")


async def _opened(
    desk: Desk, client: Client, genesis: Genesis, kind: str, words: Sequence[str]
) -> _Made:
    if len(words) != 1:
        raise Failure(USAGE, f"it is: {kind} {'FILE' if kind == 'instance' else 'FOLDER or STUDY'}")
    with vault_of(desk) as vault:
        files = await asyncio.to_thread(_files, words[0])
        study_id = _study_id(vault, files, words[0])
        manifest = await _registered(client, vault, study_id)
        proof = await client.proof("version", [study_id.hex(), manifest.root.hex()])
        if kind == "instance":
            opened = await asyncio.to_thread(_open_instance, proof.proof, manifest, files)
        else:
            records = [pack(astuple(each.record)) for each in manifest.instances]
            blindings = [blinding(manifest.salt, each.index) for each in manifest.instances]
            opened = open_manifest(proof.proof, records, blindings)
    proved = _checked(opened, genesis)
    return _Made(opened, proved, f"{kind}-{study_id.hex()[:16]}.proof")


def _files(word: str) -> StudyFiles | None:
    """Return the files of the one study at the path `word`, or None if nothing is there."""
    path = Path(word)
    if not path.exists():
        return None
    reading = read_studies([path])
    if len(reading.studies) != 1:
        reasons = [str(each) for each in reading.unreadable]
        raise Failure(USAGE, f"{word} holds {len(reading.studies)} studies, not one", *reasons)
    return reading.studies[0]


def _study_id(vault: Vault, files: StudyFiles | None, word: str) -> bytes:
    if files is None:
        try:
            study_id = bytes.fromhex(word)
        except ValueError:
            study_id = b""
        if len(study_id) != ID_BYTES:
            raise Failure(USAGE, f"{word}: neither a path here nor the id of a study")
        return study_id
    series = {read.text(SERIES_INSTANCE) for read in files.files.values()}
    found = (vault.part_of(files.study_uid, uid) for uid in series)
    ids = {part.study_id for part in found if part is not None}
    if not ids:
        raise Failure(WRONG, "this study is not in the institution's vault: register it first")
    if len(ids) > 1:
        listed = [f"study {each.hex()}" for each in sorted(ids)]
        raise Failure(
            USAGE, f"{word} is in several parts on the ledger; name one by its id", *listed
        )
    return ids.pop()


async def _registered(client: Client, vault: Vault, study_id: bytes) -> Manifest:
    """Return the newest manifest whose root is on the chain."""
    view = await client.study(study_id)
    roots = set() if view is None else {version.root for version in view.versions}
    versions = await asyncio.to_thread(vault.versions, study_id)
    for version in reversed(versions):
        if version.manifest.root in roots:
            return version.manifest
    raise Failure(WRONG, "no version of this study that the vault holds is on the chain")


def _open_instance(proof: bytes, manifest: Manifest, files: StudyFiles | None) -> bytes:
    if files is None or len(files.files) != 1:
        raise Failure(USAGE, "an instance proof is about one DICOM file: name it")
    ((sop_uid, read),) = files.files.items()
    position, instance = _find(manifest, sop_uid)
    report = compare(instance, read)
    if report.verdict in (Verdict.ALTERED, Verdict.PRIVATE):
        raise Failure(WRONG, f"the file is not as it was registered: {report.sentence}")
    shown = manifest.instance_proof(position)
    return open_instance(
        proof,
        pack(astuple(instance.record)),
        shown.blinding,
        position=position,
        count=shown.count,
        path=shown.path,
        tree=shown.tree,
    )


def _find(manifest: Manifest, sop_uid: str) -> tuple[int, Instance]:
    for position, instance in enumerate(manifest.instances):
        if instance.sop_uid == sop_uid:
            return position, instance
    raise Failure(WRONG, "this instance is not in the version on the chain: register it first")


def _checked(proof: bytes, genesis: Genesis) -> Proved:
    try:
        return verify(proof, genesis)
    except InvalidProof as error:
        raise Failure(UNABLE, f"the node's proof does not hold: {error}") from error


def _write(path: Path, proof: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(proof)
    part.replace(path)
