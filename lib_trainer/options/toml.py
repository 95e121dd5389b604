"""TOML files of options: read in whatever form an editor leaves them, and written whole."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lib_trainer.files import write_atomically
from lib_trainer.refusals import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10, the WebUI's own
    import tomli as tomllib

QUOTED_BACKSLASH = re.compile(r"""\s*([\w.-]+)\s*=\s*"[^"]*\\""")
"""A line of a key and a text in double quotes with a backslash in it, as one writes a path of Windows."""


def read_toml(path: Path, called: str) -> dict[str, Any]:
    """A file in UTF-8 or UTF-16, with any line ends. Raises `ConfigError` that names it `called`."""
    try:
        text = _decoded(path.read_bytes())
        data: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError("job.missing", file=called) from None
    except OSError as error:
        raise ConfigError("job.unreadable", file=called, reason=error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError("job.encoding", file=called) from error
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(called, text, str(error)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in brackets
        raise ConfigError("job.beyond_toml", file=called, reason=str(error)) from error
    return data


def write_toml(data: Mapping[str, Any], path: Path) -> None:
    """Write a file that `read_toml` reads back equal."""
    write_atomically(path, tomli_w.dumps(data).encode())


def _decoded(data: bytes) -> str:
    """Windows' editors mark UTF-16 by its first two bytes; PowerShell's `>` writes it. Old Macs end lines by CR."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _not_toml(name: str, text: str, message: str) -> ConfigError:
    place = re.search(r"line (\d+)", message)
    lines = text.split("\n")
    line = lines[int(place.group(1)) - 1] if place else lines[-1]
    key = QUOTED_BACKSLASH.match(line)
    if key is None:
        return ConfigError("job.not_toml", file=name, reason=message)
    if place is None:
        return ConfigError("job.backslash_at_the_end", file=name, key=key.group(1))
    return ConfigError("job.backslash", file=name, line=place.group(1), key=key.group(1))
