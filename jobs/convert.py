#!/usr/bin/env python3
"""Convert anything Spark can read into shuffled TFRecord shards.

    spark-submit jobs/convert.py --format parquet --data warehouse/tickets --output data/tickets --shards 16
    spark-submit jobs/convert.py --format csv --option header=true --option inferSchema=true --data a.csv --output data
    spark-submit jobs/convert.py --format binaryFile --option recursiveFileLookup=true --data pictures \\
        --select "content AS image" --select "element_at(split(path, '/'), -2) AS label" --output data/pictures

Rows go to a shard, and to their place in it, by a hash of their contents and --seed: the same input gives the same
files, whatever tasks Spark repeats. Equal rows end in one shard. What is written is counted again before it is called
done.

Everything of a run is in OUTPUT/RUN_ID: the shards, _schema.json (Spark's JSON; read it with StructType.fromJson) and,
written last, _counts.json (records in all and in each shard). Readers leave both out. A run that has its counts is not
done again; one that was cut off begins anew.

Exit codes: 0 done, or done before; 1 failed; 2 wrong usage; 143 ended by SIGTERM.
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
    """Spread rows over shards and order them within each, by a hash of their contents."""
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
    # The directory holds nothing but the mark; to overwrite it would remove that as well.
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
    """Read the command line."""
    parser = jobs.Parser(__doc__)
    parser.add_argument("--data", required=True, nargs="+", help="paths or URIs to read")
    parser.add_argument("--format", required=True, help="Spark's name of their format: parquet, csv, json, binaryFile")
    parser.add_argument(
        "--option", action="append", default=[], type=lambda o: o.split("=", 1), help="name=value, for reading"
    )
    parser.add_argument("--where", help="SQL condition of the rows to keep")
    parser.add_argument("--select", action="append", help="SQL expression of a column; all columns by default")
    parser.add_argument("--output", required=True, type=jobs.location, help="directory or URI")
    parser.add_argument("--run-id", type=jobs.run_id, default="run", help="name of this run, a date say (%(default)s)")
    parser.add_argument("--master", help="where to run, if spark-submit does not say")
    parser.add_argument("--shards", type=int, default=8, help="files, several for each worker (%(default)s)")
    parser.add_argument("--compression", help="gzip and deflate are read by TensorFlow; none by default")
    parser.add_argument("--seed", type=int, default=1, help="another gives another order")
    args = parser.parse_args(argv)
    if any(len(o) != 2 for o in args.option):
        parser.error("--option takes name=value")
    return args


def main(argv: list[str] | None = None) -> int:
    """Do one run; the exit codes are above."""
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
