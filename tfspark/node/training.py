"""How this node trains with the others: by the engine, by a strategy of TensorFlow's, or alone.

`Trainer` is what `NodeContext` asks for its strategy and for `fit`; it imports TensorFlow only when asked.
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
    from tfspark.transport.step_clock import StepClock

logger = logging.getLogger(__name__)


def uses_engine(strategy: str, own: bool, node: NodeId) -> bool:
    """Whether a node trains by the engine."""
    return StrategyName(strategy) is StrategyName.AUTO and not own and node.role != Role.EVALUATOR.value


def sets_up_collectives(strategy: str, own: bool, node: NodeId, nodes: Sequence[NodeId]) -> bool:
    """Whether a node needs TensorFlow's collectives, which are set up before anything else runs."""
    return uses_engine(strategy, own, node) and len(training_nodes(nodes)) > 1


def warn_of_idle_gpus(gpus: Sequence[str]) -> None:
    """Say that the engine, which trains with one process a GPU, leaves GPUs of this node idle."""
    if len(gpus) > 1:
        logger.warning(
            "This node has %d GPUs, and ctx.fit trains on one of them: run one worker for each GPU with "
            "gpus_per_node=1, or pass strategy='multi_worker_mirrored'.",
            len(gpus),
        )


class Trainer:
    """Trains in this process.

    Parameters
    ----------
    node, nodes
        This node, and all of its cluster.
    strategy
        Value of a `StrategyName`.
    make_strategy
        Makes the user's own strategy instead.
    reads_fed_rows
        Tells whether fed rows are being read.
    clock
        Told of steps.
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
        """Whether each node trains a model of its own."""
        return self._name is StrategyName.NONE and self._node.role != Role.EVALUATOR.value

    def prepare(self) -> Engine | None:
        """Have Keras in this process train with the other nodes; returns the engine, if it is used."""
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
        """Return what a loop iterates to take a batch of every worker at each step."""
        engine = self.prepare()
        if engine is not None:
            return engine.distribute(dataset)
        strategy = self.strategy()
        if self.workers == 1 or not hasattr(dataset, "element_spec"):
            return dataset
        return strategy.distribute_datasets_from_function(lambda _: dataset)

    def synchronize(self, *objects: Any) -> None:
        """Have models and optimizers train together with those of the other workers."""
        engine = self.prepare()
        if engine is None:
            raise ConfigurationError(
                f"ctx.synchronize() is for strategy='auto', not for {self._described}.",
                hint="Make models and optimizers within ctx.strategy().scope() instead.",
            )
        engine.synchronize(*objects)

    @property
    def _described(self) -> str:
        return "a strategy of your own" if self._make is not None else f"strategy={self._name.value!r}"

    def average_loss(self, losses: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return the mean loss of a batch as the strategy wants it."""
        from tfspark.node.keras.multi_worker_mirrored import average_loss

        return average_loss(losses, sample_weight, over_replicas=self.prepare() is None)

    def fit(self, model: Any, dataset: tf.data.Dataset, validation_data: Any, **fit_args: Any) -> Any:
        """Run ``model.fit`` on this worker's rows and return Keras' ``History``."""
        engine = self.prepare()
        if engine is not None:
            engine.synchronize(model)
            return model.fit(dataset, validation_data=validation_data, **fit_args)
        if not self._warned and self.workers > 1:
            self._warned = True
            logger.warning(
                "%s trains as TensorFlow does: where workers' batches differ in rows, rows do not weigh the same. "
                "strategy='auto' has no such limit.",
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
        """Run ``model.evaluate`` on each worker's rows and return the metrics over those of all."""
        from tfspark.node.keras.fit import as_numbers, evaluate, of_unknown_length

        engine = self.prepare()
        if engine is not None:
            return evaluate(engine, model, dataset)
        with of_unknown_length():
            return as_numbers(model.evaluate(self.distribute(dataset), verbose=0, return_dict=True))
