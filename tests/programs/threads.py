"""``threads.py CONF OPTIONS``: print the threads of TensorFlow in a node of an application with these settings."""

from __future__ import annotations

import json
import sys
from typing import Any


def threads(args: Any, ctx: Any) -> list[int]:
    import tensorflow as tf

    threading = tf.config.threading
    return [threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()]


def main() -> None:
    import tfspark

    quiet = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
    spark = tfspark.session("threads", "local-cluster[1,4,1024]", **quiet, **json.loads(sys.argv[1]))
    found = tfspark.run(spark, threads, workers=1, progress=False, **json.loads(sys.argv[2]))
    spark.stop()
    print(json.dumps(found["worker", 0]))


if __name__ == "__main__":
    main()
