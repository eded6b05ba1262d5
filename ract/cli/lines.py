"""Texts for a command: from its arguments, a file, or standard input as it arrives."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ract.errors import BadInput


def texts_of(arguments: Sequence[str], file: Path | None, batch_size: int) -> Iterator[list[str]]:
    """The texts in groups of at most *batch_size*: the *arguments*, or the lines of *file* or of standard input ("-").

    A group of standard input is what has arrived, so that an answer never waits for a line that is still to come. Bytes
    that are not UTF-8 are replaced and said on standard error: no line is lost.
    Raises BadInput when there is nothing to read, or more than one thing.
    """
    if (file is not None) + bool(arguments) != 1:
        raise BadInput("give texts, a file, or - for standard input", 'For example: "a text", --file texts.txt, or -')
    if file is not None:
        if not file.is_file():
            raise BadInput(f"{file} does not exist", "Give the path of a text file, one text a line")
        with file.open("rb") as binary:
            yield from _groups(binary, str(file), batch_size)
    elif list(arguments) == ["-"]:
        yield from _arriving(sys.stdin.buffer, batch_size)
    else:
        for start in range(0, len(arguments), batch_size):
            yield list(arguments[start : start + batch_size])


def _groups(binary: BinaryIO, name: str, batch_size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for number, line in enumerate(binary, start=1):
        group.append(_text(line, number, name))
        if len(group) == batch_size:
            yield group
            group = []
    if group:
        yield group


def _arriving(binary: BinaryIO, batch_size: int) -> Iterator[list[str]]:
    lines: queue.Queue[str | None] = queue.Queue(4 * batch_size)

    def read() -> None:
        for number, line in enumerate(binary, start=1):
            lines.put(_text(line, number, "standard input"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        group = [lines.get()]
        while group[-1] is not None and len(group) < batch_size:
            try:
                group.append(lines.get_nowait())
            except queue.Empty:
                break
        ended = group[-1] is None
        some = [line for line in group if line is not None]
        if some:
            yield some


def _text(line: bytes, number: int, name: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text = line.decode("utf-8", errors="replace")
        print(f"ract: {name} line {number} is not UTF-8 (byte {error.start}); bad bytes are replaced", file=sys.stderr)
    return text.rstrip("\r\n")
