"""What nodes need, who goes together, and whether it fits: decisions on every kind of cluster, without Spark."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.errors import ConfigurationError, ResourceError
from tfspark.spark.resources import (
    Executor,
    Group,
    Manager,
    NodeResources,
    Settings,
    Shortage,
    feeding_need,
    find_shortage,
    plan_groups,
    shortage_error,
    shown,
)
from tfspark.spark.resources import TaskResources as Task
from tfspark.spec import NodeId, plan_nodes

pytestmark = pytest.mark.unit

STANDALONE = Settings(Manager.STANDALONE)
GPUS = Settings(Manager.STANDALONE, executor_gpus=2)
WORKERS = plan_nodes(2)
SERVED = (*plan_nodes(2, ps=2), NodeId("evaluator", 0))


def names(group: Group) -> list[str]:
    return [str(n) for n in group.nodes]


def test_without_wishes_all_nodes_are_ordinary_tasks() -> None:
    (group,) = plan_groups(SERVED, NodeResources(), STANDALONE)
    assert group == Group(SERVED, STANDALONE.task)


def test_chief_and_workers_get_gpus_and_others_none() -> None:
    first, rest = plan_groups(SERVED, NodeResources(gpus=2), GPUS)
    assert names(first) == ["chief 0", "worker 0", "worker 1"] and first.need == Task(1, 2)
    assert names(rest) == ["ps 0", "ps 1", "evaluator 0"] and rest.need == Task(1, 0) == GPUS.task


def test_what_any_task_gets_is_what_nodes_get_but_for_parameter_servers() -> None:
    settings = Settings(Manager.STANDALONE, Task(2, Fraction(1, 2)), executor_gpus=1)
    first, rest = plan_groups(SERVED, NodeResources(), settings)
    assert first.need == settings.task and rest.need == Task(2, 0)
    (none,) = plan_groups(SERVED, NodeResources(gpus=0), settings)
    assert none.need == Task(2, 0) and none.nodes == SERVED


def test_nodes_of_several_cpus() -> None:
    (group,) = plan_groups(WORKERS, NodeResources(cpus=3), STANDALONE)
    assert group.need == Task(3)


@pytest.mark.parametrize(("cores", "cpus"), [(1, 1), (2, 2), (3, 2), (4, 3), (8, 5)])
def test_spread_leaves_no_executor_room_for_two(cores: int, cpus: int) -> None:
    set_so = Settings(Manager.YARN, executor_cpus=cores)
    found_so = [Executor(max(1, cores - 1)), Executor(cores)]
    for groups in (
        plan_groups(SERVED, NodeResources(spread=True), set_so),
        plan_groups(SERVED, NodeResources(spread=True), STANDALONE, found_so),
    ):
        assert [g.need for g in groups] == [Task(cpus)]
        assert 2 * cpus > cores >= cpus
    (wide,) = plan_groups(WORKERS, NodeResources(cpus=cores, spread=True), set_so)
    assert wide.need == Task(cores)


@pytest.mark.parametrize("master", ["local", "local[4]", "local[*]", "mesos://host"])
@pytest.mark.parametrize("wishes", [NodeResources(gpus=1), NodeResources(cpus=2), NodeResources(spread=True, cpus=2)])
def test_masters_that_give_every_task_the_same(master: str, wishes: NodeResources) -> None:
    with pytest.raises(ResourceError, match="with this master Spark gives every task 1 CPU"):
        plan_groups(WORKERS, wishes, Settings(Manager.of(master)), [Executor(4)])
    assert plan_groups(WORKERS, NodeResources(gpus=0, cpus=1), Settings(Manager.of(master)))[0].need == Task()


@pytest.mark.parametrize("master", ["spark://a:7077", "yarn", "k8s://https://a", "local-cluster[2,2,1024]"])
def test_gpus_that_spark_does_not_offer_name_the_settings_of_this_master(master: str) -> None:
    manager = Manager.of(master)
    with pytest.raises(ResourceError, match=r"needs 1 GPU\(s\), but an executor has 0: .* is not set") as caught:
        plan_groups(WORKERS, NodeResources(gpus=1), Settings(manager))
    assert "spark.executor.resource.gpu.amount" in str(caught.value.hint)
    script = {"standalone": "spark.worker.resource.gpu.amount", "yarn": "gpu.discoveryScript", "kubernetes": ".vendor"}
    assert script.get(manager.value, "spark.worker.resource.gpu") in str(caught.value.hint)


def test_more_gpus_or_cpus_than_an_executor_can_have() -> None:
    with pytest.raises(ResourceError, match=r"needs 3 GPU\(s\), but an executor has 2: .* is 2"):
        plan_groups(WORKERS, NodeResources(gpus=3), GPUS)
    with pytest.raises(ResourceError, match="needs 5 CPUs, but an executor has 4"):
        plan_groups(WORKERS, NodeResources(cpus=5), Settings(Manager.YARN, executor_cpus=4))


def test_dynamic_allocation_brings_executors_with_gpus_though_others_have_none() -> None:
    settings = Settings(Manager.STANDALONE, dynamic=True)
    assert plan_groups(WORKERS, NodeResources(gpus=4), settings)[0].need == Task(1, 4)
    with pytest.raises(ResourceError, match="executors of a known size"):
        plan_groups(WORKERS, NodeResources(spread=True), settings)
    with pytest.raises(ResourceError, match="an executor has 1"):
        plan_groups(WORKERS, NodeResources(gpus=2), Settings(Manager.STANDALONE, executor_gpus=1, dynamic=True))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ((-1, None), "gpus_per_node"), ((True, None), "gpus_per_node"), (("1", None), "gpus_per_node"),
        ((1.5, None), "whole number, or at most 1"), ((float("nan"), None), "gpus_per_node"),
        ((None, 0), "cpus_per_node must be > 0, got 0"), ((None, -1), "cpus_per_node"),
        ((None, float("inf")), "cpus_per_node"),
    ],
)  # fmt: skip
def test_amounts_that_are_none(wishes: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NodeResources.of(*wishes, spread=False)


def test_amounts_are_exact_and_written_as_the_user_does() -> None:
    assert NodeResources.of(0.1, 2, True) == NodeResources(Fraction(1, 10), 2, True)
    assert [shown(a) for a in (1, Fraction(2), Fraction(1, 2), Fraction("0.3333"))] == ["1", "2", "0.5", "0.3333"]


# --- does it fit


def gang(count: int, need: Task) -> Group:
    return Group(tuple(NodeId("worker", i) for i in range(count)), need)


@pytest.mark.parametrize(
    ("groups", "feeding", "executors", "shortage"),
    [
        ([(2, Task(1))], Task(1), [Executor(3)], None),
        ([(2, Task(1))], Task(1), [Executor(2)], "feeding cpus"),
        ([(3, Task(1))], None, [Executor(1), Executor(1)], "0 cpus"),
        ([(3, Task(1))], None, [], "0 cpus"),
        ([(2, Task(1, 1)), (2, Task(1))], Task(1), [Executor(3, 1), Executor(2, 1)], None),
        (
            [(2, Task(1, 1)), (2, Task(1))],
            Task(1),
            [Executor(2, 1), Executor(2, 1)],
            "feeding cpus",
        ),
        ([(2, Task(1, 1)), (3, Task(1))], None, [Executor(2, 1), Executor(2, 1)], "1 cpus"),
        ([(3, Task(1, 1))], None, [Executor(4, 1), Executor(4, 1)], "0 gpus"),
        ([(2, Task(1, 2))], None, [Executor(4, 3)], "0 gpus"),
        ([(2, Task(1, 2))], None, [Executor(4, 2), Executor(4, 2)], None),
        ([(2, Task(2, 1))], None, [Executor(3, 2)], "0 cpus"),
        ([(2, Task(2, 1))], Task(1), [Executor(3, 1)] * 2, None),
        # Spark gives a share from one GPU, not from what is left of two.
        ([(3, Task(1, Fraction(1, 3)))], None, [Executor(3, 1)], None),
        ([(2, Task(1, Fraction(2, 3)))], Task(1, Fraction(2, 3)), [Executor(3, 2)], "feeding gpus"),
        ([(2, Task(1, 1))], Task(1, Fraction(1, 10)), [Executor(4, 2)], "feeding gpus"),
        ([(2, Task(Fraction(1, 2)))], Task(Fraction(1, 2)), [Executor(1)], "feeding cpus"),
    ],
)
def test_all_nodes_and_one_feeding_task_side_by_side(
    groups: Any, feeding: Task | None, executors: list[Executor], shortage: str | None
) -> None:
    gangs = [gang(*g) for g in groups]
    found = find_shortage(gangs, feeding, executors)
    if found is None:
        assert shortage is None
        return
    whose = "feeding" if found.group is None else gangs.index(found.group)
    assert f"{whose} {'gpus' if found.of_gpus else 'cpus'}" == shortage


executors = st.lists(st.builds(Executor, st.integers(1, 8), st.integers(0, 4)), max_size=5)


@given(st.integers(1, 12), st.integers(1, 4), executors)
def test_equal_tasks_fit_exactly_as_far_as_spark_counts_slots(count: int, cpus: int, executors: list[Executor]) -> None:
    slots = sum(e.cpus // cpus for e in executors)
    assert (find_shortage([gang(count, Task(cpus))], None, executors) is None) == (count <= slots)


@given(st.integers(1, 12), st.sampled_from([Fraction(1, 4), Fraction(1, 2), 1, 2]), executors)
def test_gpu_tasks_fit_exactly_as_far_as_spark_counts_slots(count: int, gpus: Any, executors: list[Executor]) -> None:
    slots = sum(min(e.cpus, e.gpus * int(1 / gpus) if gpus <= 1 else e.gpus // gpus) for e in executors)
    assert (find_shortage([gang(count, Task(1, gpus))], None, executors) is None) == (count <= slots)


@given(st.integers(1, 5), executors, st.builds(Executor, st.integers(1, 8), st.integers(0, 4)))
def test_one_more_executor_never_makes_it_worse(count: int, executors: list[Executor], more: Executor) -> None:
    groups, feeding = [gang(count, Task(2, 1)), gang(1, Task(2))], Task(1)
    if find_shortage(groups, feeding, executors) is None:
        assert find_shortage(groups, feeding, [*executors, more]) is None


# --- feeding where GPUs are short


TASK_WANTS_GPU = Settings(Manager.STANDALONE, Task(1, Fraction(1, 2)), executor_gpus=2)


def test_feeding_goes_without_a_gpu_only_if_the_nodes_leave_none() -> None:
    executors = [Executor(4, 2)]
    assert feeding_need([gang(2, Task(1, 1))], TASK_WANTS_GPU, executors) == Task(1, 0)
    assert feeding_need([gang(1, Task(1, 1))], TASK_WANTS_GPU, executors) == TASK_WANTS_GPU.task
    assert feeding_need([gang(2, Task(1, 1))], GPUS, executors) == GPUS.task


def test_feeding_stays_as_it_is_where_it_would_not_help_or_not_work() -> None:
    held = [gang(4, Task(1, Fraction(1, 2)))]
    assert feeding_need(held, TASK_WANTS_GPU, [Executor(4, 2)]) == TASK_WANTS_GPU.task, "no CPU is left either"
    for settings in (
        Settings(Manager.OTHER, TASK_WANTS_GPU.task, executor_gpus=2),
        Settings(Manager.YARN, TASK_WANTS_GPU.task, executor_gpus=2, dynamic=True),
    ):
        assert feeding_need(held, settings, [Executor(9, 2)]) == TASK_WANTS_GPU.task


# --- what is said


def told(groups: list[Group], feeding: Task | None, executors: list[Executor], **more: Any) -> str:
    shortage = find_shortage(groups, feeding, executors)
    assert isinstance(shortage, Shortage)
    settings = more.pop("settings", STANDALONE)
    return str(shortage_error(shortage, groups, feeding, executors, settings, **more))


def test_the_error_says_how_many_there_are_how_many_are_needed_and_what_to_set() -> None:
    text = told([gang(3, Task(1, 2))], None, [Executor(8, 4)], settings=GPUS)
    assert text.startswith("Spark has 4 GPU(s) on 1 executor(s), but 3 nodes need 2 each: 6 are needed.\nHint: ")
    assert "spark.executor.resource.gpu.amount" in text and "spark.cores.max" in text

    text = told([gang(2, Task(1, 1))], Task(1, Fraction(1, 4)), [Executor(8, 2)], settings=TASK_WANTS_GPU)
    assert text.startswith("A feed task needs 0.25 GPU(s) as spark.task.resource.gpu.amount is 0.25")
    assert "Unset spark.task.resource.gpu.amount" in text

    text = told([gang(4, Task(2))], Task(1), [Executor(4), Executor(4)])
    assert text.startswith("Spark has 4 task slot(s) of 2 CPU(s), but 5 are needed: 4 for the nodes, which hold theirs")
    assert "1 to feed them" in text and "10 cores in all" in text

    text = told([gang(3, Task(2))], None, [Executor(3), Executor(3)], spread=True)
    assert text.startswith("spread=True asks for 3 executors of at least 2 CPU(s), one for each node, but Spark has 2.")
    text = told([gang(2, Task(1))], Task(1), [Executor(1), Executor(1)], spread=True)
    assert text.startswith("Spark has 2 task slot(s), but 3 are needed: 2 for the nodes") and "1 to feed" in text

    local = Settings(Manager.LOCAL)
    assert "Use master local[5]" in told([gang(4, Task())], Task(), [Executor(4)], settings=local)
    cluster = Settings(Manager.LOCAL_CLUSTER)
    assert "local-cluster[2,3,1024]" in told([gang(4, Task())], Task(), [Executor(4)], settings=cluster)
