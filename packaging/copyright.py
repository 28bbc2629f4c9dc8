"""Prints /usr/share/doc/marketprism/copyright: our licence, and that of each library in the environment.

Usage: copyright.py SITE_PACKAGES. Ends with 1 where a library comes without a licence.
"""

import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

OURS = "marketprism"
HEAD = """\
MarketPrism, and what it brings along in /usr/lib/marketprism, each under its own licence.

Where a text says "Apache License, Version 2.0", it stands in /usr/share/common-licenses/Apache-2.0.

MarketPrism
===========

Copyright: the authors of MarketPrism
Licence: Apache License, Version 2.0
"""
APACHE = re.compile(r"Apache License\s+Version 2\.0.*TERMS AND CONDITIONS", re.DOTALL)


def main(site: str) -> int:
    """Exit status."""
    print(HEAD)
    for found in sorted(distributions(path=[site]), key=lambda found: found.name.lower()):
        if found.name == OURS:
            continue
        texts = [_text(path) for path in _licences(found)]
        if not texts:
            print(f"copyright.py: {found.name}: no licence in {site}", file=sys.stderr)
            return 1
        title = f"{found.name} {found.version}"
        print("\n\n".join([f"{title}\n{'=' * len(title)}", *texts]), end="\n\n\n")
    return 0


def _licences(found: Distribution) -> list[Path]:
    folder = Path(str(found.locate_file(""))) / f"{_folder(found)}.dist-info"
    named = r"LICEN[CS]E|COPYING|NOTICE"
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and (re.match(named, path.name) or path.parent.name == "LICENSES")
    )


def _folder(found: Distribution) -> str:
    return f"{re.sub(r'[-.]+', '_', found.name).lower()}-{found.version}"


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if not APACHE.search(text):
        return text.strip()
    holders = re.findall(r"^ *(Copyright (?!\[).*\d{4}.*)$", text, re.MULTILINE)
    return "\n".join([*holders, "Licence: Apache License, Version 2.0"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
