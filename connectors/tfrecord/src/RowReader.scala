package tfspark.tfrecord

import java.io.Closeable

import org.apache.spark.TaskContext
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{UnsafeProjection, UnsafeRow}
import org.apache.spark.sql.catalyst.expressions.codegen.{GenerateUnsafeRowJoiner, UnsafeRowWriter}
import org.apache.spark.sql.types.{BinaryType, StructType}

/**
 * Reads a file, or a part of one, as rows in Spark's own binary format; the row is reused, as everywhere in Spark.
 *
 * Records are decoded directly into these rows: Spark would have to convert columnar batches back to rows for nearly
 * every use.
 *
 * @param data          the columns of the files
 * @param required      the columns to read; if no column has to be decoded, only the framing is read
 * @param caseSensitive whether names that differ only in case are different names
 * @param atEnd         called when all records have been read
 */
final class RowReader(
    records: RecordReader,
    options: TFRecordOptions,
    corruptColumn: String,
    data: StructType,
    required: StructType,
    partition: StructType,
    partitionValues: InternalRow,
    caseSensitive: Boolean,
    atEnd: () => Unit)
    extends Iterator[InternalRow]
    with Closeable {
  private val row = new UnsafeRowWriter(required.length)
  private val corruptOrdinal = required.fieldNames.indexOf(corruptColumn)
  private val decoder = decoderOf(required, row)

  // If malformed records are tolerated, the requested columns must not decide which records are malformed.
  private val unasked =
    StructType(if (options.tolerant) data.filterNot(f => required.fieldNames.contains(f.name)) else Nil)
  private val unaskedRow = new UnsafeRowWriter(unasked.length)
  private val unaskedDecoder = decoderOf(unasked, unaskedRow)
  private val framingOnly = required.isEmpty && unasked.isEmpty

  private val withPartition: UnsafeRow => UnsafeRow =
    if (partition.isEmpty) identity
    else {
      val joiner = GenerateUnsafeRowJoiner.create(required, partition)
      val values = UnsafeProjection.create(partition)(partitionValues).copy()
      joiner.join(_, values)
    }
  private val emptyRow = {
    val none = new UnsafeRowWriter(0)
    none.reset()
    if (required.isEmpty) withPartition(none.getRow).copy() else null
  }

  private var ready = false
  private var ended = false
  private var rows = 0L
  private var largest = 0

  private def decoderOf(schema: StructType, row: UnsafeRowWriter): RecordDecoder =
    RecordDecoder.of(options, RecordDecoder.columnsOf(schema).filterNot(_.name == corruptColumn), row, caseSensitive)

  override def hasNext: Boolean = {
    if (!ready && !ended) {
      ready = if (framingOnly) records.skip() else advance()
      if (!ready) {
        ended = true
        atEnd()
        if (!framingOnly) checkNames()
        // A task may read thousands of files, so each one frees its resources when it has been read.
        close()
      }
    }
    ready
  }

  override def next(): InternalRow = {
    if (!hasNext) throw new NoSuchElementException
    ready = false
    if (emptyRow != null) emptyRow else withPartition(row.getRow)
  }

  private def advance(): Boolean = {
    while (records.next()) {
      rows += 1
      largest = math.max(largest, records.end - records.start)
      if (!options.tolerant) {
        try decode(decoder, row)
        catch { case e: RecordFault => records.fail(e.getMessage) }
        if (corruptOrdinal >= 0) row.setNullAt(corruptOrdinal)
        return true
      }
      val fault = firstFault()
      if (fault == null || options.mode == "permissive") {
        if (corruptOrdinal >= 0) {
          if (fault == null) row.setNullAt(corruptOrdinal)
          else row.write(corruptOrdinal, records.bytes, records.start, records.end - records.start)
        }
        return true
      }
    }
    false
  }

  private def decode(decoder: RecordDecoder, row: UnsafeRowWriter): String = {
    row.reset()
    row.zeroOutNullBytes()
    decoder.decode(records.bytes, records.start, records.end)
  }

  /** Decodes the record as far as possible; returns what is wrong with it, or null. */
  private def firstFault(): String = {
    val fault =
      if (!records.intact) "the data does not match its checksum"
      else
        try {
          val here = decode(decoder, row)
          val elsewhere = if (unasked.isEmpty) null else decode(unaskedDecoder, unaskedRow)
          if (here != null) here else elsewhere
        } catch { case e: RecordFault => clear(e.getMessage) }
    if (!records.intact) clear(fault) else fault
  }

  private def clear(fault: String): String = {
    row.reset()
    row.zeroOutNullBytes()
    required.indices.filter(_ != corruptOrdinal).foreach(row.setNullAt)
    fault
  }

  /** Checks the schema against the names in the records, after all records have been read. */
  private def checkNames(): Unit = {
    val tables = decoder.tables ++ unaskedDecoder.tables
    if (largest > RowReader.EmptyBytes && tables.nonEmpty && !tables.exists(_.sawValue)) {
      val what = RecordType.withoutFeature(rows, options.recordType)
      if (!options.tolerant) throw Errors.of(s"${records.name}: $what")
      RowReader.warnOnce(records.name, what)
    }
    for ((column, seen) <- NameTable.nearMisses(tables))
      RowReader.warnOnce(
        records.name,
        s"column '$column' is null: the records have '$seen' instead, and spark.sql.caseSensitive is true")
  }

  override def close(): Unit = records.close()
}

object RowReader {

  /** A record without any feature has at most this many bytes. */
  private val EmptyBytes = 4
  private val MostWarnings = 1000

  private val logger = org.slf4j.LoggerFactory.getLogger(classOf[TFRecordFileFormat])
  private val warned = java.util.concurrent.ConcurrentHashMap.newKeySet[String]()

  /** Logs a warning about a file, once per stage and JVM for all files of its directory. */
  def warnOnce(file: String, what: String): Unit = {
    val stage = Option(TaskContext.get()).fold("")(c => s"${c.stageId()}")
    if (warned.size >= MostWarnings) warned.clear()
    if (warned.add(s"$stage ${file.substring(0, file.lastIndexOf('/') + 1)} $what")) logger.warn(s"$file: $what")
  }

  /** Checks, before any task runs, that the column for malformed records can hold them. */
  def checkCorruptColumn(schema: StructType, name: String): Unit =
    schema.fields.find(_.name == name).foreach { f =>
      if (f.dataType != BinaryType || !f.nullable)
        throw new IllegalArgumentException(
          s"The column '$name' for malformed records must be binary and nullable, not ${f.dataType.simpleString}. " +
            s"Hint: if '$name' is a feature, set columnNameOfCorruptRecord to another name.")
    }
}
