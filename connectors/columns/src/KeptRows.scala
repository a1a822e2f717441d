package org.apache.spark.sql.execution.python.tfspark

import java.io.File
import java.util.concurrent.ConcurrentHashMap

import org.apache.spark.{SparkEnv, TaskContext, TaskKilledException}
import org.apache.spark.sql.catalyst.expressions.UnsafeRow
import org.apache.spark.sql.execution.python.HybridRowQueue
import org.apache.spark.util.Utils

/** Rows of a task that wait for their answers from Python, in Spark's memory, and on its disks if memory is short.
  *
  * It uses the queue of Spark's own Python UDFs. One thread adds rows, another thread removes them.
  */
final class KeptRows private (context: TaskContext, columns: Int) {
  private val rows = if (columns == 0) null
    else HybridRowQueue(context.taskMemoryManager(), new File(Utils.getLocalDir(SparkEnv.get.conf)), columns)
  private val nothing = new UnsafeRow(0)
  private var added = 0L
  private var removed = 0L
  private var closed = false

  def add(row: UnsafeRow): Unit = synchronized {
    // After the task has ended, Spark may still read rows in another thread. A task that is killed is run again without
    // end, so nothing else may look like that.
    if (closed && (context.isCompleted() || context.isInterrupted())) throw new TaskKilledException("the task has ended")
    if (closed) throw new IllegalStateException("a row comes after the last answer")
    if (rows != null) rows.add(row)
    added += 1
  }

  /** Remove and return the row that has waited longest; it is valid until the next call. */
  def remove(): UnsafeRow = synchronized {
    if (removed == added) throw new IllegalStateException(s"Python has answered for more rows than the $added that it was sent")
    removed += 1
    if (rows == null) nothing else rows.remove()
  }

  /** Note that no more answers come, and free the memory; fail if rows still wait. */
  def end(): Unit = synchronized {
    if (removed != added) throw new IllegalStateException(s"Python has answered for $removed of $added rows")
    close()
  }

  private def close(): Unit = synchronized {
    if (!closed) {
      closed = true
      if (rows != null) rows.close()
    }
  }
}

object KeptRows {
  private val all = new ConcurrentHashMap[(Long, String, Int), KeptRows]()

  /** Begin with a partition before its rows are read; a task may do so again, also while it still reads the first time. */
  def begin(context: TaskContext, name: String, partition: Int, columns: Int): KeptRows = {
    val id = (context.taskAttemptId(), name, partition)
    val made = new KeptRows(context, columns)
    all.put(id, made)
    context.addTaskCompletionListener[Unit] { _ =>
      all.remove(id, made)
      made.close()
    }
    made
  }

  /** The rows of the partition that this task has begun with last; they are handed out once. */
  def of(context: TaskContext, name: String, partition: Int): KeptRows = {
    val found = all.remove((context.taskAttemptId(), name, partition))
    if (found == null) throw new IllegalStateException(s"partition $partition of $name is read by something else than its operator")
    found
  }
}
