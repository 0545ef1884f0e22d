"""``perdure config`` and the flags that set settings."""

import json
from pathlib import Path

import pytest
from tests.node.cli.terminal import Terminal

from perdure.node.cli import exits
from perdure.node.cli.settings import FLAGS
from perdure.node.config.resolve import SETTINGS


def test_shows_every_setting_with_its_source(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "perdure.toml"
    file.write_text('cluster-name = "blue"\nrocksdb-bloom = 1\n[retry]\nattempts-max = 3\n')
    monkeypatch.setenv("PERDURE_INGRESS__CORS", "false")
    words = ("config", "--config-file", str(file), "--base-dir", "/data", "--set", "http_core=zttp")
    done = terminal.type(*words)
    assert done.code == 0
    rows = {row[0]: row[1:] for row in done.table[1:]}
    assert set(rows) == {setting.key for setting in SETTINGS.values()}
    assert rows["cluster-name"] == ["blue", "perdure.toml:1"]
    assert rows["retry.attempts-max"] == ["3", "perdure.toml:4"]
    assert rows["ingress.cors"] == ["false", "PERDURE_INGRESS__CORS"]
    assert rows["base-dir"] == ["/data", "--base-dir"]
    assert rows["http-core"] == ["zttp", "--set http_core"]
    assert rows["node-name"] == ["node-1", "default"]
    assert "note: rocksdb-bloom (perdure.toml:2) means nothing here and is ignored" in done.err
    changed = terminal.type(*words, "--changed", "--json").json
    assert set(changed) == {
        "cluster-name",
        "retry.attempts-max",
        "ingress.cors",
        "base-dir",
        "http-core",
    }
    assert changed["ingress.cors"] == {
        "value": False,
        "text": "false",
        "source": "environment",
        "where": "PERDURE_INGRESS__CORS",
    }


def test_without_anything_nothing_is_changed(terminal: Terminal) -> None:
    done = terminal.type("config", "--changed")
    assert (done.code, done.out) == (0, "")
    assert "Everything has its default." in done.err
    assert len(terminal.type("config", "--json").json) == len(SETTINGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_read(terminal: Terminal, flag: str) -> None:
    setting = SETTINGS[FLAGS[flag]]
    text = {"address": "10.0.0.1:99", "host": "10.0.0.1"}.get(setting.kind.name, "")
    text = text or {"--log-level": "debug", "--log-format": "json"}.get(flag, "other")
    found = terminal.type("config", "--json", flag, text).json[setting.key]
    assert (found["text"], found["where"]) == (text, flag)


def test_a_bad_value_is_a_configuration_error(terminal: Terminal) -> None:
    done = terminal.type("config", "--admin-address", "nowhere")
    assert done.code == exits.CONFIGURATION
    assert "[CONF0001] admin.bind-address = 'nowhere' (--admin-address): expected" in done.err


def test_a_missing_file_is_a_configuration_error(terminal: Terminal, tmp_path: Path) -> None:
    done = terminal.type("config", "--config-file", str(tmp_path / "nothing.toml"))
    assert done.code == exits.CONFIGURATION
    assert "[CONF0002]" in done.err
    assert "nothing.toml" in done.err


def test_the_server_reads_the_same_before_it_touches_anything(
    terminal: Terminal, tmp_path: Path
) -> None:
    base = tmp_path / "data"
    for verb in ("server", "up"):
        done = terminal.type(verb, "--base-dir", str(base), "--set", "shutdown-timeout=soon")
        assert done.code == exits.CONFIGURATION
        assert "shutdown-timeout = 'soon' (--set shutdown-timeout)" in done.err
    assert not base.exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("shutdown-timeout", "write --set key=value"),
        ("shutdown-timeot=1m", "did you mean shutdown-timeout?"),
        ("zzz=1", "`perdure config` shows them all"),
    ],
)
def test_a_bad_assignment_is_a_usage_error(
    terminal: Terminal, assignment: str, message: str
) -> None:
    done = terminal.type("config", "--set", assignment)
    assert done.code == exits.USAGE
    assert message in done.err


def test_json_is_valid_for_other_programs(terminal: Terminal) -> None:
    out = terminal.type("config", "--json").out
    assert out.endswith("}\n")
    assert json.loads(out)["shutdown-timeout"]["value"] == 60_000
