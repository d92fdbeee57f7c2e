"""Refuse a Python or a machine without the wheels that `make install` needs. Usage: check_machine.py.

It runs in any Python 3, before the environment exists.
"""

from __future__ import annotations

import platform
import sys


def problem(version: tuple[int, ...], system: str, machine: str, release: str) -> str:
    """What is wrong with a Python of ``version`` on a machine; empty if nothing is.

    ``release`` is the version of macOS.
    """
    if version < (3, 11):
        return "bitrank needs Python 3.11 or newer; give one with PYTHON=…"
    if system == "darwin" and (machine != "arm64" or int(release.partition(".")[0]) < 14):
        return (
            f"bitrank needs Linux, or macOS 14 or newer on Apple silicon with a Python for arm64; got macOS "
            f"{release} on {machine}, for which bitsandbytes and PyTorch have no packages"
        )
    return ""


if __name__ == "__main__":
    found = problem(sys.version_info[:2], sys.platform, platform.machine(), platform.mac_ver()[0])
    print(found, end="\n" if found else "")
    sys.exit(2 if found else 0)
