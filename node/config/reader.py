"""Brings the configuration's sources: the file, the process's environment, the flags."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from perdure.core.errors import UnreadableConfiguration
from perdure.node.config.foreign import KeyPath
from perdure.node.config.resolve import FOREIGN_PREFIX, OWN_PREFIX, File, Loaded, resolve

# A file of settings, written by hand; anything larger is some other file.
_FILE_BYTES_MAX = 1024 * 1024


def load(
    config_file: Path | None = None,
    flags: Mapping[KeyPath, tuple[str, str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """The effective configuration.

    The file is ``config_file``, or else what ``PERDURE_CONFIG`` or ``RESTATE_CONFIG`` names.

    Raises:
        InvalidConfiguration: a key is unknown, or a value not allowed.
        UnreadableConfiguration: the file can't be read, or isn't TOML.
    """
    variables = os.environ if environment is None else environment
    named = variables.get(f"{OWN_PREFIX}CONFIG") or variables.get(f"{FOREIGN_PREFIX}CONFIG")
    path = config_file or (Path(named) if named else None)
    file = read_file(path) if path is not None else None
    return replace(resolve(file, variables, flags or {}), file=path)


def read_file(path: Path) -> File:
    """The file, parsed.

    Raises:
        UnreadableConfiguration: it can't be read, or isn't TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        if len(content) > _FILE_BYTES_MAX:
            raise UnreadableConfiguration(f"{path} is larger than 1 MiB: is it the right file?")
        text = content.decode()
        return File(path.name, text, tomllib.loads(text))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableConfiguration(f"{path} can't be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UnreadableConfiguration(f"{path} isn't UTF-8 text: is it the right file?") from error
    except tomllib.TOMLDecodeError as error:
        raise UnreadableConfiguration(f"{path} isn't valid TOML: {error}") from error
