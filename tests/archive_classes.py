"""Write a class data archive, with which the JVMs of tests start in two thirds of their time: ``make test`` does.

``archive_classes.py`` writes `ARCHIVE`; `conftest.py` has JVMs use it where it exists. A JVM whose version or class
path is not that of the archive does without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHIVE = Path(sys.prefix) / "spark-classes.jsa"

# Most of what a JVM does in its first ten seconds is to compile what it will not run again.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

# A JVM would say on standard output, where programs print what tests read, that it does without the archive.
QUIET = "-Xlog:disable -Xlog:all=error:stderr"

PROGRAM = """
import sys
from pyspark.sql import functions as F
import tfspark

java_options, directory = sys.argv[1:]
settings = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.ui.showConsoleProgress": "false"}
settings |= {"spark.driver.extraJavaOptions": java_options}
spark = tfspark.session("archive", "local[2]", **settings)
df = spark.range(100).selectExpr("id", "cast(id as string) s", "array(float(id)) x")
df.write.parquet(directory + "/rows")
rows = spark.read.parquet(directory + "/rows")
rows.groupBy("s").agg(F.max("id")).orderBy("s").collect()
rows.mapInArrow(lambda batches: batches, rows.schema, barrier=True).collect()
spark.sparkContext.parallelize(range(4), 2).map(str).collect()
rows.write.format("tfrecord").save(directory + "/records")
spark.read.format("tfrecord").load(directory + "/records").count()
spark.stop()
"""


def java_options() -> str:
    """Return the options of the JVMs of tests."""
    return f"{JAVA_OPTIONS} -XX:SharedArchiveFile={ARCHIVE} {QUIET}" if ARCHIVE.exists() else JAVA_OPTIONS


def main() -> None:
    ARCHIVE.unlink(missing_ok=True)
    env = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "JDK_JAVA_OPTIONS": JAVA_OPTIONS}
    with tempfile.TemporaryDirectory() as directory:
        writing = f"-XX:ArchiveClassesAtExit={ARCHIVE} {QUIET}"
        command = [sys.executable, "-c", PROGRAM, writing, directory]
        done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True)
    if done.returncode or not ARCHIVE.exists():
        sys.exit(f"No class data archive was written: {done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
