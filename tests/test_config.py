"""The config file: settings or every problem at once, each with its line."""

import dataclasses
import re
import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import (
    ConfigError,
    NodeConfig,
    PeerAddress,
    load_config,
    model,
    parse_config,
    render_config,
)
from node.config.load import CONFIG_BYTES_MAX
from node.config.toml_lines import key_lines
from node.ledger.transaction import INSTITUTION

SAMPLE = Path(__file__).parent.parent / "config" / "node.toml"
MINIMAL = """\
institution = "north"
data_dir = "data"
genesis_file = "genesis.json"
[key]
file = "key.pem"
[rpc]
token_file = "rpc.token"
"""


def parse(text):
    content = text if isinstance(text, bytes) else text.encode()
    return parse_config(content, name="node.toml", base=Path("/etc/radledger"))


def problems(text):
    with pytest.raises(ConfigError) as refused:
        parse(text)
    return str(refused.value).splitlines()


def test_the_sample_loads_and_its_paths_start_at_its_folder():
    config = load_config(SAMPLE)
    assert config.institution == "north"
    assert config.data_dir == SAMPLE.parent / "data"
    assert config.network.peers[1] == PeerAddress(
        institution="east", host="ledger.east.example", port=7610
    )


SHOWN = re.compile(r"^(?P<comment># )?(?P<name>[a-z][a-z_]*) = (?P<value>.+)$")


def shown():
    """Yield (table, key, its line, whether it is commented out) of the sample, tables dotted."""
    table = ""
    for line in SAMPLE.read_text().splitlines():
        if line.startswith("["):
            table = line[1:].partition("]")[0]
        elif found := SHOWN.match(line):
            yield table, found["name"], line.removeprefix("# "), bool(found["comment"])


def sections(kind, table=""):
    """Yield every table of settings, dotted, with its class and its fields' types."""
    hints = typing.get_type_hints(kind)
    yield table, kind, hints
    for name, hint in hints.items():
        if typing.get_origin(hint) is tuple:
            continue
        for inner in typing.get_args(hint) or (hint,):
            if dataclasses.is_dataclass(inner):
                yield from sections(inner, f"{table}.{name}" if table else name)


def elements(hint):
    """Return the class of the tables that a list of settings has, None if it has none."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def test_the_sample_shows_every_key_of_every_table():
    there = {(table, name) for table, name, *_ in shown()}
    headers = set(re.findall(r"^\[([a-z._]+)\]", SAMPLE.read_text(), re.MULTILINE))
    missing = []
    for table, kind, hints in sections(NodeConfig):
        for field in dataclasses.fields(kind):
            place = f"{table}.{field.name}" if table else field.name
            if place not in headers and (table, field.name) not in there:
                missing.append(place)
            if element := elements(hints[field.name]):
                text = SAMPLE.read_text().partition(f"[{table}]")[2].partition("\n[")[0]
                missing += [
                    f"{place}[].{inner.name}"
                    for inner in dataclasses.fields(element)
                    if f"{inner.name} = " not in text
                ]
    assert missing == []


def test_what_the_sample_comments_out_is_the_default():
    known = {table: kind for table, kind, _ in sections(NodeConfig)}
    for table, name, line, is_commented in shown():
        fields = {field.name: field for field in dataclasses.fields(known[table])}
        assert name in fields, f"[{table}] {name}"
        default = fields[name].default
        if is_commented and default not in (None, dataclasses.MISSING, ()):
            value = tomllib.loads(line)[name]
            assert (tuple(value) if isinstance(value, list) else value) == default, line


def test_every_example_in_the_sample_can_be_used():
    """What is commented out has the right form; of alternatives the last one is taken."""
    alternatives = {"passphrase_environment", "url", "endpoint", "server_certificate_file"}
    lines = []
    for line in SAMPLE.read_text().splitlines():
        found = SHOWN.match(line)
        name = found["name"] if found else ""
        is_other = name in alternatives or name.startswith("master_key")
        is_other = is_other or name == "master_passphrase_environment"
        lines.append(line if not found or is_other else line.removeprefix("# "))
    config = parse_config("\n".join(lines).encode(), name="", base=SAMPLE.parent.absolute())
    assert config.gateway.metrics_port == 7630
    assert config.gateway.web.tls_certificate_file == SAMPLE.parent / "web.crt.pem"
    assert config.exchange.peers[0].port == config.exchange.listen_port


def test_names_of_institutions_are_those_of_transactions():
    # The reserved name is the genesis' to refuse; the config's pattern language has no lookahead.
    form = INSTITUTION.pattern.removeprefix(r"(?!consortium\Z)")
    assert f"^{form}$" == model._INSTITUTION


def test_the_least_that_must_be_said():
    config = parse(MINIMAL)
    assert type(config) is NodeConfig
    assert (config.rpc.host, config.rpc.allow_remote) == ("127.0.0.1", False)
    assert config.key.file == Path("/etc/radledger/key.pem")
    assert dataclasses.replace(config, institution="south").institution == "south"


def test_paths_are_relative_to_the_file_absolute_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir("/")
    text = MINIMAL.replace('"data"', '"/var/lib/x"').replace('"key.pem"', '"~/key.pem"')
    (tmp_path / "node.toml").write_text(text)
    config = load_config(tmp_path / "node.toml")
    assert config.data_dir == Path("/var/lib/x")
    assert config.key.file == Path("/home/someone/key.pem")
    assert config.genesis_file == tmp_path / "genesis.json"


def test_every_problem_is_reported_together_with_its_line():
    text = """\
