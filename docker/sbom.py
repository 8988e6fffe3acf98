"""The Python packages below a prefix as a CycloneDX document, which scanners read: `python sbom.py PREFIX`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any


def bill_of_materials(prefix: Path) -> dict[str, Any]:
    """CycloneDX 1.5: a component for each package, by name."""
    folders = [str(path) for path in prefix.glob("lib*/python*/site-packages")]
    components = {one["purl"]: one for one in map(_component, distributions(path=folders))}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [components[purl] for purl in sorted(components)],
    }


def _component(package: Distribution) -> dict[str, Any]:
    name = package.metadata["Name"].lower().replace("_", "-")
    component: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
    }
    if "License-Expression" in package.metadata:
        component["licenses"] = [{"expression": package.metadata["License-Expression"]}]
    return component


if __name__ == "__main__":
    json.dump(bill_of_materials(Path(sys.argv[1])), sys.stdout, indent=1)
