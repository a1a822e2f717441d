#!/usr/bin/env python3
"""Add the predictions of a SavedModel to the rows of a table, in batches, on all executors.

    spark-submit jobs/batch_predict.py --model models/tickets/run/model --format parquet --data warehouse/new \\
        --output predictions/tickets --keep id --output-format parquet

Each input of the model gets the column with the same name, or the column that --input names. --model is a SavedModel,
or a directory of numbered versions; the job uses the newest version.

The predictions are written to OUTPUT/RUN_ID, with Spark's _SUCCESS last. Completed runs are skipped; an interrupted
run starts from the beginning.

Exit codes: 0 completed now or earlier; 1 failed; 2 wrong usage; 143 ended by SIGTERM.
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
    """Write the predictions and return the number of rows."""
    df = spark.read.format(args.format).options(**dict(args.option)).load(args.data)
    inputs, outputs = dict(args.input), dict(args.rename) or None
    keep = args.keep.split(",") if args.keep else None
    predictions = tfspark.predict(df, args.model, inputs=inputs, outputs=outputs, batch_size=args.batch_size, keep=keep)
    # The directory contains only the mark of the job. Mode "overwrite" would remove the mark, so use "append".
    predictions.write.format(args.output_format).mode("append").save(directory)
    return spark.read.format(args.output_format).schema(predictions.schema).load(directory).count()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""

    def pair(text: str) -> list[str]:
        if "=" not in text:
            raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
        return text.split("=", 1)

    parser = jobs.Parser(__doc__)
    parser.add_argument("--model", required=True, help="directory shared by driver and executors")
    parser.add_argument("--data", required=True, nargs="+", help="paths or URIs to read")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of the input format (%(default)s)")
    parser.add_argument("--option", action="append", default=[], type=pair, help="option of the reader: name=value")
    parser.add_argument("--input", action="append", default=[], type=pair, help="input=column, if the names differ")
    parser.add_argument("--rename", action="append", default=[], type=pair, help="output=column: only these outputs")
    parser.add_argument("--keep", help="columns of the data to keep, separated by commas; all by default")
    parser.add_argument("--output", required=True, type=jobs.location, help="directory or URI")
    parser.add_argument("--output-format", default="parquet", help="Spark's name of the output format (%(default)s)")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows per call of the model (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
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
