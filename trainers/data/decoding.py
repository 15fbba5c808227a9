"""Opens data files as UTF-8, whatever their compression and encoding; explains bad bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from pathlib import Path
from typing import IO, cast

from sweeps.core.commands import typed
from sweeps.core.errors import ConfigError, Problem, SweepError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
_AROUND = 12  # bytes shown on each side of one that is not UTF-8
_FURTHEST = 96  # bytes before it, if they are no ASCII


def suffix(path: Path) -> str:
    """The ending that tells the format: `.jsonl` of `train.jsonl.gz`."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def opened(path: Path, encoding: str | None) -> IO[bytes]:
    """Open a file for its bytes as UTF-8, unpacked and without a byte order mark.

    Args:
        encoding: `data.encoding`; if None, UTF-8, or UTF-16 if the file starts with its mark.

    Raises:
        ConfigError, SweepError: no such encoding, a damaged file, or bytes that the encoding lacks.
    """
    file = _unpacked(path)
    try:
        start = file.read(3)
        file.seek(0)
        if encoding is None and start[:2] in _UTF16_MARKS:
            encoding = "utf-16"
        if encoding is not None:
            return io.BytesIO(_transcoded(path, file, encoding))
        if start == _BYTE_ORDER_MARK:
            file.seek(3)
        return file
    except _DAMAGED as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> SweepError:
    return SweepError(f"{path}: cannot be unpacked: {error or type(error).__name__}")


def is_damage(error: Exception) -> bool:
    """Whether an error means that a compressed file is damaged."""
    return isinstance(error, _DAMAGED)


def explained(line: bytes, at: int) -> str:
    """What the bytes around one that is not UTF-8 would say in the two likeliest encodings."""
    start = max(0, at - _AROUND)
    while start > 0 and line[start - 1] >= 0x80 and at - start < _FURTHEST:
        start -= 1  # not from the middle of a character
    part = line[start : at + _AROUND].strip()
    readings = []
    for encoding in _likely(part):
        text = part.decode(encoding, errors="replace").replace("\ufffd", "?")
        readings.append(f"{text!r} with {typed('data.encoding', encoding)}")
    return f"it would read {' or '.join(readings)}"


def surrogates_explained(text: str) -> str | None:
    """The same for text whose bytes were kept as surrogates; None if it holds none."""
    found = re.search("[\udc80-\udcff]", text)
    if found is None:
        return None
    at = found.start()
    try:
        before = text[max(0, at - _FURTHEST) : at].encode("utf-8", "surrogateescape")
        raw = before + text[at : at + _AROUND].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates beside it: JSON's, and no bytes
        return None
    return f"byte {raw[len(before)]:#04x} is not UTF-8; {explained(raw, len(before))}"


def _unpacked(path: Path) -> IO[bytes]:
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if ending == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if ending == ".zst":
        import pyarrow

        try:
            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                return io.BytesIO(stream.read())
        except pyarrow.ArrowException as error:
            raise damaged(path, error) from None
    return open(path, "rb")


def _transcoded(path: Path, file: IO[bytes], encoding: str) -> bytes:
    with file:
        content = file.read()
    try:
        return content.decode(encoding).removeprefix("\ufeff").encode("utf-8", "surrogatepass")
    except LookupError:
        message = "is no encoding that Python knows; utf-8, utf-16, cp1252 and gb18030 are some"
        raise ConfigError([Problem(key="data.encoding", value=encoding, message=message)]) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SweepError(
            f"{path}:{line}: byte {content[error.start]:#04x} at {error.start} is not {encoding}; "
            "set data.encoding to the one that the file was written in"
        ) from None


def _likely(part: bytes) -> tuple[str, str]:
    """The two likeliest encodings of a few bytes that are not UTF-8."""
    if re.search(rb"[\x80-\xff]{4}", part):  # words of such letters: Chinese, Cyrillic
        return "gb18030", "cp1251"
    return "cp1252", "cp1250"
