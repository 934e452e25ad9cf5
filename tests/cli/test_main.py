"""The command as a whole: help, version, completion, and what a bug looks like."""

from importlib.metadata import version

import pytest
import typer

from node.cli import main
from tests.cli.conftest import python, run


def test_the_version_is_that_of_the_distribution():
    assert run("--version").out == f"radledger {version('radledger')}\n"


def test_help_names_every_command():
    answer = run("--help")
    assert answer.status == 0
    assert all(name in answer.words for name in main.COMMANDS)


def leaves(group, words=()):
    """Return all commands of the tree, each as its words."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from leaves(command, (*words, name))
        else:
            yield (*words, name)


LEAVES = [" ".join(words) for words in leaves(typer.main.get_command(main.app))]


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_explains_itself_and_speaks_json(command):
    answer = run(*command.split(), "--help")
    assert answer.status == 0
    assert "Usage:" in answer.out
    assert "--json" in answer.out


def test_a_typing_mistake_is_answered_with_the_word_that_was_meant():
    answer = run("statsu")
    assert answer.status == 2
    assert "Did you mean 'status'" in answer.words


def test_shells_complete_commands():
    asking = {"COMP_WORDS": "radledger st", "COMP_CWORD": "1"}
    done = python(
        "-c",
        "from node.cli.main import app; app(prog_name='radledger')",
        env=asking | {"_RADLEDGER_COMPLETE": "complete_bash"},
    )
    assert done.stdout.split() == ["start", "status", "study", "store"]


def test_a_node_does_not_carry_what_only_other_commands_need():
    done = python(
        "-c",
        "import sys; from node.cli.main import app\n"
        "app(['start', '--help'], standalone_mode=False)\n"
        "print(*sorted({'pydicom', 'numpy'} & set(sys.modules)), file=sys.stderr)",
    )
    assert done.stderr.strip() == ""
    assert "Run the node" in done.stdout


def test_a_bug_is_one_sentence_and_its_own_exit_status():
    broken = "from node.cli import main; main.COMMANDS['status'] = 'node.nowhere:x'; main.main()"
    done = python("-c", broken, "status")
    assert done.returncode == 4
    assert "unexpected ModuleNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in python("-c", broken, "status", env={main.TRACEBACK: "1"}).stderr


def test_the_module_is_the_command():
    assert python("-m", "node.cli", "--version").stdout.startswith("radledger ")
