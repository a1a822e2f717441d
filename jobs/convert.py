#!/usr/bin/env python3
"""Convert anything Spark can read into shuffled TFRecord shards.

    spark-submit jobs/convert.py --format parquet --data warehouse/tickets --output data/tickets --shards 16
    spark-submit jobs/convert.py --format csv --option header=true --option inferSchema=true --data a.csv --output data
    spark-submit jobs/convert.py --format binaryFile --option recursiveFileLookup=true --data pictures \\
        --select "content AS image" --select "element_at(split(path, '/'), -2) AS label" --output data/pictures

A hash of the contents of a row and of --seed determines its shard and its position in the shard. So the same input
gives the same files, even when Spark repeats tasks. Equal rows are in the same shard. The job counts the written
records again before it completes the run.

All files of a run are in OUTPUT/RUN_ID: the shards, _schema.json (Spark's JSON; read it with StructType.fromJson) and
_counts.json (total number of records, and records per shard), which is written last. Readers of the directory ignore
both JSON files. Completed runs are skipped; an interrupted run starts from the beginning.

Exit codes: 0 completed now or earlier; 1 failed; 2 wrong usage; 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

import tfspark
from tfspark import jobs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("convert")

SCHEMA, COUNTS = "_schema.json", "_counts.json"
WRITES = [SCHEMA, COUNTS, "part-*", "_SUCCESS", "_temporary", ".*.crc"]


def load(spark: SparkSession, args: argparse.Namespace) -> DataFrame:
    """Return the rows to convert."""
    df = spark.read.format(args.format).options(**dict(args.option)).load(args.data)
    if args.where:
        df = df.where(args.where)
    return df.selectExpr(*args.select) if args.select else df


def shuffled(df: DataFrame, shards: int, seed: int) -> DataFrame:
    """Distribute rows over shards, and order them within each shard, by a hash of their contents."""
    from pyspark.sql import functions as F

    place = F.xxhash64(F.lit(seed), *(df[c] for c in df.columns))
    return df.repartition(shards, place).sortWithinPartitions(place)


def run(spark: SparkSession, args: argparse.Namespace, directory: jobs.RunDirectory) -> dict[str, Any]:
    """Write the shards, count them, and return the counts."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    df = load(spark, args)
    sent = Observation("converted")
    writer = shuffled(df, args.shards, args.seed).observe(sent, F.count(F.lit(1)).alias("rows")).write
    if args.compression:
        writer = writer.option("compression", args.compression)
    # The directory contains only the mark of the job. Mode "overwrite" would remove the mark, so use "append".
    writer.format("tfrecord").mode("append").save(directory.uri)
    written = spark.read.format("tfrecord").schema(df.schema).load(directory.uri)
    names = F.col("_metadata.file_name").alias("shard")
    shards = {row["shard"]: row["count"] for row in written.groupBy(names).count().orderBy("shard").collect()}
    records = sum(shards.values())
    if records != sent.get["rows"]:
        raise tfspark.errors.TFSparkError(
            f"{directory.uri} holds {records} records, but {sent.get['rows']} rows were written.",
            hint="Something else writes there too, or removes files.",
        )
    directory.put(SCHEMA, df.schema.jsonValue())
    return {"records": records, "shards": shards}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", required=True, nargs="+", help="paths or URIs to read")
    parser.add_argument("--format", required=True, help="input format: parquet, csv, json, binaryFile or another")
    parser.add_argument(
        "--option", action="append", default=[], type=lambda o: o.split("=", 1), help="option of the reader: name=value"
    )
    parser.add_argument("--where", help="SQL condition for the rows to keep")
    parser.add_argument("--select", action="append", help="SQL expression of a column; all columns by default")
    parser.add_argument("--output", required=True, type=jobs.location, help="directory or URI")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="run id, such as a date (%(default)s)")
    parser.add_argument("--master", help="Spark master, if spark-submit does not set it")
    parser.add_argument("--shards", type=int, default=8, help="number of files; use several per worker (%(default)s)")
    parser.add_argument("--compression", help="TensorFlow can read gzip and deflate; none by default")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order of the rows (%(default)s)")
    args = parser.parse_args(argv)
    if any(len(o) != 2 for o in args.option):
        parser.error("--option takes name=value")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the job and return its exit code, see the docstring of the module."""
    args = parse(argv)
    directory = jobs.RunDirectory("convert", args.output, args.run_id, writes=WRITES, alone=True)
    counts = directory.result(COUNTS)
    if counts is None:
        directory.claim()
        with jobs.session("convert", args.master) as spark:
            counts = run(spark, args, directory)
        directory.put(COUNTS, counts)
    logger.info("%d records in %d shards in %s", counts["records"], len(counts["shards"]), directory.uri)
    return jobs.ExitCode.DONE


if __name__ == "__main__":
    sys.exit(jobs.execute(main))
