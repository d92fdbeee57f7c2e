"""Check a Compose file for unpinned images, secrets and public ports, which an engine accepts.

usage: check_compose.py FILE. Exit code 0 without problems, 1 with problems (one a line), 2 without the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_SECRET = re.compile(r"passw|secret|token|api_?key|credential", re.IGNORECASE)
# A default, as in ${NAME:-default}, would be a secret in the file.
_FROM_ENVIRONMENT = re.compile(r"\$\{\w+(:\?[^}]*)?\}")
_IN_URI = re.compile(r"\w+://[^/\s:@]*:[^/\s@]+@")


def check(text: str, folder: Path) -> list[str]:
    """Problems of the Compose file with content ``text`` in ``folder``."""
    compose = yaml.safe_load(text)
    services = compose["services"]
    found = [
        f"{name}: {problem}" for name, service in services.items() for problem in _service(service, folder)
    ]
    declared = set(compose.get("volumes") or {})
    for name, service in services.items():
        used = {str(volume).partition(":")[0] for volume in service.get("volumes", [])}
        found += [f"{name}: the volume {volume} is not declared" for volume in sorted(used - declared)]
        found += [
            f"{name}: it depends on {other}, which is not a service"
            for other in service.get("depends_on", {})
            if other not in services
        ]
    return found + [f"a URI with a password in it: {match[0]}" for match in _IN_URI.finditer(text)]


def _service(service: Mapping[str, Any], folder: Path) -> Iterator[str]:
    if "build" in service:
        yield from _build(service["build"], folder)
    elif not re.fullmatch(
        r"[\w./-]+:(?!latest$)[\w.-]+(@sha256:[0-9a-f]{64})?", str(service.get("image", ""))
    ):
        yield f"expected an image with a version, got {service.get('image')!r}"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"the port {port} is not published on 127.0.0.1"
    for key, value in _environment(service.get("environment", {})):
        if _SECRET.search(key) and value is not None and not _FROM_ENVIRONMENT.fullmatch(value):
            yield f"{key} has its value in the file; take it from the environment, such as ${{{key}:?}}"


def _build(build: Mapping[str, str], folder: Path) -> Iterator[str]:
    context = folder / build["context"]
    if not (context / build["dockerfile"]).is_file():
        yield f"there is no {context / build['dockerfile']}"


def _environment(given: Mapping[str, Any] | list[str]) -> Iterator[tuple[str, str | None]]:
    """Names and values; None if the value comes from the environment."""
    if isinstance(given, Mapping):
        yield from ((key, None if value is None else str(value)) for key, value in given.items())
    else:
        for entry in given:
            key, equals, value = entry.partition("=")
            yield key, value if equals else None


def main(arguments: list[str]) -> int:
    path = Path(arguments[0]) if arguments else Path("docker/compose.yaml")
    if not path.is_file():
        print(f"there is no {path}", file=sys.stderr)
        return 2
    found = check(path.read_text(encoding="utf-8"), path.parent)
    print("\n".join(f"{path}: {problem}" for problem in found) or f"{path}: nothing wrong")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
