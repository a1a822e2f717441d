"""Runs the program's main function in a node, with the context, the rows and the roles of the old API."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np

from tfspark import NodeContext
from tfspark.columns import pickled_rows as objects
from tfspark.compat import install
from tfspark.compat.tensorflowonspark import _members, gpu_info
from tfspark.compat.tensorflowonspark._inbox import Inbox
from tfspark.compat.tensorflowonspark.TFManager import TFManager
from tfspark.compat.tensorflowonspark.TFSparkNode import TFNodeContext
from tfspark.errors import PredictError, first_line

QUESTIONS_AHEAD = 2
"""Number of inference batches that a node unpacks at a time, so that the next is ready when main has answered one."""

TIMEOUT_COLUMN = "feed_timeout"
"""Column next to the rows of an inference: seconds within which main must take a row or give a result."""

LOOK_SECONDS = 0.2
"""Pause between two checks whether a background node may end."""

Main = Callable[[Any, TFNodeContext], Any]


@dataclass(frozen=True)
class Plan:
    """The data that the nodes of a cluster need; the tfspark worker with index ``i`` is ``members[i]``.

    Attributes
    ----------
    program
        ``(map_fun, tf_args, None)``, pickled separately, because loading it may import tensorflowonspark.
    fed
        Whether the driver feeds rows.
    """

    program: bytes
    members: tuple[_members.Member, ...]
    default_fs: str
    working_dir: str
    fed: bool = False


def run(plan: Plan, ctx: NodeContext) -> None:
    """Run the program in this node; `tfspark.Cluster` calls this function in every node."""
    install()
    map_fun, tf_args, _ = cloudpickle.loads(plan.program)
    member = plan.members[ctx.index]
    spec = _members.cluster_spec(plan.members, ctx.cluster_spec["worker"])
    _prepare(member, spec, tf_args, ctx)
    inbox = Inbox() if plan.fed and not member.in_background else None
    manager = TFManager(inbox=inbox, on_terminate=lambda: ctx.report(0, flush=True, terminated=1))
    manager.set("state", "running")
    context = TFNodeContext(
        member.executor_id, member.job_name, member.task_index, spec, plan.default_fs, plan.working_dir, manager
    )
    if member.in_background:
        _run_in_background(map_fun, tf_args, context, ctx)
    elif inbox is not None:
        _run_fed(map_fun, tf_args, context, ctx, inbox)
    else:
        map_fun(tf_args, context)


def _prepare(member: _members.Member, spec: dict[str, list[str]], tf_args: Any, ctx: NodeContext) -> None:
    """Set ``sys.argv``, environment variables and Keras in this process as main functions expect."""
    if isinstance(tf_args, list):
        sys.argv = tf_args
    config = _members.tf_config(member, spec)
    if config is None:
        os.environ.pop("TF_CONFIG", None)
    else:
        os.environ["TF_CONFIG"] = config
        # The program creates its own strategy.
        from tfspark.node.keras.fit import guard
        from tfspark.node.keras.multi_worker_mirrored import mend

        mend()
        guard(member.job_name in ("chief", "master"))
    wanted = tf_args.num_gpus if "num_gpus" in _names(tf_args) else 1
    if wanted and not ctx.gpus and member.job_name != "ps" and gpu_info.is_gpu_available():
        mine = spec[member.job_name][member.task_index]
        host = mine.rpartition(":")[0]
        local = [a for hosts in spec.values() for a in hosts if a.rpartition(":")[0] == host]
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_info.get_gpus(wanted, local.index(mine))


def _names(tf_args: Any) -> Any:
    try:
        return vars(tf_args)
    except TypeError:
        return ()


def _run_in_background(map_fun: Main, tf_args: Any, context: TFNodeContext, ctx: NodeContext) -> None:
    """Run main until the other nodes have ended, because ``join()`` of a server never returns by itself."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            map_fun(tf_args, context)
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=body, name="map_fun", daemon=True)
    thread.start()
    while thread.is_alive() and not ctx.stopping:
        thread.join(LOOK_SECONDS)
    if raised and not ctx.stopping:
        raise raised[0]


def _run_fed(map_fun: Main, tf_args: Any, context: TFNodeContext, ctx: NodeContext, inbox: Inbox) -> None:
    assert context.mgr is not None
    fed = threading.Event()
    feeding = threading.Thread(target=_deliver, args=(ctx, inbox, context.mgr, fed), name="feed", daemon=True)
    asking = threading.Thread(target=_answer, args=(ctx, inbox, fed), name="inference", daemon=True)
    feeding.start()
    asking.start()
    try:
        map_fun(tf_args, context)
    except BaseException as e:
        _tell_whoever_asks(e, inbox, fed, asking)
        raise
    terminated = context.mgr.get("state") == "terminating"
    inbox.close("has returned")
    if inbox.was_asked:
        # The driver gets the number of missing results before this process ends.
        asking.join()
    if terminated:
        # The node still receives the remaining rows of the feed, and drops them.
        feeding.join()
    context.mgr.set("state", "stopped")


def _tell_whoever_asks(e: BaseException, inbox: Inbox, fed: threading.Event, asking: threading.Thread) -> None:
    """Answer all inference requests with main's error, until the driver sends no more requests, or feeds rows.

    If the process ended at once, the reason would be lost, and Spark would retry its tasks on a closed port.
    """
    text = "".join(traceback.format_exception(e))
    sys.stderr.write(text)
    what = first_line(e)
    inbox.fail(PredictError(f"map_fun failed: {type(e).__name__}: {what}\n--- traceback of map_fun ---\n{text}"))
    if inbox.was_asked:
        asking.join()
    else:
        fed.wait()


def _deliver(ctx: NodeContext, inbox: Inbox, manager: TFManager, fed: threading.Event) -> None:
    try:
        # Returns when a feed begins, even if this node gets none of its rows.
        ctx._link.spool.wait_for_feed()
        fed.set()
        for batch in ctx.record_batches():
            if manager.get("state") == "running":
                inbox.deliver(objects.unpickled(batch))
        inbox.end()
    except BaseException as e:
        inbox.fail(e)
    finally:
        fed.set()


def _answer(ctx: NodeContext, inbox: Inbox, over: threading.Event) -> None:
    def answer(batch: dict[str, Any]) -> Any:
        rows = [objects.loads(value) for value in batch[objects.COLUMN].numpy()]
        timeout = float(batch[TIMEOUT_COLUMN].numpy()[0])
        results = np.empty(len(rows), object)
        results[:] = [objects.dumps(r) for r in inbox.ask(rows, timeout if timeout > 0 else None)]
        return results

    try:
        ctx.serve(answer, threads=QUESTIONS_AHEAD)
        inbox.end()
    except BaseException as e:
        inbox.fail(e)
    finally:
        over.set()