institution = "No rth"
data_dir = 3
genesis_fil = "x"

[network]
listen_port = 70000
peers = [
  { institution = "a", host = "h" },
  { institution = "a", host = "h", port = 1, prot = 2 },
]

[rpc]
host = "0.0.0.0"
limits = 5

[log]
level = "loud"

[consensus]
view_timeout_ms = 1.5
resend_interval_ms = true

[mempool]
listen_port = 1
"""
    assert problems(text) == [
        "node.toml:1: genesis_file: is needed and is not there",
        'node.toml:1: institution: "No rth" does not have the form ^[a-z0-9][a-z0-9-]{0,31}$',
        "node.toml:1: key: is needed and is not there",
        "node.toml:2: data_dir: needs text: a path",
        "node.toml:3: genesis_fil: unknown key; did you mean genesis_file?",
        "node.toml:6: network.listen_port: 70000 is above 65535",
        "node.toml:8: network.peers[0].port: is needed and is not there",
        'node.toml:9: network.peers[1].institution: "a" is listed twice',
        "node.toml:9: network.peers[1].prot: unknown key; did you mean port?",
        "node.toml:12: rpc.token_file: is needed and is not there",
        'node.toml:13: rpc.host: "0.0.0.0" is reachable from other machines; use 127.0.0.1, or set '
        "allow_remote = true with tls_certificate_file and tls_key_file",
        "node.toml:14: rpc.limits: 5 is not a table of settings",
        "node.toml:17: log.level: \"loud\" is not one of 'debug', 'info', 'warning' or 'error'",
        "node.toml:20: consensus.view_timeout_ms: 1.5 is not a whole number",
        "node.toml:21: consensus.resend_interval_ms: true is not a whole number",
        "node.toml:24: mempool.listen_port: unknown key; did you mean network.listen_port?",
    ]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ('[key]\nfile="k"\npassphrase_file="a"\npassphrase_environment="B"', "keep one of them"),
        ("[rpc]\nport = 7610\ntoken_file='t'", "7610 is network.listen_port too"),
        ("[rpc]\nport = -1\ntoken_file='t'", "rpc.port: -1 is below 0"),
        ("[rpc]\ntoken_file='t'\nhost='10.0.0.1'", '"10.0.0.1" is reachable from other machines'),
        ("[rpc]\ntoken_file='t'\nhost='::'", '"::" is reachable from other machines'),
        ("[rpc]\ntoken_file='t'\nhost='127.0.0.1.evil.example'", "reachable from other machines"),
        ("[rpc]\ntoken_file='t'\nallow_remote=true", "needs tls_certificate_file and tls_key_file"),
        ("[rpc]\ntoken_file='t'\ntls_key_file='x'", "come together"),
        ("[network]\npeers=[{institution='north',host='h',port=1}]", "is this node itself"),
        (
            "[network]\npeers=[{institution='a',host='h',port=1},{institution='b',host='h',port=1}]",
            "peers[1].port: h:1 is listed twice",
        ),
        ("[network]\npeers=5", "network.peers: 5 is not an array"),
        ("[network]\npeers=[5]", "network.peers[0]: 5 is not a table of settings"),
        ("[network]\nlisten_host='a b'", 'listen_host: "a b" does not have the form'),
        ("[consensus]\nview_timeout_ms=9\nview_timeout_ms_max=8", "view_timeout_ms 9 is above"),
        (
            "[consensus]\nview_timeout_ms_max=8",
            "view_timeout_ms_max: view_timeout_ms 2000 is above",
        ),
        (
            "[rpc]\ntoken_file='t'\n[rpc.limits]\nin_flight_max=7",
            "in_flight_per_connection_max 4096",
        ),
        ("[rpc]\ntoken_file=''", "rpc.token_file: is no path"),
        ("[mempool]\nbytes_max=1979-05-27", "a date or time is not a whole number"),
        ("[mempool]\nbytes_max=9999999999999999999999", "a number of more than 64 bits is above"),
        ("[log]\nlevel=nan", "nan is not one of"),
        ("[lgo]\nlevel='info'", "lgo: unknown key; did you mean log?"),
        ("[gateway]\nspool_dir='s'\napart=[{}]", "apart[0]: needs modality or description"),
        ("[gateway]\nspool_dir='s'\napart=[{modality='mr'}]", "does not have the form"),
        ('["weird key"]\n', "unknown key; known here"),
    ],
)
def test_each_rule_speaks(addition, expected):
    table = addition.partition("]")[0].lstrip("[").strip('"')
    kept, skipping = [], False
    for line in MINIMAL.splitlines():
        skipping = line == f"[{table}]" or (skipping and not line.startswith("["))
        kept += [] if skipping else [line]
    lines = problems("\n".join([*kept, addition]))
    assert len(lines) == 1, lines
    assert expected in lines[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_tls(host):
    assert parse(MINIMAL + f'host = "{host}"\n').rpc.host == host


def test_other_machines_are_served_when_all_three_are_set():
    remote = 'host = "0.0.0.0"\nallow_remote = true\n'
    tls = 'tls_certificate_file = "c"\ntls_key_file = "k"\n'
    assert parse(MINIMAL + remote + tls).rpc.host == "0.0.0.0"
    assert len(problems(MINIMAL + remote)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "x = [\n1", "node.toml:9: Unclosed array"),
        ("a = 1\n\na = 2", "node.toml:3: Cannot overwrite a value"),
        ("a = 1\nb c", "node.toml:2: Expected '=' after a key in a key/value pair (column 3)"),
        ("a = 1\r\nb c", "node.toml:2: Expected '='"),
        (b"a = 1\n# \xff", "node.toml:2: is not UTF-8 text"),
        ("x = " + "9" * 5_000, "node.toml: has a number of too many digits"),
        ("a = " + "[" * 20_000, "node.toml: is nested too deeply"),
        ("#" * (CONFIG_BYTES_MAX + 1), "node.toml: is larger than"),
    ],
)
def test_what_is_no_toml_is_said_with_its_line(text, expected):
    [line] = problems(text)
    assert line.startswith(expected)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read: No such file"):
        load_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_secret_in_the_wrong_place_is_not_repeated():
    text = MINIMAL.replace(
        "[key]\n", '[key]\npassphrase = "SECRET"\npassphrase_environment = "SECRET one!"\n'
    ).replace('token_file = "rpc.token"', 'token_file = 5\ntoken = "SECRET"')
    found = problems(text)
    assert len(found) == 4
    assert "SECRET" not in "\n".join(found)


def test_settings_written_out_read_back_the_same():
    config = parse(
        MINIMAL
        + '[rpc.limits]\ndepth_max = 9\n[network]\npeers = [{institution="a",host="h",port=1}]\n'
    )
    odd = dataclasses.replace(config, data_dir=Path('/a"b\\c/\x7fü\n'))
    for each in (config, odd, load_config(SAMPLE)):
        assert parse(render_config(each)) == each


def test_lines_of_every_way_to_write_a_key():
    text = '''\
# [not.a.table]
a = 1
"b.c" . 'd' = """
[text] x = 1
""" # comment = 2
[t . "u"]
e = [ # [
  1, [2, 3],
  { f = "}", g.h = ']' },
]
[[t.list]]
i = \'\'\'it''s\'\'\'
[[t.list]]
[t.list.j]
k = 07:32:00
"\\u006c" = """x"""""
z = 1
'''
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    assert lines[("a",)] == 2
    assert lines[("b.c", "d")] == 3
    assert lines[("t", "u")] == 6
    assert lines[("t", "u", "e", 1, 1)] == 8
    assert lines[("t", "u", "e", 2, "g", "h")] == 9
    assert lines[("t", "list", 0, "i")] == 12
    assert lines[("t", "list", 1, "j", "k")] == 15
    assert lines[("t", "list", 1, "j", "l")] == 16
    assert lines[("t", "list", 1, "j", "z")] == 17


def paths(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


fragments = st.lists(
    st.sampled_from(
        [
            *("[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", "\n", " ", "#", '"', "'", "\\"),
            *('"""', "'''", "a", "b", "rpc", "key", "network", "peers", "host", "port", "1", "-1"),
            *("1.5", "true", "nan", "1979-05-27", '"x"', "'y'", "a = 1\n", "[a.b]\n", "[[c]]\n"),
            *("x = [1, 2]\n", "y = {z = 1}\n", "\r\n", "\x00", "é", '"\\u00e9"', "0x1F", "limits"),
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=400)
@given(fragments)
def test_lines_are_found_for_exactly_the_keys_of_any_document(text):
    try:
        document = tomllib.loads(text)
    except ValueError:
        return
    assert set(key_lines(text.replace("\r\n", "\n"))) == set(paths(document))


def only_config_errors(content: bytes) -> None:
    try:
        parse(content)
    except ConfigError as raised:
        error = raised
    else:
        return
    assert error.problems
    assert all(problem.line >= 0 and problem.sentence for problem in error.problems)
    assert str(error).startswith("node.toml")


@given(st.binary(max_size=200) | fragments.map(str.encode))
def test_random_text_gives_only_config_errors(content):
    only_config_errors(content)


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_sample_gives_only_config_errors(data):
    content = SAMPLE.read_bytes()
    position = data.draw(st.integers(0, len(content)))
    cut = data.draw(st.integers(0, 20))
    insert = data.draw(st.binary(max_size=8) | fragments.map(str.encode))
    only_config_errors(content[:position] + insert + content[position + cut :])


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(NodeConfig)] + ["x"]),
        st.sampled_from(
            ["5", "'x'", "[]", "[[]]", "{}", "{ host = 5 }", "{ peers = [{}] }", "{ limits = {} }"]
        )
        | fragments.filter(lambda text: "\n" not in text),
    )
)
def test_any_value_anywhere_gives_only_config_errors(values):
    only_config_errors("\n".join(f"{key} = {value}" for key, value in values.items()).encode())
