package tfspark.columns

import java.util.UUID

import scala.reflect.ClassTag

import org.apache.spark.{Partition, TaskContext}
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.{ExperimentalMethods, SparkSessionExtensions}
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{Attribute, AttributeReference, AttributeSet}
import org.apache.spark.sql.catalyst.plans.logical.{LogicalPlan, UnaryNode}
import org.apache.spark.sql.execution.{ColumnarToRowExec, FileSourceScanExec, InputAdapter, SparkPlan, SparkStrategy, UnaryExecNode, WholeStageCodegenExec}
import org.apache.spark.sql.execution.adaptive.QueryStageExec
import org.apache.spark.sql.execution.columnar.{DefaultCachedBatchSerializer, InMemoryTableScanExec}
import org.apache.spark.sql.internal.{ReadOnlySQLConf, SQLConf}
import org.apache.spark.sql.tfspark.Planning
import org.apache.spark.sql.types._

/** All columns of a plan in slots of shared memory; the rows say where they are (`SlotRows.schema`). */
case class SlotRows(output: Seq[Attribute], child: LogicalPlan) extends UnaryNode {
  // The optimizer must not remove any column as unused.
  override lazy val references: AttributeSet = child.outputSet
  override def metadataOutput: Seq[Attribute] = Nil
  override def producedAttributes: AttributeSet = outputSet
  override protected def withNewChildInternal(newChild: LogicalPlan): SlotRows = copy(child = newChild)
}

object SlotRows {
  val schema: StructType = new StructType()
    .add("path", StringType)
    .add("key", BinaryType)
    .add("word", LongType, nullable = false)
    .add("ticket", LongType, nullable = false)
    .add("start", LongType, nullable = false)
    .add("nbytes", LongType, nullable = false)
    .add("message", BinaryType)

  /** Whether there are columns and all have types that can be written. */
  def isSupported(schema: StructType): Boolean = schema.nonEmpty && schema.forall(f => ColumnWriter.isSupported(f.dataType))

  /** The plan of the slots with the columns of another plan. */
  def of(child: LogicalPlan): LogicalPlan =
    SlotRows(schema.map(f => AttributeReference(f.name, f.dataType, f.nullable)()), child)

  /** Add the strategy and the optimization for `SlotRows` and `MapBeside` to every session of an application. */
  def inject(extensions: SparkSessionExtensions): Unit = {
    extensions.injectPlannerStrategy(_ => SlotStrategy)
    extensions.injectOptimizerRule(_ => PruneMapBeside)
  }

  /** Add them to one session, whose application may have been started without `inject`. */
  def enable(methods: ExperimentalMethods): Unit = methods.synchronized {
    if (!methods.extraStrategies.contains(SlotStrategy)) methods.extraStrategies = methods.extraStrategies :+ SlotStrategy
    if (!methods.extraOptimizations.contains(PruneMapBeside)) {
      methods.extraOptimizations = methods.extraOptimizations :+ PruneMapBeside
    }
  }
}

object SlotStrategy extends SparkStrategy {
  override def apply(plan: LogicalPlan): Seq[SparkPlan] = plan match {
    case SlotRows(output, child) => Seq(SlotRowsExec(output, planLater(child)))
    case SentRows(name, sent, output, kept, child) => Seq(SentRowsExec(name, sent, output, kept, planLater(child)))
    case m @ MapBeside(sent, _, answers, task, child) =>
      // Each execution has a unique name, by which both of its ends find the rows that wait.
      val name = UUID.randomUUID().toString
      val run = task.transformUp { case s: SlotRows => s.copy(child = SentRows(name, sent, s.child.output, m.used, child)) }
      Seq(MapBesideExec(name, m.used, answers, planLater(run)))
    // Otherwise Spark would wait for thousands of rows before it sends any row to Python.
    case reader: UnaryNode if reader.child.isInstanceOf[SlotRows] && reader.nodeName.endsWith("MapInArrow") =>
      Planning.operators(reader, planLater(reader.child)).map(RowByRowExec(_))
    case _ => Nil
  }
}

