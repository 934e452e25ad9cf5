"""What each kind of failure means at the terminal."""

import errno

import pytest
import typer

from node.cli.failures import Failure, explained
from node.cli.meanings import meaning_of
from node.cli.output import cell, plain, printable, time_text
from node.config.errors import ConfigError, Problem
from node.imaging.errors import VaultDamaged, WrongPassphrase
from node.keys import KeyFileError
from node.ledger.errors import InvalidGenesis, Refused
from node.provision import InvalidCard
from node.rpc.codec import NotAnAnswer
from node.rpc.errors import ConnectionLost, NotAuthorized, RpcError
from storage.errors import StorageError

MEANINGS = [
    (Failure(1, "a", "b"), 1, "a"),
    (InvalidGenesis(["validators: none"]), 2, "validators: none"),
    (ConfigError("node.toml", [Problem(3, "rpc.port", "is wrong")]), 2, "node.toml:3: rpc.port"),
    (KeyFileError("no key"), 2, "no key"),
    (InvalidCard("no card"), 2, "no card"),
    (WrongPassphrase("no"), 2, "no"),
    (NotAuthorized("refused the token"), 2, "rpc.token_file"),
    (Refused("expired", "too late"), 1, "refused (expired): too late"),
    (RpcError(-32602, "invalid_params", "limit: too many"), 2, "limit: too many"),
    (RpcError(-32603, "internal", "sorry"), 3, "sorry"),
    (ConnectionLost("cannot connect"), 3, "radledger start"),
    (NotAnAnswer("Head.height"), 3, "Head.height"),
    (TimeoutError(), 3, "too long"),
    (VaultDamaged("restore a backup"), 3, "restore a backup"),
    (StorageError("locked"), 3, "locked"),
    (FileNotFoundError(errno.ENOENT, "No such file", "x.bin"), 3, "x.bin: No such file"),
    (ExceptionGroup("", [StorageError("a"), Refused("busy", "b")]), 3, "a"),
]


@pytest.mark.parametrize(("error", "status", "words"), MEANINGS)
def test_what_can_be_expected_to_fail_has_a_sentence_and_a_status(error, status, words):
    found, lines = meaning_of(error)
    assert found == status
    assert words in "\n".join(lines)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ExceptionGroup("", [KeyError("x")])])
def test_a_bug_has_no_meaning(error):
    assert meaning_of(error) is None


def test_ctrl_c_ends_with_the_shells_status():
    with pytest.raises(typer.Exit) as ended, explained():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130


def test_programs_get_the_failure_as_json_too(capsys):
    with pytest.raises(typer.Exit), explained(as_json=True):
        raise Refused("expired", "too late")
    said = capsys.readouterr()
    assert '"status": 1' in said.out
    assert "refused (expired): too late" in said.out
    assert "refused (expired): too late" in said.err


def test_nothing_from_outside_commands_the_terminal(capsys):
    hostile = "a\x1b[31mb\r\x07[bold]c[/nope]\u202ed"
    assert printable(hostile) == "a\\u001b[31mb\\u000d\\u0007[bold]c[/nope]\\u202ed"
    with pytest.raises(typer.Exit), explained():
        raise Failure(1, hostile)
    assert printable(hostile) in capsys.readouterr().err


def test_values_become_what_json_and_tables_know():
    assert plain({"a": (b"\x01", None, True, 2)}) == {"a": ["01", None, True, 2]}
    assert [cell(v) for v in (None, "", b"\xff", True, (1, "x"), ())] == [
        "-", "-", "ff", "yes", "1, x", "-",
    ]  # fmt: skip
    assert time_text(1_700_000_000_007) == "2023-11-14 22:13:20.007 UTC"
