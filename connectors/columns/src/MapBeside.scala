package tfspark.columns

import org.apache.spark.{Partition, TaskContext}
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{Alias, Attribute, AttributeSet, Expression, JoinedRow, UnsafeProjection}
import org.apache.spark.sql.catalyst.optimizer.ColumnPruning
import org.apache.spark.sql.catalyst.plans.logical.{Filter, LocalRelation, LogicalPlan, Project, UnaryNode}
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.execution.{SparkPlan, UnaryExecNode}
import org.apache.spark.sql.execution.metric.{SQLMetric, SQLMetrics}
import org.apache.spark.sql.execution.python.tfspark.KeptRows

/** Columns of a plan, and beside them the columns that a Python task returns for its rows, in the same order.
  *
  * @param sent the columns that the task gets, in slots
  * @param kept the columns that stay in the JVM; unused ones are not in the output
  * @param answers the output of the task
  * @param task the plan of the task; until it is run, its [[SlotRows]] have a placeholder as their child
  */
case class MapBeside(sent: Seq[Expression], kept: Seq[Attribute], answers: Seq[Attribute], task: LogicalPlan, child: LogicalPlan)
    extends UnaryNode {
  def used: Seq[Attribute] = kept.filter(child.outputSet.contains)

  override def output: Seq[Attribute] = used ++ answers
  // Kept columns too: rules that give columns new ids change what a node refers to, and nothing else.
  override lazy val references: AttributeSet = AttributeSet(sent.flatMap(_.references) ++ used)
  // The task is to run once, so Spark must not copy it, as it would copy a common table expression.
  override lazy val deterministic: Boolean = false
  override def metadataOutput: Seq[Attribute] = Nil
  override def producedAttributes: AttributeSet = AttributeSet(answers)
  override protected def stringArgs: Iterator[Any] = Iterator(sent, kept, answers)
  override protected def withNewChildInternal(newChild: LogicalPlan): MapBeside = copy(child = newChild)
}

object MapBeside {

  /** The plan of the columns at the positions `kept` and the columns of `task`; null if that is not possible.
    *
    * The positions are those of the DataFrame whose rows `task` maps.
    */
  def of(task: LogicalPlan, kept: java.util.List[Integer]): LogicalPlan =
    task.collectFirst { case s: SlotRows => s.child } match {
      case Some(Project(sent, child)) if sent.forall(_.deterministic) =>
        val detached = task.transformUp { case s: SlotRows => s.copy(child = LocalRelation(s.child.output)) }
        val own = (0 until kept.size).map(i => child.output(kept.get(i)))
        // The analyzer removes aliases outside projections.
        val values = sent.map { case a: Alias => a.child; case other => other }
        // New aliases, so that the columns of two joined copies of this plan differ.
        Project(own ++ task.output.map(a => Alias(a, a.name)()), MapBeside(values, own, task.output, detached, child))
      case _ => null
    }
}

/** Removes kept columns that are not used, and removes the task if none of its answers is used. */
object PruneMapBeside extends Rule[LogicalPlan] {
  override def apply(plan: LogicalPlan): LogicalPlan = {
    val changed = plan.transform {
      case p @ Project(_, m: MapBeside) => p.copy(child = pruned(m, p.references))
      case p @ Project(_, f @ Filter(_, m: MapBeside)) => p.copy(child = f.copy(child = pruned(m, p.references ++ f.references)))
    }
    if (changed.fastEquals(plan)) plan else ColumnPruning(changed)
  }

  private def pruned(m: MapBeside, wanted: AttributeSet): LogicalPlan =
    if (!m.answers.exists(wanted.contains)) m.child
    else if (m.used.forall(wanted.contains)) m
    else m.copy(kept = m.used.filter(wanted.contains))
}

/** Rows that are sent to a task: some columns are sent, and some wait in the [[KeptRows]] of this name. */
case class SentRows(name: String, sent: Seq[Expression], output: Seq[Attribute], kept: Seq[Attribute], child: LogicalPlan)
    extends UnaryNode {
  override protected def withNewChildInternal(newChild: LogicalPlan): SentRows = copy(child = newChild)
}

case class SentRowsExec(name: String, sent: Seq[Expression], output: Seq[Attribute], kept: Seq[Attribute], child: SparkPlan)
    extends UnaryExecNode {
  override def producedAttributes: AttributeSet = outputSet
  override protected def stringArgs: Iterator[Any] = Iterator(sent, kept)
  // Plans that differ only in the name give the same rows.
  override protected def doCanonicalize(): SparkPlan = super.doCanonicalize() match {
    case s: SentRowsExec => s.copy(name = "")
    case other => other
  }

  override protected def doExecute(): RDD[InternalRow] = {
    val (name, sent, kept, given) = (this.name, this.sent, this.kept, child.output)
    child.execute().mapPartitionsWithIndex { (partition, rows) =>
      val waiting = KeptRows.of(TaskContext.get(), name, partition)
      val toKeep = UnsafeProjection.create(kept, given)
      val toSend = UnsafeProjection.create(sent, given)
      rows.map { row =>
        waiting.add(toKeep(row))
        toSend(row)
      }
    }
  }

  override protected def withNewChildInternal(newChild: SparkPlan): SentRowsExec = copy(child = newChild)
}

/** The rows that have waited, with the answers of a task beside them. */
case class MapBesideExec(name: String, kept: Seq[Attribute], answers: Seq[Attribute], child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = kept ++ answers
  override def producedAttributes: AttributeSet = outputSet
  override protected def stringArgs: Iterator[Any] = Iterator(kept, answers)
  override protected def doCanonicalize(): SparkPlan = super.doCanonicalize() match {
    case m: MapBesideExec => m.copy(name = "")
    case other => other
  }
  override lazy val metrics: Map[String, SQLMetric] =
    Map("numOutputRows" -> SQLMetrics.createMetric(sparkContext, "number of output rows"))

  override protected def doExecute(): RDD[InternalRow] =
    new RowsBeside(child.execute(), name, kept, answers, longMetric("numOutputRows"))

  override protected def withNewChildInternal(newChild: SparkPlan): MapBesideExec = copy(child = newChild)
}

private final class RowsBeside(
    given: RDD[InternalRow], name: String, kept: Seq[Attribute], answers: Seq[Attribute], rows: SQLMetric)
    extends RDD[InternalRow](given) {
  override protected def getPartitions: Array[Partition] = firstParent[InternalRow].partitions

  override def compute(split: Partition, context: TaskContext): Iterator[InternalRow] = {
    // Do this before making the parent's iterator, which reads rows at once in another thread.
    val waiting = KeptRows.begin(context, name, split.index, kept.length)
    val answered = firstParent[InternalRow].iterator(split, context)
    val joined = new JoinedRow
    val toUnsafe = UnsafeProjection.create(kept ++ answers, kept ++ answers)
    new Iterator[InternalRow] {
      override def hasNext: Boolean = {
        val more = answered.hasNext
        if (!more) waiting.end()
        more
      }
      override def next(): InternalRow = {
        rows += 1
        toUnsafe(joined(waiting.remove(), answered.next()))
      }
    }
  }
}
