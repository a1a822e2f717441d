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
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tfspark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("batch_predict")


def run(spark: SparkSession, args: argparse.Namespace, directory: str) -> int:
    """Write the predictions; return how many there are."""
    df = spark.read.format(args.format).options(**dict(args.option)).load(args.data)
    inputs, outputs = dict(args.input), dict(args.rename) or None
    keep = args.keep.split(",") if args.keep else None
    predictions = tfspark.predict(df, args.model, inputs=inputs, outputs=outputs, batch_size=args.batch_size, keep=keep)
    predictions.write.format(args.output_format).mode("overwrite").save(directory)
    return spark.read.format(args.output_format).schema(predictions.schema).load(directory).count()


def done(directory: str) -> bool:
    """Tell whether Spark has finished writing `directory`, a path or a URI."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(directory.replace("s3a://", "s3://"))
    return filesystem.get_file_info(f"{path}/_SUCCESS").type != fs.FileType.NotFound


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def pair(text: str) -> list[str]:
        if "=" not in text:
            raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
        return text.split("=", 1)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory that driver and executors share")
    parser.add_argument("--data", required=True, nargs="+", help="paths or URIs to read")
    parser.add_argument("--format", default="tfrecord", help="Spark's name of their format (%(default)s)")
    parser.add_argument("--option", action="append", default=[], type=pair, help="name=value, for reading")
    parser.add_argument("--input", action="append", default=[], type=pair, help="input=column, where names differ")
    parser.add_argument("--rename", action="append", default=[], type=pair, help="output=column: only these outputs")
    parser.add_argument("--keep", help="columns of the data to keep, with commas between; all by default")
    parser.add_argument("--output", required=True, help="directory or URI")
    parser.add_argument("--output-format", default="parquet", help="(%(default)s)")
    parser.add_argument("--run-id", default="run", help="name of this run; Airflow's logical date, say (%(default)s)")
    parser.add_argument("--master", help="where to run, if spark-submit does not say")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows per call of the model (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do one run; the exit codes are above."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("py4j").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output = args.output if "://" in args.output else str(Path(args.output).resolve())
    directory = f"{output}/{args.run_id}"
    if done(directory):
        logger.info("%s was written before", directory)
        return 0
    spark = tfspark.session("batch_predict", args.master)
    try:
        rows = run(spark, args, directory)
    except tfspark.errors.TFSparkError as e:
        logger.error("%s: %s", type(e).__name__, e)
        return 1
    finally:
        spark.stop()
    logger.info("%d rows in %s", rows, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
