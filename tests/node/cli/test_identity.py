"""``perdure identity``: keys are made once, kept private, and shown in the form SDKs take."""

import stat
from pathlib import Path

from tests.node.cli.terminal import Terminal

from perdure.node.cli import exits


def test_created_key_is_shown_again(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    created = terminal.type("identity", "create", "--out", str(file), "--json")
    assert created.code == 0
    assert created.json["file"] == str(file)
    assert created.json["public_key"].startswith("publickeyv1_")
    assert terminal.type("identity", "show", str(file), "--json").json == created.json
    assert created.json["public_key"] in terminal.type("identity", "show", str(file)).out


def test_private_key_is_for_its_owner_only(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    done = terminal.type("identity", "create", "--out", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().splitlines()[1]
    assert secret not in done.out + done.err


def test_existing_file_is_left_alone(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("precious")
    done = terminal.type("identity", "create", "--out", str(file))
    assert done.code == exits.FAILED
    assert "File exists" in done.err
    assert file.read_text() == "precious"


def test_what_is_no_key_is_a_wrong_configuration(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    assert terminal.type("identity", "show", str(file)).code == exits.CONFIGURATION
    file.write_text("no key")
    done = terminal.type("identity", "show", str(file))
    assert done.code == exits.CONFIGURATION
    assert "CONF0001" in done.err
    assert "no key" not in done.err.replace("is no identity key", "")
