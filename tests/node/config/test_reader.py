"""Reading the configuration file: which one, and what is said when it can't be read."""

from pathlib import Path

import pytest

from perdure.core.errors import UnreadableConfiguration
from perdure.node.config.reader import load


def test_reads_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "perdure.toml"
    file.write_text('cluster-name = "from-file"\n')
    other = tmp_path / "other.toml"
    other.write_text('cluster-name = "other"\n')
    for loaded in (
        load(file, environment={"PERDURE_CONFIG": str(other)}),
        load(environment={"PERDURE_CONFIG": str(file), "RESTATE_CONFIG": str(other)}),
        load(environment={"RESTATE_CONFIG": str(file)}),
    ):
        assert loaded.config.cluster_name == "from-file"
        assert loaded.file == file
        assert loaded.sources["cluster-name"].name == "perdure.toml:1"
    assert load(environment={}).file is None


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_NODE_NAME", "from-environment")
    assert load().config.node_name == "from-environment"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read: No such file"),
        (b"\xff\xfe", "isn't UTF-8"),
        (b"a = \n", "isn't valid TOML: .*line 1"),
        (b"#" * (1024 * 1024 + 1), "larger than 1 MiB"),
    ],
)
def test_says_why_a_file_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "perdure.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableConfiguration, match=reason) as caught:
        load(file, environment={})
    assert str(file) in caught.value.message
