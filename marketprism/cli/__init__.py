"""Verbs and flags; no logic."""

import argparse
import os
import sys
from collections.abc import Sequence

from marketprism.cli import collecting, simulating, storing
from marketprism.cli.common import EX_CONFIG
from marketprism.config import ConfigError

EPILOG = """\
Where to begin:
  scripts/quickstart                       simulator, NATS and all workers, with a live view
  marketprism check-config                 is the configuration right?
  marketprism launcher                     run the enabled exchanges
  marketprism tail 'trade.binance.>'       see what is published
  curl -s localhost:8087/health            how it is doing

The configuration is config/collector/unified_data_collection.yaml, or what MARKETPRISM_CONFIG or --config names.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as e:
        print(e, file=sys.stderr)
        return EX_CONFIG
    except BrokenPipeError:  # `marketprism replay … | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at exit
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marketprism",
        description="Market data from Binance, OKX and Deribit to NATS JetStream: no silent gap, no wrong book.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verbs_of in (collecting, storing, simulating):
        verbs_of.add(verbs)
    return parser
