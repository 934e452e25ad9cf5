"""Every place of blobs keeps the same promises.

The S3 service here is moto's, a mock that speaks the protocol over HTTP: it shows that our requests
are right, not how a real service behaves under load.
"""

import errno
import fcntl
import hashlib
import itertools
import os

import boto3
import pytest
from moto.server import ThreadedMotoServer

from node.exchange.store import local
from node.exchange.store.blobs import (
    chunk_name,
    open_folder,
    open_memory,
    open_service,
    read_chunk,
    write_chunk,
)
from node.exchange.store.errors import BlobsUnavailable, Damaged, StoreFull
from tests.exchange.store_parts import OTHER, STUDY, contents, new_store, noise, sources, study

_bucket = itertools.count(1)


@pytest.fixture(scope="module")
def service():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def blobs(request, tmp_path):
    if request.param == "folder":
        return open_folder(tmp_path / "blobs")
    if request.param == "memory":
        return open_memory()
    endpoint = request.getfixturevalue("service")
    bucket = f"studies-{next(_bucket)}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return open_service(f"s3://{bucket}/hospital", endpoint)


def test_a_blob_is_written_once(blobs):
    assert blobs.create("chunks/ab/one", b"first")
    assert not blobs.create("chunks/ab/one", b"second")
    assert blobs.read("chunks/ab/one") == b"first"
    blobs.replace("chunks/ab/one", b"third!")
    assert blobs.read("chunks/ab/one") == b"third!"
    assert blobs.size("chunks/ab/one") == 6


def test_what_is_not_there_is_none(blobs):
    assert blobs.read("chunks/ab/none") is None
    assert blobs.size("chunks/ab/none") is None
    blobs.delete("chunks/ab/none")
    assert list(blobs.list("chunks")) == []


def test_blobs_are_listed_and_deleted(blobs):
    names = [f"chunks/{n % 3:02x}/{n}" for n in range(30)]
    for name in names:
        blobs.create(name, name.encode())
    blobs.create("index/x", b"1")
    listed = {blob.name: blob.size for blob in blobs.list("chunks")}
    assert listed == {name: len(name) for name in names}
    assert len(list(blobs.list())) == 31
    blobs.delete(names[0])
    assert names[0] not in {blob.name for blob in blobs.list("chunks")}


@pytest.mark.parametrize("size", [0, 1, 4_096, 300_000, 2**19, 4 * 2**20 + 30, 5 * 2**20 + 1])
def test_every_size_comes_back(blobs, size):
    data = noise(size)
    assert blobs.create("chunks/ab/sized", data)
    assert blobs.read("chunks/ab/sized") == data


def test_a_torn_chunk_is_written_anew_and_a_whole_one_kept(blobs):
    data = noise(10_000)
    digest = hashlib.sha256(data).digest()
    assert read_chunk(blobs, digest) is None
    blobs.create(chunk_name(digest), data[:5_000])
    with pytest.raises(Damaged):
        read_chunk(blobs, digest)
    write_chunk(blobs, digest, data)
    write_chunk(blobs, digest, data)
    assert read_chunk(blobs, digest) == data


def test_a_study_lives_in_every_place(blobs, tmp_path):
    store = new_store(tmp_path, blobs)
    store.put(STUDY, 1, sources(study()))
    store.put(OTHER, 1, sources(study()))
    assert contents(store) == study()
    assert list(store.scrub()) == []
    assert store.erase(STUDY).is_complete
    assert len(list(blobs.list())) == 3  # chunk, index, store.id


def test_a_service_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with pytest.raises(BlobsUnavailable, match="address"):
        open_service("s3://")


def test_a_bucket_that_is_not_there_is_said(service):
    blobs = open_service("s3://nobody-made-this", service)
    with pytest.raises(BlobsUnavailable):
        blobs.create("chunks/ab/one", b"first")


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlobsUnavailable):
        open_folder(tmp_path / "file" / "blobs")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    blobs = open_folder(tmp_path / "blobs")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(StoreFull):
        blobs.replace("index/x/00001", b"data")
    monkeypatch.undo()
    monkeypatch.setattr(local.os, "pwrite", full)
    with pytest.raises(StoreFull):
        blobs.create("chunks/ab/one", noise(500_000))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_file_system_without_direct_writes_gets_ordinary_ones(tmp_path, monkeypatch):
    real = os.pwrite

    def refuse(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, data, offset)

    monkeypatch.setattr(local.os, "pwrite", refuse)
    blobs = open_folder(tmp_path / "blobs")
    data = noise(1_000_001)
    assert blobs.create("chunks/ab/one", data)
    assert blobs.read("chunks/ab/one") == data


def test_a_chunk_is_synced_with_its_folders_before_the_call_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        local.os,
        "fsync",
        lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}").partition("#")[0]), real(fd)),
    )
    blobs = open_folder(tmp_path / "blobs")
    blobs.create("chunks/ab/one", b"data")
    root = str(tmp_path / "blobs")
    expected = [f"{root}/chunks", root, f"{root}/chunks/ab/one", f"{root}/chunks/ab"]
    assert synced == expected
