"""Bytes at the end of the embedded server's append-only file that are no commands: a disk that was full, a power cut.

Owns finding the last whole command and cutting off what is behind it; what is cut is kept beside the file. The server
itself forgives an end that is missing, but not one that is wrong, and its own tool is not in the wheel.
"""

import mmap
import re
from pathlib import Path

__all__ = ["DamagedFile", "cut_garbage"]

_FOLDER = "appendonlydir"
_COMMAND = re.compile(rb"\*(\d{1,7})\r\n")
_ARGUMENT = re.compile(rb"\$(\d{1,10})\r\n")
_ANNOTATION = re.compile(rb"#[^\r\n]*\r\n")
_LOOKS_LIKE_A_COMMAND = re.compile(rb"\r\n\*\d+\r\n\$\d+\r\n")


class DamagedFile(RuntimeError):
    """The file is damaged in its middle: cutting there would lose commands."""


def cut_garbage(folder: Path) -> str:
    """Cut what is no command off the end of the newest file, and return a sentence about it; empty: there is none.

    Args:
        folder: the data folder of a server that does not run.

    Raises:
        DamagedFile: there are commands behind what is none; the message has the way out.
        OSError: the files cannot be read or written.
    """
    file = _newest(folder / _FOLDER)
    if file is None or not (size := file.stat().st_size):
        return ""
    with file.open("r+b") as handle:
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            good, bad = _find_end(data)
            rest = data[good:]
            follows = _LOOKS_LIKE_A_COMMAND.search(data, bad)
        if not rest:
            return ""
        if follows:
            way_out = f"`truncate -s {good} {file}` gives up the {size - good} bytes from there on; keep a copy of it"
            raise DamagedFile(f"{file} is damaged at byte {good}, and more commands follow: {way_out}")
        kept = file.with_name(f"{file.name}.cut-{good}")
        kept.touch(0o600)
        kept.write_bytes(rest)
        handle.truncate(good)
    return f"{len(rest)} bytes at the end of {file} were no commands; they were cut off, and are kept in {kept.name}"


def _newest(folder: Path) -> Path | None:
    """Return the file that the server was writing to, by its manifest."""
    names: list[str] = []
    for manifest in folder.glob("*.manifest"):
        for line in manifest.read_text("utf-8").splitlines():
            words = line.split()
            if words[:1] == ["file"] and words[-1:] == ["i"]:
                names.append(words[1])
    return folder / names[-1] if names and (folder / names[-1]).is_file() else None


def _find_end(data: mmap.mmap) -> tuple[int, int]:
    """Return where the last whole command ends that is not inside of a transaction, and where the last one does."""
    end = good = 0
    inside = False
    while (following := _skip_one(data, end)) is not None:
        word = bytes(data[end : end + 20]).upper()
        if word.startswith(b"*1\r\n$5\r\nMULTI"):
            inside = True
        elif word.startswith(b"*1\r\n$4\r\nEXEC"):
            inside = False
        end = following
        good = good if inside else end
    return good, end


def _skip_one(data: mmap.mmap, start: int) -> int | None:
    """Return the end of the command or annotation that starts there; None: there is no whole one."""
    if note := _ANNOTATION.match(data, start):
        return note.end()
    head = _COMMAND.match(data, start)
    if head is None:
        return None
    at = head.end()
    for _ in range(int(head[1])):
        size = _ARGUMENT.match(data, at)
        if size is None:
            return None
        at = size.end() + int(size[1]) + 2
        if at > len(data) or data[at - 2 : at] != b"\r\n":
            return None
    return at
