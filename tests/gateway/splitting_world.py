"""A study of two series that is split, and ways to be cut off on the way."""

import asyncio
import secrets
from uuid import uuid4

import numpy as np
import pytest

from node.exchange.transfer.state import Deliveries
from node.gateway.exchange import DELIVERIES
from node.gateway.parting import Wish
from node.gateway.splitting import Splitting
from node.imaging.vault import create_vault
from tests.gateway.test_flow_command import configure
from tests.imaging import dicom

FORM = bytes(range(32))
HEAD, PSYCH = "1", "2"


def write(folder, uid, series, number):
    sop = f"{uid}.{series}.{number}"
    pixels = np.frombuffer(secrets.token_bytes(2 * 32 * 32), "<u2").reshape(32, 32)
    elements = {"PatientID": uid[-10:], "Modality": "MR", "SeriesNumber": series}
    place = {"sop": sop, "study": uid, "SeriesInstanceUID": f"{uid}.{series}"}
    return dicom.minimal(folder / sop[-40:], pixels=pixels, **place, **elements)


async def new_study(hospital, folder):
    """Register and store a study of two series, two instances each."""
    uid = f"2.25.{uuid4().int}"
    paths = [write(folder, uid, series, n) for series in (HEAD, PSYCH) for n in (1, 2)]
    return uid, await hospital.keep_files(paths)


def of_series(study, series):
    """Return the bytes of the files of a series, by SOP Instance UID."""
    files = study.files.items()
    return {uid: path.read_bytes() for uid, path in files if uid.split(".")[-2] == series}


def splitting(hospital, acting):
    kept = [Deliveries(hospital.folder / "exchange" / DELIVERIES)]
    return Splitting(acting, hospital.store, hospital.vault, kept)


async def split(hospital, study, series=PSYCH, *, erase=False, form=FORM):
    async with hospital.acting() as acting:
        done = await splitting(hospital, acting).split(study.id, Wish([series], form, erase=erase))
    await hospital.net.wait_height(hospital.net.node(hospital.index).height)
    return done


class Cut(BaseException):
    """The process ends here."""


def cut_at(patched, place, *, after=False, call=1):
    """Let the `call`th call of `place` (an object and a name) be the last thing that is done."""
    owner, name = place
    real, count = getattr(owner, name), 0

    def wrapped(*arguments, **named):
        nonlocal count
        count += 1
        if count == call and not after:
            raise Cut
        result = real(*arguments, **named)
        if count == call and not asyncio.iscoroutine(result):
            raise Cut
        return _then_cut(result) if count == call else result

    patched.setattr(owner, name, wrapped)


async def _then_cut(result):
    await result
    raise Cut


async def cut_off(monkeypatch, hospital, study, place, *, erase=False, **how):
    """Begin to split a study; `place`, of hospital and splitting, and `how` are for `cut_at`."""
    async with hospital.acting() as acting:
        cutting = splitting(hospital, acting)
        with monkeypatch.context() as patched:
            cut_at(patched, place(hospital, cutting), **how)
            with pytest.raises(Cut):
                await cutting.split(study.id, Wish([PSYCH], FORM, erase=erase))


def submitting(_, cutting):
    """Return the place where the transaction goes to the node."""
    return cutting._acting.client, "submit"


def with_command(hospital):
    """Give a hospital a config and a vault that the command finds; return the config."""
    config = configure(hospital)
    path = hospital.config.data_dir.parent / "vault.db"
    hospital.vault = create_vault(path, hospital.passphrase.decode())
    return config
