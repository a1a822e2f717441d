"""Training in this node: with the engine, with a strategy of TensorFlow, or alone.

`NodeContext` gets its strategy and ``fit`` from a `Trainer`, which imports TensorFlow on first use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError
from tfspark.spec import NodeId, Role, StrategyName, is_chief, training_nodes

if TYPE_CHECKING:
    import tensorflow as tf

    from tfspark.node.keras.engine import Engine
    from tfspark.node.step_clock import StepClock

logger = logging.getLogger(__name__)


def uses_engine(strategy: str, own: bool, node: NodeId) -> bool:
    """Return whether a node trains with the engine."""
    return StrategyName(strategy) is StrategyName.AUTO and not own and node.role != Role.EVALUATOR.value


def sets_up_collectives(strategy: str, own: bool, node: NodeId, nodes: Sequence[NodeId]) -> bool:
    """Return whether a node needs TensorFlow's collectives, which must be set up before any other operation."""
    return uses_engine(strategy, own, node) and len(training_nodes(nodes)) > 1


def warn_of_idle_gpus(gpus: Sequence[str]) -> None:
    """Warn if the node has several GPUs: the engine uses one GPU per process, so the others are idle."""
    if len(gpus) > 1:
        logger.warning(
            "This node has %d GPUs, but ctx.fit trains on one of them. Run one worker per GPU with gpus_per_node=1, or "
            "pass strategy='multi_worker_mirrored'.",
            len(gpus),
        )


class Trainer:
    """Training in this process.

    Parameters
    ----------
    node, nodes
        This node, and all nodes of its cluster.
    strategy
        A value of `StrategyName`.
    make_strategy
        A function that makes the user's own strategy, which replaces `strategy`; ``None`` if there is none.
    reads_fed_rows
        A function that returns whether fed rows are being read.
    clock
        Measures the steps.
    """

    def __init__(
        self,
        node: NodeId,
        nodes: Sequence[NodeId],
        strategy: str,
        make_strategy: Callable[[], tf.distribute.Strategy] | None,
        reads_fed_rows: Callable[[], bool],
        clock: StepClock,
    ) -> None:
        self._node, self._nodes = node, nodes
        self._name = StrategyName(strategy)
        self._make = make_strategy
        self._reads_fed_rows = reads_fed_rows
        self._clock = clock
        self._engine: Engine | None = None
        self._strategy: tf.distribute.Strategy | None = None
        self._prepared = False
        self._warned = False

    @property
    def workers(self) -> int:
        """Number of nodes that train together."""
        return len(training_nodes(self._nodes))

    @property
    def is_alone(self) -> bool:
        """Whether each node trains its own model."""
        return self._name is StrategyName.NONE and self._node.role != Role.EVALUATOR.value

    def prepare(self) -> Engine | None:
        """Prepare Keras in this process for training with the other nodes; return the engine if it is used."""
        if not self._prepared:
            self._prepared = True
            from tfspark.node.keras.fit import guard

            if uses_engine(self._name.value, self._make is not None, self._node) or self._name is StrategyName.NONE:
                self._engine = self._new_engine()
            writes = self.is_alone or is_chief(self._node, self._nodes)
            guard(writes, self._engine)
        return self._engine

    def _new_engine(self) -> Engine:
        from tfspark.node.keras.collectives import Group
        from tfspark.node.keras.engine import Engine

        if self._name is StrategyName.NONE or self._node.role == Role.EVALUATOR.value:
            return Engine(Group(1, 0), self._reads_fed_rows, self._clock)
        members = training_nodes(self._nodes)
        return Engine(Group(len(members), members.index(self._node), self._clock), self._reads_fed_rows, self._clock)

    def strategy(self) -> tf.distribute.Strategy:
        """Return the strategy, the same object at every call."""
        if self._strategy is None:
            self._strategy = self._make_strategy()
        return self._strategy

    def _make_strategy(self) -> tf.distribute.Strategy:
        import tensorflow as tf

        engine = self.prepare()
        if engine is not None and not self.is_alone and self._node.role != Role.EVALUATOR.value:
            from tfspark.node.keras.strategy import LocalStrategy

            return LocalStrategy(engine)
        if self.is_alone or self._node.role == Role.EVALUATOR.value:
            return tf.distribute.get_strategy()
        if self._name is StrategyName.PARAMETER_SERVER:
            if self._make is not None:
                return self._make()
            return tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
        from tfspark.node.keras.multi_worker_mirrored import mend

        mend()
        if self._make is not None:
            return self._make()
        return tf.distribute.MultiWorkerMirroredStrategy() if self.workers > 1 else tf.distribute.get_strategy()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """Return an iterable of batches for a training loop; at each step, every worker has one batch."""
        engine = self.prepare()
        if engine is not None:
            return engine.distribute(dataset)
        strategy = self.strategy()
        if self.workers == 1 or not hasattr(dataset, "element_spec"):
            return dataset
        return strategy.distribute_datasets_from_function(lambda _: dataset)

    def synchronize(self, *objects: Any) -> None:
        """Synchronize models and optimizers with those of the other workers."""
        engine = self.prepare()
        if engine is None:
            raise ConfigurationError(
                f"ctx.synchronize() needs strategy='auto'; this cluster has {self._described}.",
                hint="Make models and optimizers inside ctx.strategy().scope() instead.",
            )
        engine.synchronize(*objects)

    @property
    def _described(self) -> str:
        return "a strategy function" if self._make is not None else f"strategy={self._name.value!r}"

    def average_loss(self, losses: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return the mean loss of a batch, scaled as the strategy requires."""
        from tfspark.node.keras.multi_worker_mirrored import average_loss

        return average_loss(losses, sample_weight, over_replicas=self.prepare() is None)

    def fit(self, model: Any, dataset: tf.data.Dataset, validation_data: Any, **fit_args: Any) -> Any:
        """Run ``model.fit`` on the rows of this worker and return Keras' ``History``."""
        engine = self.prepare()
        if engine is not None:
            engine.synchronize(model)
            return model.fit(dataset, validation_data=validation_data, **fit_args)
        if not self._warned and self.workers > 1:
            self._warned = True
            logger.warning(
                "With %s, TensorFlow weights each worker's batch equally, so rows of smaller batches count more. "
                "strategy='auto' weights each row equally.",
                self._described,
            )
        from tfspark.node.keras.fit import of_unknown_length

        with of_unknown_length():
            return model.fit(
                self.distribute(dataset),
                validation_data=None if validation_data is None else self.distribute(validation_data),
                **fit_args,
            )

    def evaluate(self, model: Any, dataset: tf.data.Dataset) -> dict[str, Any]:
        """Run ``model.evaluate`` on the rows of each worker and return the metrics over all rows."""
        from tfspark.node.keras.fit import as_numbers, evaluate, of_unknown_length

        engine = self.prepare()
        if engine is not None:
            return evaluate(engine, model, dataset)
        with of_unknown_length():
            return as_numbers(model.evaluate(self.distribute(dataset), verbose=0, return_dict=True))
