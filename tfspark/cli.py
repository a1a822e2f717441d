"""The ``tfspark`` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from tfspark import __version__
from tfspark.compat import migrate
from tfspark.doctor.command import add_parser as add_doctor
from tfspark.errors import TFSparkError
from tfspark.model_server.command import add_parser as add_serve
from tfspark.records.command import add_parser as add_records


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 for success, 1 for an error, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="tfspark", description="Train and run TensorFlow on Apache Spark.")
    parser.add_argument("--version", action="version", version=f"tfspark {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    jar = verbs.add_parser(
        "jar",
        help="print the path of the TFRecord connector's jar, after building it if needed",
        description='For spark-submit --jars "$(tfspark jar)".',
    )
    jar.add_argument("--ship", action="store_true", help="build it into tfspark's own directory, for a wheel")
    jar.set_defaults(run=_jar)
    add_doctor(verbs)
    add_records(verbs)
    add_serve(verbs)
    migrate.add_parser(verbs)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return int(options.run(options))
    except TFSparkError as e:
        sys.stderr.write(f"tfspark: {e}\n")
        return 1
    except BrokenPipeError:
        # The reader of the output has closed the pipe. Without this, Python prints an error when it flushes the rest.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0


def _jar(options: argparse.Namespace) -> int:
    from tfspark.spark.connector import connector_jar, ship_jar

    sys.stdout.write(f"{ship_jar() if options.ship else connector_jar()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
