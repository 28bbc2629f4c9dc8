"""The earlier system's way in: `python main.py --mode launcher [--single-process] [--exchange NAME]`."""

import argparse
import sys

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", choices=["launcher"], default="launcher")
    options, rest = parser.parse_known_args()
    try:
        from marketprism.cli import main

        sys.exit(main([options.mode, *rest]))
    except ModuleNotFoundError as missing:
        sys.exit(
            f"main.py: {missing}. Run scripts/setup once, then: .venv/bin/python main.py --mode launcher"
        )
