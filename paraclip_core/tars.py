"""The end of a tar, which shows that the archive is whole."""

from __future__ import annotations

import tarfile
from typing import Any


def check_end(tar: tarfile.TarFile) -> None:
    """Check, after the last member, that the end-of-archive marker follows and that the data decompresses.

    Python's reader takes a broken or absent header for the end, and would silently drop everything after it.

    Raises:
        tarfile.ReadError: the archive is damaged or cut short.
    """
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no member and no end of the archive at byte {tar.offset}")
    # A compressed archive ends with its checksums.
    while file.read(1 << 20):
        pass
