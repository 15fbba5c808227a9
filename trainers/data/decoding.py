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
_LOOKED_AT = 1000  # bytes on each side that tell the encoding
# What Excel writes, by country, and the letters that tell it: Japan, China, Korea, Taiwan, Russia.
_LETTERS = {
    "cp932": r"[\u3041-\u30ff\u4e00-\u9fa5]",
    "gb18030": r"[\u4e00-\u9fa5]",
    "cp949": r"[\uac00-\ud7a3]",
    "big5": r"[\u4e00-\u9fa5]",
    "cp1251": r"[\u0400-\u04ff]",
}
_LATIN = ("cp1252", "cp1250")
_QUOTES = "\u201a\u201c\u201d\u201e\u2018\u2019\u2013\u2026\u20ac\u00bf\u00a1"


def suffix(path: Path) -> str:
    """The ending that tells the format: `.jsonl` of `train.jsonl.gz`."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


# How files begin that are not what their names say, and what to do with them.
_STRANGERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the data: git lfs pull fetches it",
    b"<!doctype html": "is a web page, not the data: download the file itself",
    b"<html": "is a web page, not the data: download the file itself",
    b"pk\x03\x04": "is a ZIP archive or an Excel workbook: unpack it, or save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: save it as CSV UTF-8",
    b"\x1f\x8b": "is packed by gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is packed by zstd: let its name end in .zst",
}


def refuse_stranger(path: Path) -> None:
    """Refuse a file that by its first bytes is not what its name says.

    Raises:
        SweepError: it is one that is known.
    """
    if path.suffix.lower() in COMPRESSED:
        return
    with open(path, "rb") as file:
        start = file.read(32).lower()
    for mark, what in _STRANGERS.items():
        if start.startswith(mark):
            raise SweepError(f"{path}: {what}")


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
    for encoding in _likely(line[max(0, at - _LOOKED_AT) : at + _LOOKED_AT]):
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
    found = sorted((*_LETTERS, *_LATIN), key=lambda each: -_likelihood(part, each))
    return found[0], found[1]


def _likelihood(part: bytes, encoding: str) -> float:
    """How much of what is no ASCII would be letters of the encoding's languages, from 0 to 1.

    More if only this encoding would give such letters.
    """
    odd = [letter for letter in part.decode(encoding, errors="replace") if ord(letter) > 127]
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", part)]
    if not odd:
        return 0.0
    if encoding in _LATIN:  # an accent stands between other letters
        share = sum(letter.isalpha() or letter in _QUOTES for letter in odd) / len(odd)
        return share * (1.1 if max(runs) <= 2 else 0.5)
    common = {"gb18030": "gb2312", "cp949": "euc_kr"}.get(encoding, encoding)
    own = [letter for letter in odd if re.match(_LETTERS[encoding], letter)]
    share = sum(_fits(letter, common) for letter in own) / len(odd)
    if encoding == "cp932" and sum("\u3041" <= letter <= "\u30ff" for letter in own) > 1:
        return share + 0.2
    if encoding == "cp949":  # the whole range of these is Chinese, too
        return share + (0.1 if share == 1 and len(own) > 3 else -0.1)
    if encoding == "cp1251":  # without its letters below, such bytes are hardly Chinese
        return share * (0.9 if max(runs) < 4 or min(filter(_is_odd, part)) < 0xC0 else 1.2)
    return share


def _is_odd(byte: int) -> bool:
    return byte >= 0x80


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
