package tfspark.tfrecord

import java.io.Closeable

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.execution.vectorized.{ColumnVectorUtils, ConstantColumnVector, OnHeapColumnVector, WritableColumnVector}
import org.apache.spark.sql.types.StructType
import org.apache.spark.sql.vectorized.{ColumnVector, ColumnarBatch}

/**
 * Reads one file as batches of columns; the columns are reused from batch to batch.
 *
 * An error waits until the rows before it have been handed out: where Spark ignores corrupt files, these count.
 *
 * @param required   the columns to read; where there are none, only the framing is read
 * @param partition  the columns that the directories' names give, with their values
 */
final class BatchReader(
    records: RecordReader,
    options: TFRecordOptions,
    required: StructType,
    partition: StructType,
    partitionValues: InternalRow)
    extends Iterator[ColumnarBatch]
    with Closeable {
  import BatchReader._

  private val columns: Array[WritableColumnVector] =
    OnHeapColumnVector.allocateColumns(BatchRows, required).map(c => c: WritableColumnVector)
  private val decoder = RecordDecoder.of(options.recordType, required, columns)
  private val batch = new ColumnarBatch((columns ++ constants()).map(c => c: ColumnVector))
  private var failure: Throwable = null
  private var filled = 0
  private var ended = false

  private def constants(): Array[ConstantColumnVector] = partition.fields.zipWithIndex.map { case (f, i) =>
    val vector = new ConstantColumnVector(BatchRows, f.dataType)
    ColumnVectorUtils.populate(vector, partitionValues, i)
    vector
  }

  override def hasNext: Boolean = {
    if (filled == 0 && !ended) {
      if (failure != null) throw failure
      fill()
      if (filled == 0 && failure != null) throw failure
      // A task may read thousands of files: none of them holds on to anything once it has been read.
      if (filled == 0) close()
    }
    filled > 0
  }

  override def next(): ColumnarBatch = {
    if (!hasNext) throw new NoSuchElementException
    batch.setNumRows(filled)
    filled = 0
    batch
  }

  private def fill(): Unit =
    try {
      if (columns.isEmpty) count() else decode()
    } catch {
      case e: RecordFault =>
        failure =
          try records.fail(e.getMessage)
          catch { case named: TFRecordException => named }
      case e: Exception => failure = e
    }

  private def count(): Unit = {
    while (filled < BatchRows) {
      if (!records.skip()) {
        ended = true
        return
      }
      filled += 1
    }
  }

  private def decode(): Unit = {
    columns.foreach(_.reset())
    decoder.reset()
    var bytes = 0L
    while (filled < BatchRows && bytes < BatchBytes) {
      if (!records.next()) {
        ended = true
        return
      }
      decoder.decode(records.bytes, records.start, records.end, filled)
      bytes += records.end - records.start
      filled += 1
    }
  }

  override def close(): Unit = {
    batch.close()
    records.close()
  }
}

object BatchReader {
  val BatchRows = 4096

  /** Bytes of records per batch, about; wide rows make batches of fewer rows. */
  val BatchBytes: Long = 8L << 20
}
