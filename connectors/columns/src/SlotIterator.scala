package tfspark.columns

import java.util.concurrent.locks.LockSupport

import org.apache.spark.{TaskContext, TaskKilledException}
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{GenericInternalRow, UnsafeProjection, UnsafeRow}
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types.DataType
import org.apache.spark.unsafe.Platform
import org.apache.spark.unsafe.types.UTF8String

/** Writes the rows of a partition as messages into slots, and returns one row per message, which says where it is.
  *
  * If no slot becomes free for a while, the row contains the message itself. So this task never waits forever for a
  * reader that itself waits for this task.
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
        // The row does not change until the next one is requested.
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
    // Columns may be smaller than rows, such as columns of 4-byte numbers, or larger; the next rows may differ.
    mostBytes = (Math.min(bytes.toDouble / message.size, 2.0) * MostBytes).toLong
    slots.write(message)
  }

  private def unsafe(row: InternalRow): UnsafeRow = row match {
    case r: UnsafeRow => r
    case other => toUnsafe(other)
  }
}

object SlotIterator {
  /** Approximate bytes of a message; messages do not exceed it as long as rows are alike. */
  val MostBytes: Long = SlotPool.SlotBytes - (512L << 10)
}

/** The slots of one task. */
private final class TaskSlots(pool: Option[SlotPool], context: TaskContext) {
  import TaskSlots._

  /** Padding in a row with the place of a message: Spark sends nothing to Python before its buffer is full. */
  private val filler = new Array[Byte](Math.min(SQLConf.get.pandasUDFBufferSize, LargestFiller))

  private val slots = new Array[Int](InHand)
  private var count = 0
  private var ended = false

  context.addTaskCompletionListener[Unit](_ => end())

  private def end(): Unit = synchronized {
    ended = true
    (0 until count).foreach(i => pool.get.giveBack(slots(i)))
  }

  /** Write a message and return the row that says where it is. */
  def write(message: BatchMessage): InternalRow = {
    val slot = if (message.size <= SlotPool.SlotBytes) free() else -1
    if (slot < 0) inline(message) else synchronized {
      // After the task has ended, Spark may still read rows in another thread.
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

  /** Fail if the task has ended. */
  def check(): Unit = if (ended || context.isInterrupted()) throw new TaskKilledException("the task has ended")

  private def free(): Int = {
    val until = System.nanoTime() + PatienceNanos
    var found = lookForFree()
    // A change of a word in memory does not wake a thread, so look again every 50 microseconds.
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
  /** Most slots of a task: one is written while the others are sent or read. */
  private val InHand = 6

  /** Most bytes of padding; if Spark's buffer is larger, slots arrive late, and some messages go through the socket. */
  private val LargestFiller = 1 << 20

  /** Nanoseconds that a task waits for its readers to release a slot. */
  private val PatienceNanos = 50L * 1000 * 1000
}
