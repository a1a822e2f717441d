package tfspark.columns

import java.util.concurrent.ConcurrentHashMap

import org.apache.spark.{ExceptionFailure, SparkContext}
import org.apache.spark.scheduler._

/** Ends a stage with [[RowsBeside]] at the first task that cannot take its rows.
  *
  * Spark runs a failed task again, by default three times. Rows that do not fit a model fail each time.
  */
final class BadRows private (context: SparkContext) extends SparkListener {
  import BadRows._

  private val stages = ConcurrentHashMap.newKeySet[Int]()

  override def onStageSubmitted(event: SparkListenerStageSubmitted): Unit =
    if (event.stageInfo.rddInfos.exists(_.name == RowsBeside.Name)) stages.add(event.stageInfo.stageId)

  override def onStageCompleted(event: SparkListenerStageCompleted): Unit = stages.remove(event.stageInfo.stageId)

  override def onTaskEnd(event: SparkListenerTaskEnd): Unit = event.reason match {
    case failure: ExceptionFailure if stages.contains(event.stageId) =>
      val at = failure.description.indexOf(Error)
      if (at >= 0) context.cancelStage(event.stageId, failure.description.substring(at))
    case _ =>
  }
}

object BadRows {
  /** How Python names the error in a traceback. */
  private val Error = "tfspark.errors.SchemaError: "

  private val watched = ConcurrentHashMap.newKeySet[String]()

  /** Watch the stages of an application, once. */
  def watch(context: SparkContext): Unit =
    if (watched.add(context.applicationId)) context.addSparkListener(new BadRows(context))
}
