package tfspark.columns

import java.util.concurrent.locks.LockSupport

import org.apache.spark.{TaskContext, TaskKilledException}
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{GenericInternalRow, UnsafeProjection, UnsafeRow}
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types.DataType
import org.apache.spark.unsafe.Platform
import org.apache.spark.unsafe.types.UTF8String

/** The rows of a partition as messages in slots: one row for each, which says where the message is.
  *
  * Where no slot is free for a while, the message itself is in the row. So nothing waits for a reader that may wait for
  * this task.
  */
final class SlotIterator(rows: Iterator[InternalRow], types: Array[DataType], context: TaskContext) extends Iterator[InternalRow] {
  import SlotIterator._

  private val columns = new StructWriter(types.map(ColumnWriter.of))
  private val slots = new TaskSlots(SlotPool.get(), context)
  private lazy val toUnsafe = UnsafeProjection.create(types)
  private var waiting: UnsafeRow = null
  private var mostBytes = MostBytes

  override def hasNext: Boolean = waiting != null || rows.hasNext

  override def next(): InternalRow = {
    columns.clear()
    var count = 0
    var bytes = 0L
    var full = false
    while (!full && hasNext) {
      val row = if (waiting != null) waiting else unsafe(rows.next())
      waiting = null
      val size = row.getSizeInBytes
      if (count > 0 && bytes + size > mostBytes) {
        // The row stays as it is until the next one is asked for.
        waiting = row
        full = true
      } else {
        columns.appendFields(row.getBaseObject, row.getBaseOffset)
        count += 1
        bytes += size
      }
    }
    val message = new BatchMessage(count)
    columns.addFieldsTo(message)
    // Columns may be smaller than rows, as those of numbers of 4 bytes are, or larger; the next rows may be unlike these.
    mostBytes = (Math.min(bytes.toDouble / message.size, 2.0) * MostBytes).toLong
    slots.write(message)
  }

  private def unsafe(row: InternalRow): UnsafeRow = row match {
    case r: UnsafeRow => r
    case other => toUnsafe(other)
  }
}

object SlotIterator {
  /** Bytes that messages have about, and at most so many as far as rows are alike. */
  private val MostBytes = SlotPool.SlotBytes - (512L << 10)
}

/** The slots of one task. */
private final class TaskSlots(pool: Option[SlotPool], context: TaskContext) {
  import TaskSlots._

  /** What follows the place of a message. Spark sends nothing to Python before it has filled its buffer. */
  private val filler = new Array[Byte](Math.min(SQLConf.get.pandasUDFBufferSize, LargestFiller))

  private val slots = new Array[Int](InHand)
  private var count = 0
  private var ended = false

  context.addTaskCompletionListener[Unit](_ => end())

  private def end(): Unit = synchronized {
    ended = true
    (0 until count).foreach(i => pool.get.giveBack(slots(i)))
  }

  /** Write a message and return the row that leads to it. */
  def write(message: BatchMessage): InternalRow = {
    val slot = if (message.size <= SlotPool.SlotBytes) free() else -1
    if (slot < 0) inline(message) else synchronized {
      // Spark may read on in another thread after the task has ended.
      check()
      val ticket = pool.get.nextTicket()
      message.writeTo(null, pool.get.addressOf(slot))
      pool.get.hold(slot, ticket)
      new GenericInternalRow(Array[Any](
        UTF8String.fromString(pool.get.path), pool.get.key, pool.get.wordOf(slot), ticket, pool.get.startOf(slot), message.size, filler))
    }
  }

  private def inline(message: BatchMessage): InternalRow = {
    val bytes = new Array[Byte](Math.toIntExact(message.size))
    message.writeTo(bytes, Platform.BYTE_ARRAY_OFFSET)
    new GenericInternalRow(Array[Any](null, null, 0L, 0L, 0L, message.size, bytes))
  }

  private def check(): Unit = if (ended || context.isInterrupted()) throw new TaskKilledException("the task has ended")

  private def free(): Int = {
    val until = System.nanoTime() + PatienceNanos
    var found = lookForFree()
    // A word in memory wakes nobody up.
    while (found < 0 && count > 0 && System.nanoTime() < until) {
      LockSupport.parkNanos(50000L)
      found = lookForFree()
    }
    found
  }

  private def lookForFree(): Int = synchronized {
    check()
    val mine = (0 until count).find(i => pool.get.isFree(slots(i))).map(slots(_)).getOrElse(-1)
    if (mine >= 0 || count == InHand || pool.isEmpty) mine
    else {
      val more = pool.get.take()
      if (more >= 0) {
        slots(count) = more
        count += 1
      }
      more
    }
  }
}

private object TaskSlots {
  /** Slots of a task: one is written while others are on their way or read. */
  private val InHand = 6

  /** With a larger buffer slots come late, and some messages through the socket. */
  private val LargestFiller = 1 << 20

  /** How long a task waits for its readers to let go of a slot. */
  private val PatienceNanos = 50L * 1000 * 1000
}
