#!/usr/bin/env python3
"""Add the predictions of a SavedModel to the rows of a table, in batches, on all executors.

    spark-submit jobs/batch_predict.py --model models/tickets/run/model --format parquet --data warehouse/new \\
        --output predictions/tickets --keep id --output-format parquet

The model's inputs are columns of the same names, or those that --input says. --model is a SavedModel, or a directory
of numbered versions, of which the newest is taken.

The predictions are in OUTPUT/RUN_ID, with Spark's _SUCCESS written last. A run that has it is not done again; one that
was cut off begins anew.

Exit codes: 0 done, or done before; 1 failed; 2 wrong usage; 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("batch_predict")

SUCCESS = "_SUCCESS"
WRITES = [SUCCESS, "part-*", "_temporary", ".*.crc"]


def run(spark: SparkSession, args: argparse.Namespace, directory: str) -> int:
    """Write the predictions; return how many there are."""
    df = spark.read.format(args.format).options(**dict(args.option)).load(args.data)
    inputs, outputs = dict(args.input), dict(args.rename) or None
    keep = args.keep.split(",") if args.keep else None
    predictions = tfspark.predict(df, args.model, inputs=inputs, outputs=outputs, batch_size=args.batch_size, keep=keep)
    # The directory holds nothing but the mark; to overwrite it would remove that as well.
    predictions.write.format(args.output_format).mode("append").save(directory)
    return spark.read.format(args.output_format).schema(predictions.schema).load(directory).count()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def pair(text: str) -> list[str]:
        if "=" not in text:
            raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
        return text.split("=", 1)

    parser = jobs.Parser(__doc__)
    parser.add_argument("--model", required=True, help="directory that driver and executors share")
    parser.add_argument("--data", required=True, nargs="+", help="paths or URIs to read")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of their format (%(default)s)")
    parser.add_argument("--option", action="append", default=[], type=pair, help="name=value, for reading")
    parser.add_argument("--input", action="append", default=[], type=pair, help="input=column, where names differ")
    parser.add_argument("--rename", action="append", default=[], type=pair, help="output=column: only these outputs")
    parser.add_argument("--keep", help="columns of the data to keep, with commas between; all by default")
    parser.add_argument("--output", required=True, type=jobs.location, help="directory or URI")
    parser.add_argument("--output-format", default="parquet", help="(%(default)s)")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="name of this run, a date say (%(default)s)")
    parser.add_argument("--master", help="where to run, if spark-submit does not say")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows per call of the model (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do one run; the exit codes are above."""
    args = parse(argv)
    directory = jobs.RunDirectory("batch_predict", args.output, args.run_id, writes=WRITES, alone=True)
    if directory.has(SUCCESS):
        logger.info("%s was written before", directory.uri)
        return jobs.ExitCode.DONE
    directory.claim()
    with jobs.session("batch_predict", args.master) as spark:
        rows = run(spark, args, directory.uri)
    logger.info("%d rows in %s", rows, directory.uri)
    return jobs.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
