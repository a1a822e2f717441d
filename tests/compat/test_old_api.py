"""What the documentation of TensorFlowOnSpark 2.2.5 promises, name by name.

Passes with tfspark's package. With ``TFSPARK_COMPAT=original`` and the original on the path it shows where the original
differs: ``pip install --no-deps --target DIR tensorflowonspark==2.2.5``, then
``PYTHONPATH=DIR TFSPARK_COMPAT=original pytest tests/compat/test_old_api.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import pickle
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODULES: dict[str, dict[str, str]] = {
    "TFCluster": {
        "run": "sc map_fun tf_args num_executors num_ps tensorboard input_mode log_dir driver_ps_nodes master_node "
        "reservation_timeout queues eval_node release_port",
        "TFCluster.train": "self dataRDD num_epochs feed_timeout qname",
        "TFCluster.inference": "self dataRDD feed_timeout qname",
        "TFCluster.shutdown": "self ssc grace_secs timeout",
        "TFCluster.tensorboard_url": "self",
    },
    "TFNode": {
        "hdfs_path": "ctx path",
        "start_cluster_server": "ctx num_gpus rdma",
        "next_batch": "mgr batch_size qname",
        "batch_results": "mgr results qname",
        "terminate": "mgr qname",
        "export_saved_model": "sess export_dir tag_set signatures",
        "release_port": "ctx",
        "DataFeed": "mgr train_mode qname_in qname_out input_mapping",
        "DataFeed.next_batch": "self batch_size",
        "DataFeed.should_stop": "self",
        "DataFeed.batch_results": "self results",
        "DataFeed.terminate": "self",
    },
    "TFSparkNode": {
        "TFNodeContext": "executor_id job_name task_index cluster_spec defaultFS working_dir mgr tmp_socket",
        "TFNodeContext.absolute_path": "self path",
        "TFNodeContext.start_cluster_server": "self num_gpus rdma",
        "TFNodeContext.export_saved_model": "self sess export_dir tag_set signatures",
        "TFNodeContext.get_data_feed": "self train_mode qname_in qname_out input_mapping",
        "TFNodeContext.release_port": "self",
    },
    "TFManager": {"start": "authkey queues mode", "connect": "address authkey"},
    "TFParallel": {"run": "sc map_fn tf_args num_executors use_barrier"},
    "pipeline": {
        "Namespace": "d",
        "TFEstimator": "train_fn tf_args export_fn",
        "TFModel": "tf_args",
        "TFParams.merge_args_params": "self",
        "TFTypeConverters.toDict": "value",
        "single_node_env": "args",
        "get_meta_graph_def": "saved_model_dir tag_set",
        "yield_batch": "iterable batch_size num_tensors",
    },
    "dfutil": {
        "isLoadedDF": "df",
        "saveAsTFRecords": "df output_dir",
        "loadTFRecords": "sc input_dir binary_features",
        "toTFExample": "dtypes",
        "infer_schema": "example binary_features",
        "fromTFExample": "iter binary_features",
    },
    "gpu_info": {"is_gpu_available": "", "get_gpus": "num_gpu worker_index format"},
    "reservation": {
        "Reservations": "required",
        "Server": "count",
        "Server.await_reservations": "self sc status timeout",
        "Server.start": "self",
        "Server.stop": "self",
        "Server.get_server_ip": "self",
        "Server.get_server_ports": "self",
        "Client": "server_addr",
        "Client.register": "self reservation",
        "Client.get_reservations": "self",
        "Client.await_reservations": "self",
        "Client.request_stop": "self",
        "Client.close": "self",
        "MessageSocket.receive": "self sock",
        "MessageSocket.send": "self sock msg",
    },
    "util": {
        "single_node_env": "num_gpus worker_index nodes",
        "get_ip_address": "",
        "find_in_path": "path file",
        "write_executor_id": "num",
        "read_executor_id": "",
    },
    "marker": {"Marker": "", "EndPartition": ""},
    "compat": {
        "export_saved_model": "model export_dir is_chief",
        "disable_auto_shard": "options",
        "is_gpu_available": "",
    },
}

DEFAULTS = {
    "TFCluster.run": {"tensorboard": False, "input_mode": 0, "log_dir": None, "driver_ps_nodes": False,
                      "master_node": None, "reservation_timeout": 600, "eval_node": False, "release_port": True},
    "TFCluster.TFCluster.train": {"num_epochs": 0, "feed_timeout": 600, "qname": "input"},
    "TFCluster.TFCluster.inference": {"feed_timeout": 600, "qname": "input"},
    "TFCluster.TFCluster.shutdown": {"ssc": None, "grace_secs": 0, "timeout": 259200},
    "TFNode.DataFeed": {"train_mode": True, "qname_in": "input", "qname_out": "output", "input_mapping": None},
    "TFParallel.run": {"use_barrier": True},
    "pipeline.TFEstimator": {"export_fn": None},
    "pipeline.yield_batch": {"num_tensors": 1},
    "gpu_info.get_gpus": {"num_gpu": 1, "worker_index": -1, "format": "string"},
    "compat.export_saved_model": {"is_chief": False},
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_name_takes_the_documented_arguments(old: Any, module: str) -> None:
    for name, parameters in MODULES[module].items():
        found: Any = getattr(old, module)
        for part in name.split("."):
            found = getattr(found, part)
        signature = inspect.signature(found)
        # What tfspark adds is given by name only.
        given = [n for n, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        named = [p for p in given if p not in ("args", "kwargs") or p == parameters]
        assert " ".join(named) == parameters, name
        for parameter, default in DEFAULTS.get(f"{module}.{name}", {}).items():
            assert signature.parameters[parameter].default == default, (name, parameter)


# --- paths and arguments


@pytest.mark.parametrize(
    ("fs", "path", "expected"),
    [
        ("hdfs://nn:8020", "hdfs://other/x", "hdfs://other/x"),
        ("hdfs://nn:8020", "s3a://bucket/x", "s3a://bucket/x"),
        ("hdfs://nn:8020", "/x/y", "hdfs://nn:8020/x/y"),
        ("hdfs://nn:8020", "x", "hdfs://nn:8020/user/{user}/x"),
        ("viewfs://nn", "x", "viewfs://nn/user/{user}/x"),
        ("file://", "/x", "file:///x"),
        ("file://", "x", "file:///jobs/here/x"),
        ("oss://b", "x", "oss://b/x"),
    ],
)
def test_paths_get_the_scheme_of_the_default_file_system(old: Any, fs: str, path: str, expected: str) -> None:
    import getpass

    ctx = old.TFSparkNode.TFNodeContext(defaultFS=fs, working_dir="/jobs/here")
    assert ctx.absolute_path(path) == old.TFNode.hdfs_path(ctx, path) == expected.format(user=getpass.getuser())


def test_a_context_knows_its_place(old: Any) -> None:
    spec = {"ps": ["a:1"], "chief": ["a:2"], "worker": ["a:3", "b:4"], "evaluator": ["b:5"]}
    ctx = old.TFSparkNode.TFNodeContext(3, "worker", 1, spec)
    assert (ctx.executor_id, ctx.worker_num, ctx.job_name, ctx.task_index) == (3, 3, "worker", 1)
    assert ctx.cluster_spec == spec and ctx.num_workers == 3
    empty = old.TFSparkNode.TFNodeContext()
    assert (empty.defaultFS, empty.working_dir, empty.num_workers, empty.mgr) == ("file://", ".", 0, None)


def test_what_tensorflow_2_has_no_more_says_so(old: Any) -> None:
    ctx = old.TFSparkNode.TFNodeContext()
    for call in (
        lambda: old.TFNode.next_batch(None, 1),
        lambda: old.TFNode.batch_results(None, []),
        lambda: old.TFNode.terminate(None),
        lambda: ctx.start_cluster_server(1),
        lambda: ctx.export_saved_model(None, "x", "serve", {}),
    ):
        with pytest.raises(Exception, match=r"(?i)deprecated|does not exist in tfspark"):
            call()
    ctx.release_port()


def test_namespaces_are_made_of_dicts_of_lists_and_of_each_other(old: Any) -> None:
    namespace = old.pipeline.Namespace
    made = namespace({"a": 1, "b": "two"})
    assert (made.a, made.b, made.argv) == (1, "two", None)
    assert sorted(made) == ["a", "b"] and "a" in made and "c" not in made
    assert made == namespace(argparse.Namespace(a=1, b="two")) == namespace(made)
    assert made != namespace({"a": 1})
    words = namespace(["--epochs", "3"])
    assert list(words) == ["--epochs", "3"] == words.argv and words == ["--epochs", "3"]
    assert repr(made) == "Namespace(a=1, b='two')" and repr(words) == "['--epochs', '3']"
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        namespace("text")


PARAMS = {
    "BatchSize": 7, "ClusterSize": 2, "Epochs": 3, "GraceSecs": 1, "InputMapping": {"x": "a"}, "InputMode": 1,
    "MasterNode": "master", "ModelDir": "/m", "NumPS": 1, "DriverPSNodes": True, "Protocol": "rdma", "Readers": 2,
    "Steps": 9, "Tensorboard": True, "TFRecordDir": "/t", "ExportDir": "/e",
}  # fmt: skip


def test_an_estimator_has_its_params_and_merges_them_into_its_arguments(old: Any, sc: Any) -> None:
    estimator = old.pipeline.TFEstimator(lambda args, ctx: None, {"epochs": 50, "rate": 0.1})
    defaults = estimator.merge_args_params()
    assert (defaults.rate, defaults.epochs, defaults.batch_size, defaults.cluster_size) == (0.1, 1, 100, 1)
    assert (defaults.num_ps, defaults.steps, defaults.input_mode, defaults.master_node) == (0, 1000, 1, "chief")
    for suffix, value in PARAMS.items():
        assert getattr(estimator, f"set{suffix}")(value) is estimator
        assert getattr(estimator, f"get{suffix}")() == value
    merged = estimator.merge_args_params()
    assert (merged.rate, merged.epochs, merged.batch_size, merged.export_dir) == (0.1, 3, 7, "/e")
    assert estimator.args.epochs == 50
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        estimator.setInputMode(old.TFCluster.InputMode.TENSORFLOW)
    with pytest.raises(TypeError):
        estimator.setInputMapping([("x", "a")])


def test_a_model_has_its_params(old: Any, sc: Any) -> None:
    model = old.pipeline.TFModel({})
    values = {"InputMapping": {"x": "a"}, "OutputMapping": {"o": "y"}, "BatchSize": 5, "ModelDir": "/m",
              "ExportDir": "/e", "SignatureDefKey": "serving_default", "TagSet": "serve"}  # fmt: skip
    assert (model.getSignatureDefKey(), model.getTagSet(), model.getBatchSize()) == (None, None, 100)
    for suffix, value in values.items():
        assert getattr(getattr(model, f"set{suffix}")(value), f"get{suffix}")() == value


def test_batches_of_a_partition(old: Any) -> None:
    rows = [(i, [i, i]) for i in range(5)]
    assert list(old.pipeline.yield_batch(iter(rows), 2, 2)) == [
        [[0, 1], [[0, 0], [1, 1]]],
        [[2, 3], [[2, 2], [3, 3]]],
        [[4], [[4, 4]]],
    ]
    assert list(old.pipeline.yield_batch(iter([(1,), None, (2,)]), 10)) == [[[1]]]
    assert list(old.pipeline.yield_batch(iter([]), 10)) == []


# --- what the original needed for itself


def test_a_manager_has_values_and_queues(old: Any) -> None:
    manager = old.TFManager.start(b"secret", ["input", "control"])
    manager.set("state", "running")
    assert str(manager.get("state")).strip("'") == "running"
    queue = manager.get_queue("input")
    queue.put(("a", [1]))
    same = old.TFManager.connect(manager.address, b"secret").get_queue("input")
    assert same.get(timeout=10) == ("a", [1])
    same.task_done()
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        old.TFManager.connect(manager.address, b"another")


def test_a_feed_reads_and_answers_the_queues_of_a_manager(old: Any) -> None:
    manager = old.TFManager.start(b"secret", ["input", "output", "error"])
    source = manager.get_queue("input")
    for row in (1, 2, 3, old.marker.EndPartition(), 4, None):
        source.put(row)
    feed = old.TFNode.DataFeed(manager, train_mode=False)
    assert feed.next_batch(2) == [1, 2] and not feed.should_stop()
    assert feed.next_batch(9) == [3] and feed.next_batch(9) == [4] and feed.should_stop()
    feed.batch_results(["a", "b"])
    assert [manager.get_queue("output").get(timeout=10) for _ in range(2)] == ["a", "b"]
    source.put((1, "x"))
    source.put((2, "y"))
    by_tensor = old.TFNode.DataFeed(manager, input_mapping={"c1": "n", "c2": "s"})
    assert by_tensor.next_batch(2) == {"n": [1, 2], "s": ["x", "y"]}
    source.put((3, "z"))
    by_tensor.terminate()
    assert str(manager.get("state")).strip("'") == "terminating" and source.empty()


def test_reservations_are_awaited(old: Any) -> None:
    assert issubclass(old.marker.EndPartition, old.marker.Marker)
    store = old.reservation.Reservations(2)
    assert (store.required, store.remaining(), store.done(), store.get()) == (2, 2, False, [])
    server = old.reservation.Server(2)
    address = server.start()
    client = old.reservation.Client(address)
    for i in range(2):
        assert client.register({"executor_id": i}) == "OK"
    assert client.get_reservations() == [{"executor_id": 0}, {"executor_id": 1}]
    assert client.await_reservations() == server.await_reservations(None, {}, 5) == client.get_reservations()
    assert client.request_stop() == "OK" and server.done
    client.close()
    server.stop()
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        old.reservation.Server(0)


def test_reservations_that_do_not_come_time_out(old: Any) -> None:
    server = old.reservation.Server(1)
    server.start()
    with pytest.raises(Exception, match=r"(?i)reservations"):
        server.await_reservations(None, {}, 1)
    server.stop()


def test_the_reservation_server_is_told_its_place(old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = old.reservation.Server(1)
    assert server.get_server_ports() == [0]
    for text, ports in {"8888": [8888], "9997-9999": [9997, 9998, 9999]}.items():
        monkeypatch.setenv("TFOS_SERVER_PORT", text)
        assert server.get_server_ports() == ports
    monkeypatch.setenv("TFOS_SERVER_PORT", "1-2-3")
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        server.get_server_ports()
    monkeypatch.setenv("TFOS_SERVER_HOST", "10.1.2.3")
    assert server.get_server_ip() == "10.1.2.3"


def test_helpers(old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tool").write_text("")
    path = os.pathsep.join(["/nowhere", str(tmp_path / "here")])
    assert old.util.find_in_path(path, "tool") == str(tmp_path / "here" / "tool")
    assert old.util.find_in_path(path, "other") is False
    old.util.write_executor_id(3)
    assert old.util.read_executor_id() == 3
    assert len(old.util.get_ip_address().split(".")) == 4


def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on the path that answers as NVIDIA's does where GPU 1 of 3 is busy."""
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\ncase \"$*\" in\n*compute-apps*) echo u1 ;;\n*query-gpu*) printf '0, u0\\n1, u1\\n2, u2\\n' ;;\n"
        '*) for i in 0 1 2; do echo "GPU $i: Some Model (UUID: u$i)"; done ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_free_gpus_are_found(old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch)
    gpus = old.gpu_info
    assert gpus.is_gpu_available()
    assert gpus.get_gpus(1, 0) == "0" and gpus.get_gpus(1, 1) == "2"
    assert gpus.get_gpus(2, 0, format=gpus.AS_LIST) == ["0", "2"]
    assert sorted(gpus.get_gpus(2).split(",")) == ["0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    old.util.single_node_env(1, 2, ["other:1", "here:1", "here:2"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    old.util.single_node_env(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_host_without_gpus(old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert not old.gpu_info.is_gpu_available()
    old.util.single_node_env(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    old.pipeline.single_node_env(old.pipeline.Namespace({"num_gpus": 1}))
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        old.gpu_info.get_gpus(1)


# --- TFRecords

TYPES = "b boolean, i int, l bigint, f float, d double, s string, z binary, li array<bigint>, lf array<float>"


def test_rows_become_examples_and_rows_again(old: Any, sc: Any) -> None:
    import tensorflow as tf
    from pyspark.sql import Row

    row = Row(b=True, f=0.5, i=3, li=[1, 2], lf=[0.5, 1.5], s="text", z=bytearray(b"\x00\xff"))
    dtypes = [("b", "boolean"), ("f", "float"), ("i", "int"), ("li", "array<bigint>"), ("lf", "array<float>"),
              ("s", "string"), ("z", "binary")]  # fmt: skip
    ((data, nothing),) = list(old.dfutil.toTFExample(dtypes)(iter([row])))
    assert nothing is None and isinstance(data, bytearray)
    example = tf.train.Example.FromString(bytes(data))
    assert list(example.features.feature["li"].int64_list.value) == [1, 2]
    schema = old.dfutil.infer_schema(example, ["z"])
    assert {f.name: f.dataType.simpleString() for f in schema.fields} == {
        "b": "bigint", "f": "double", "i": "bigint", "li": "array<bigint>", "lf": "array<double>", "s": "string",
        "z": "binary",
    }  # fmt: skip
    assert [f.name for f in schema.fields] == sorted(f.name for f in schema.fields)
    (back,) = list(old.dfutil.fromTFExample(iter([(data, None)]), ["z"]))
    assert back.asDict() == {"b": 1, "f": 0.5, "i": 3, "li": [1, 2], "lf": [0.5, 1.5], "s": "text", "z": b"\x00\xff"}
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        list(old.dfutil.toTFExample([("m", "map<string,int>")])(iter([Row(m={})])))


def test_dataframes_are_saved_and_loaded(old: Any, sc: Any, tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    spark = SparkSession(sc)
    rows = [
        (i % 2 == 0, i, i << 40, i / 2, i / 4, f"t{i}", bytes([255, i]), [i, i + 1], [i / 2] * 3) for i in range(20)
    ]
    df = spark.createDataFrame(rows, TYPES).repartition(3)
    directory = str(tmp_path / "records")
    old.dfutil.saveAsTFRecords(df, directory)
    with pytest.raises(Exception, match=r"(?i)exists"):
        old.dfutil.saveAsTFRecords(df, directory)
    loaded = old.dfutil.loadTFRecords(sc, directory, binary_features=["z"])
    assert old.dfutil.isLoadedDF(loaded) and not old.dfutil.isLoadedDF(df)
    assert dict(loaded.dtypes) == {
        "b": "bigint", "i": "bigint", "l": "bigint", "f": "double", "d": "double", "s": "string", "z": "binary",
        "li": "array<bigint>", "lf": "array<double>",
    }  # fmt: skip
    found = sorted((r.i, r.b, r.l, r.f, r.d, r.s, bytes(r.z), r.li, r.lf) for r in loaded.collect())
    assert found == [(i, int(b), n, f, d, s, z, li, lf) for b, i, n, f, d, s, z, li, lf in rows]


# --- clusters


def test_nodes_must_fit_the_executors(old: Any, sc: Any) -> None:
    run, mode = old.TFCluster.run, old.TFCluster.InputMode
    assert (mode.TENSORFLOW, mode.SPARK) == (0, 1)
    for nodes, options in (
        ((1, 2), {}),
        ((2, 2), {}),
        ((1, 1), {"master_node": "chief"}),
        ((2, 1), {"driver_ps_nodes": True, "input_mode": mode.SPARK}),
        ((2, 0), {"eval_node": True, "input_mode": mode.SPARK}),
    ):
        with pytest.raises(Exception):  # noqa: B017 - of any kind
            run(sc, lambda args, ctx: None, None, *nodes, **options)


ROWS = [1, 2.5, "text", b"bytes", (1, [2, 3]), [1, 2], {"k": None}, None, np.arange(3, dtype=np.int16)]


def test_rows_are_fed_as_they_are(old: Any, sc: Any, tmp_path: Path) -> None:
    """Two nodes, a chief and a worker, 4 partitions, 2 epochs: types, order, batches, and what a context says."""
    directory = str(tmp_path)

    def main(args: Any, ctx: Any) -> None:
        import json
        import os
        import pickle
        import sys

        feed = ctx.get_data_feed()
        batches = []
        while not feed.should_stop():
            batches.append(feed.next_batch(4))
        said = {
            "job": ctx.job_name, "index": ctx.task_index, "executor": ctx.executor_id, "workers": ctx.num_workers,
            "spec": ctx.cluster_spec, "path": ctx.absolute_path("/x"), "argv": sys.argv, "cwd": ctx.working_dir,
            "tf_config": json.loads(os.environ["TF_CONFIG"]), "state": str(ctx.mgr.get("state")).strip("'"),
        }  # fmt: skip
        with open(os.path.join(args[1], f"{ctx.job_name}{ctx.task_index}"), "wb") as f:
            pickle.dump((said, batches), f)

    cluster = old.TFCluster.run(
        sc, main, ["program", directory], 2, 0, input_mode=old.TFCluster.InputMode.SPARK, master_node="chief"
    )
    info = {n["job_name"]: n for n in cluster.cluster_info}
    assert set(info) == {"chief", "worker"} and cluster.tensorboard_url() is None
    numbered = [[(p, i, row) for i, row in enumerate(ROWS)] for p in range(4)]
    rdd = sc.parallelize(numbered, 4).flatMap(lambda rows: rows)
    cluster.train(rdd, 2)
    cluster.shutdown(grace_secs=5)
    everything = []
    for job, executor in (("chief", 0), ("worker", 1)):
        said, batches = pickle.loads((tmp_path / f"{job}0").read_bytes())
        assert (said["job"], said["index"], said["executor"], said["workers"]) == (job, 0, executor, 2)
        assert {k: len(v) for k, v in said["spec"].items()} == {"chief": 1, "worker": 1}
        assert said["spec"]["chief"] == [f"{info['chief']['host']}:{info['chief']['port']}"]
        assert said["tf_config"]["cluster"] == said["spec"]
        assert said["tf_config"]["task"] == {"type": job, "index": 0}
        assert said["path"] == "file:///x" and said["argv"] == ["program", directory] and said["cwd"] == os.getcwd()
        assert said["state"] == "running"
        assert [len(b) for b in batches[:-1]] == [4] * (len(batches) - 1) and len(batches[-1]) < 4
        rows = [row for b in batches for row in b]
        everything += rows
        for p in range(4):
            # A partition goes to one node at a time, whole and in its order.
            of_partition = [i for q, i, _ in rows if q == p]
            assert of_partition == list(range(len(ROWS))) * (len(of_partition) // len(ROWS))
    assert len(everything) == 2 * 4 * len(ROWS)
    for _, i, row in everything:
        assert type(row) is type(ROWS[i])
        assert np.array_equal(row, ROWS[i]) if isinstance(row, np.ndarray) else row == ROWS[i]


def test_results_come_back_one_for_each_row_in_order(old: Any, sc: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        while not feed.should_stop():
            batch = feed.next_batch(7)
            if len(batch) > 0:
                feed.batch_results([(x, {"half": x / 2}) for x in batch])

    cluster = old.TFCluster.run(sc, main, {}, 2, 0, input_mode=old.TFCluster.InputMode.SPARK)
    rdd = sc.parallelize(range(100), 3).filter(lambda x: x < 30 or x > 70)
    results = cluster.inference(rdd)
    assert results.collect() == [(x, {"half": x / 2}) for x in range(100) if x < 30 or x > 70]
    assert results.map(lambda r: r[0]).sum() == sum(x for x in range(100) if x < 30 or x > 70)
    cluster.shutdown()


def test_columns_become_tensors_and_feeding_can_be_given_up(old: Any, sc: Any, tmp_path: Path) -> None:
    target = str(tmp_path / "seen")

    def main(args: Any, ctx: Any) -> None:
        import pickle

        feed = ctx.get_data_feed(input_mapping={"b": "second", "a": "first"})
        batch = feed.next_batch(3)
        feed.terminate()
        with open(target, "wb") as f:
            pickle.dump((batch, str(ctx.mgr.get("state")).strip("'")), f)

    cluster = old.TFCluster.run(sc, main, {}, 1, 0, input_mode=old.TFCluster.InputMode.SPARK)
    cluster.train(sc.parallelize([(i, [i, i]) for i in range(2000)], 4), 0)
    cluster.shutdown(grace_secs=6)
    batch, state = pickle.loads(Path(target).read_bytes())
    assert set(batch) == {"first", "second"} and len(batch["first"]) == 3 and state == "terminating"
    assert batch["second"] == [[i, i] for i in batch["first"]]


def fetch(url: str) -> bytes:
    """Read a page; the original gives its address before anything listens there."""
    pause = threading.Event()
    for _ in range(60):
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url) as page:
            return page.read()
        pause.wait(1.0)
    raise TimeoutError(url)


def test_every_role_runs_main_and_the_background_ends_with_the_others(old: Any, sc: Any, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    directory = str(tmp_path)

    def main(args: Any, ctx: Any) -> None:
        import os
        import threading
        import time

        name = f"{ctx.job_name}{ctx.task_index}"
        with open(os.path.join(args.directory, name), "w") as f:
            json.dump([ctx.executor_id, ctx.num_workers, sorted(ctx.cluster_spec), os.environ.get("TF_CONFIG")], f)
        background = [os.path.join(args.directory, n) for n in ("ps0", "evaluator0")]
        never, deadline = threading.Event(), time.monotonic() + 60
        if ctx.job_name in ("ps", "evaluator"):
            never.wait()
        while not all(map(os.path.exists, background)) and time.monotonic() < deadline:
            never.wait(0.1)

    args = argparse.Namespace(directory=directory)
    cluster = old.TFCluster.run(
        sc, main, args, 4, 1, tensorboard=True, log_dir=str(logs), master_node="chief", eval_node=True
    )
    assert b"TensorBoard" in fetch(cluster.tensorboard_url().replace(old.util.get_ip_address(), "127.0.0.1"))
    with pytest.raises(Exception):  # noqa: B017 - of any kind
        cluster.train(sc.parallelize([1]))
    cluster.shutdown(timeout=120)
    for executor, name in enumerate(["ps0", "chief0", "evaluator0", "worker0"]):
        found = json.loads((tmp_path / name).read_text())
        assert found[:3] == [executor, 2, ["chief", "evaluator", "ps", "worker"]]
        assert json.loads(found[3])["task"] == {"type": name[:-1], "index": 0}


def test_parallel_instances_know_their_number(old: Any, sc: Any, tmp_path: Path) -> None:
    directory = str(tmp_path)

    def main(args: Any, ctx: Any) -> None:
        import os

        with open(os.path.join(directory, str(ctx.worker_num)), "w") as f:
            json.dump([args.text, ctx.executor_id, ctx.num_workers, ctx.absolute_path("/x")], f)

    old.TFParallel.run(sc, main, argparse.Namespace(text="t", num_gpus=0), 2)
    for i in range(2):
        assert json.loads((tmp_path / str(i)).read_text()) == ["t", i, 2, "file:///x"]
