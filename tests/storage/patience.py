"""How long a test waits before it says that something did not happen at once."""

from paraclip.storage import locks

AT_ONCE = locks.DEAD_SECONDS / 6
"""Seconds, on however busy a machine: nobody waited for a silent owner to be taken for dead."""
