package org.apache.spark.scheduler.tfspark

import java.util.{Collections, WeakHashMap}

import org.apache.spark.{ExceptionFailure, SparkContext}
import org.apache.spark.scheduler.{SparkListener, SparkListenerTaskEnd, TaskSchedulerImpl}

/** Fails a job at the first `SchemaError` of a Python task: the same rows raise the same error in each attempt. */
object SchemaErrors {
  private val Raised = "\ntfspark.errors.SchemaError: "
  private val watched = Collections.newSetFromMap(new WeakHashMap[SparkContext, java.lang.Boolean])

  /** Watches the tasks of an application from now on; does nothing if they are watched already. */
  def watch(context: SparkContext): Unit = synchronized {
    if (watched.add(context)) context.addSparkListener(new Watcher(context))
  }

  private final class Watcher(context: SparkContext) extends SparkListener {
    override def onTaskEnd(end: SparkListenerTaskEnd): Unit = (end.reason, context.taskScheduler) match {
      case (e: ExceptionFailure, scheduler: TaskSchedulerImpl) if e.description.contains(Raised) =>
        val task = s"Task ${end.taskInfo.index} in stage ${end.stageId}.${end.stageAttemptId}"
        val lost = s"Lost task (TID ${end.taskInfo.taskId}) (${end.taskInfo.host} executor ${end.taskInfo.executorId})"
        // With the cause, Python gets the same exception as after the last attempt.
        scheduler
          .taskSetManagerForAttempt(end.stageId, end.stageAttemptId)
          .foreach(_.abort(s"$task failed with an error that each attempt would raise. $lost: ${e.toErrorString}", e.exception))
      case _ => ()
    }
  }
}
