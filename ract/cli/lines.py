"""Texts for a command: from its arguments, a file, or standard input as it arrives."""

from __future__ import annotations

import codecs
import io
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ract.errors import BadInput

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
        given = [_from_shell(argument, number) for number, argument in enumerate(arguments, start=1)]
        for start in range(0, len(given), batch_size):
            yield given[start : start + batch_size]


def prompt_of(argument: str) -> str:
    """The text to continue: *argument*, or all of standard input ("-"); what is not UTF-8 is replaced and said."""
    if argument == "-":
        return _text(sys.stdin.buffer.read(), 1, "standard input", "text")
    return _from_shell(argument, 1)


def write_utf8() -> None:
    """Let standard output be UTF-8, as what is read is, whatever the terminal or a pipe was taken for."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


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
    lines: queue.Queue[bytes | None] = queue.Queue(4 * batch_size)

    def read() -> None:
        try:
            for line in binary:
                lines.put(line)
        finally:
            lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended, number = False, 0
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
            yield [_text(line, n, "standard input") for n, line in enumerate(some, start=number + 1)]
        number += len(some)


def _from_shell(argument: str, number: int) -> str:
    """*argument*, in which Python marks bytes that are not UTF-8 by surrogates, which no tokenizer takes."""
    return _text(argument.encode("utf-8", errors="surrogateescape"), number, "command line", "text")


def _text(line: bytes, number: int, name: str, unit: str = "line") -> str:
    if number == 1:
        if line.startswith(_UTF16):
            raise BadInput(f"{name} is UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8")
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text = line.decode("utf-8", errors="replace")
        where = f"{name} {unit} {number} is not UTF-8 (byte {error.start})"
        print(f"ract: {where}; bad bytes are replaced", file=sys.stderr)
    return text.rstrip("\r\n") if unit == "line" else text
