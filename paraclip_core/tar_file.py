"""Untrusted tars: an impossible header is an error, which Python's own reader would follow."""

from __future__ import annotations

import tarfile
from typing import Any, Self

NAME_TYPES = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)
"""Types of members that describe the next one, and are read whole."""
MOST_NAME_BYTES = 1 << 20
"""Bytes of such a member, mostly a long name. A packed tar of some megabytes can hold one of gigabytes."""


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in NAME_TYPES and header.size > MOST_NAME_BYTES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class TarFile(tarfile.TarFile):
    """Python's reader, for which every damage is a `tarfile.TarError`."""

    tarinfo = _Header

    def next(self) -> tarfile.TarInfo | None:
        """The next member, None at the end."""
        try:
            member = super().next()
        except (ValueError, LookupError, OverflowError, RecursionError) as error:
            raise tarfile.ReadError(f"a header that makes no sense ({error})") from error
        # Such a member would lead back to bytes that were read already, for ever.
        if member is not None and member.size < 0:
            raise tarfile.ReadError(f"member {member.name!r} of {member.size} bytes")
        return member

    def check_end(self) -> None:
        """See, after the last member, that the tar has its end mark there, and that what packed it finds no fault."""
        # Python's reader takes a broken or absent header for the end, and would lose all behind it without a word.
        file: Any = self.fileobj
        file.seek(self.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no member and no end of the archive at byte {self.offset}")
        # The checksums of a packed one come last.
        while file.read(1 << 20):
            pass