case class SlotRowsExec(output: Seq[Attribute], child: SparkPlan, again: Boolean = false) extends UnaryExecNode {
  override def producedAttributes: AttributeSet = outputSet
  override protected def stringArgs: Iterator[Any] = Iterator(output, if (scan.isEmpty) "of rows" else "of column vectors")

  override protected def doExecute(): RDD[InternalRow] = {
    val types = child.output.map(_.dataType).toArray
    // The operators that compute the rows must not use the row-by-row setting.
    scan match {
      case Some(operator) =>
        // A scan of files uses its vectors again. Those of cached data are new for each batch, and Spark keeps them.
        val close = !operator.isInstanceOf[FileSourceScanExec]
        new TaskSettings(operator.executeColumnar(), rowByRow = false)
          .mapPartitions(batches => new VectorIterator(batches, types, close, TaskContext.get()))
      case None =>
        new TaskSettings(child.execute(), rowByRow = false)
          .mapPartitions(rows => new SlotIterator(rows, types, TaskContext.get()))
    }
  }

  /** The scan that has all columns as column vectors of Spark's own classes; those of other data sources may differ. */
  private def scan: Option[SparkPlan] = {
    def isScan(plan: SparkPlan): Boolean = plan match {
      case stage: QueryStageExec => isScan(stage.plan)
      case cached: InMemoryTableScanExec =>
        cached.supportsColumnar && cached.relation.cacheBuilder.serializer.isInstanceOf[DefaultCachedBatchSerializer]
      case files: FileSourceScanExec => files.supportsColumnar
      case _ => false
    }
    def found(plan: SparkPlan): Option[SparkPlan] = plan match {
      case WholeStageCodegenExec(inner) => found(inner)
      case ColumnarToRowExec(inner) => found(inner)
      case InputAdapter(inner) => found(inner)
      case other => Some(other).filter(isScan)
    }
    if (VectorIterator.isSupported(child.output.map(_.dataType))) found(child) else None
  }

  override protected def withNewChildInternal(newChild: SparkPlan): SlotRowsExec = copy(child = newChild)
}

/** Rows, or batches of rows, whose operators run in tasks with their own settings, as far as they read settings when a
  * partition begins.
  */
private final class TaskSettings[T: ClassTag](rows: RDD[T], rowByRow: Boolean) extends RDD[T](rows) {
  override protected def getPartitions: Array[Partition] = firstParent[T].partitions

  override def compute(split: Partition, context: TaskContext): Iterator[T] = {
    val own = new ReadOnlySQLConf(context)
    SQLConf.withExistingConf(if (rowByRow) changed(own) else own)(firstParent[T].iterator(split, context))
  }

  private def changed(own: SQLConf): SQLConf = {
    val settings = new SQLConf
    own.getAllConfs.foreach { case (name, value) => if (name.startsWith("spark.sql.")) settings.setConfString(name, value) }
    settings.setConf(SQLConf.ARROW_EXECUTION_MAX_RECORDS_PER_BATCH, 1)
    settings
  }
}

/** An operator on slots that gets each slot from Spark as soon as it is full. */
case class RowByRowExec(child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = child.output

  override protected def doExecute(): RDD[InternalRow] = {
    // Spark makes a new operator only if its children are not equal to the old ones.
    def slots = child.children.map {
      case s: SlotRowsExec => s.copy(again = true)
      case other => other
    }
    // Spark 3.5 reads the setting here; later versions read it in the task. The thread may have no active session.
    new TaskSettings(Planning.rowByRow(child)(child.withNewChildren(slots)).execute(), rowByRow = true)
  }

  override protected def withNewChildInternal(newChild: SparkPlan): RowByRowExec = copy(child = newChild)
}
