package tfspark.columns

import org.apache.spark.TaskContext
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.types._
import org.apache.spark.sql.vectorized.ColumnarBatch

/** Writes the batches of column vectors of a partition as messages into slots, like [[SlotIterator]] the rows.
  *
  * So the rows of a scan need not be assembled first. The scan may use the vectors of a batch again for the next one.
  *
  * @param close whether to close each batch when it has been copied
  */
final class VectorIterator(batches: Iterator[ColumnarBatch], types: Array[DataType], close: Boolean, context: TaskContext)
    extends Iterator[InternalRow] {
  private val columns = new StructWriter(types.map(ColumnWriter.of))
  private val slots = new TaskSlots(SlotPool.get(), context)
  private val mostRows =
    Math.max(1L, (SlotIterator.MostBytes - types.length * VectorIterator.Overhead) / types.map(VectorIterator.width(_).get.toLong).sum)
  private var batch: ColumnarBatch = null
  private var at = 0

  override def hasNext: Boolean = {
    while ((batch == null || at == batch.numRows) && batches.hasNext) {
      if (close && batch != null) batch.close()
      batch = batches.next()
      at = 0
    }
    batch != null && at < batch.numRows
  }

  override def next(): InternalRow = {
    columns.clear()
    var count = 0
    while (count < mostRows && hasNext) {
      // When a task has ended, its vectors are freed, and Spark may still read rows in another thread.
      slots.check()
      val rows = Math.min(mostRows - count, batch.numRows - at).toInt
      columns.appendVectors(batch, at, rows)
      at += rows
      count += rows
    }
    val message = new BatchMessage(count)
    columns.addFieldsTo(message)
    slots.write(message)
  }
}

object VectorIterator {
  /** Bytes of a column in a message, in addition to its values: its metadata, and padding of its buffers. */
  private val Overhead = 192L

  /** Whether all types have a fixed size, so that the number of rows that fit a slot is known. */
  def isSupported(types: Seq[DataType]): Boolean = types.forall(width(_).nonEmpty)

  /** Bytes of a value, with its bit for null. */
  private def width(t: DataType): Option[Int] = t match {
    case BooleanType | ByteType => Some(2)
    case ShortType => Some(3)
    case IntegerType | DateType | FloatType => Some(5)
    case LongType | DoubleType | TimestampType | TimestampNTZType => Some(9)
    case _ => None
  }
}
