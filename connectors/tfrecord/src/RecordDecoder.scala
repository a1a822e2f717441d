package tfspark.tfrecord

import org.apache.spark.sql.catalyst.expressions.codegen.UnsafeRowWriter
import org.apache.spark.sql.types.{ArrayType, DataType, StructType}

/** A column of the rows that are read: what it is called and where it stands in the row. */
final case class Column(name: String, dataType: DataType, ordinal: Int)

/** Decodes records into the fields of a row, which has been reset before. */
trait RecordDecoder {

  /**
   * Decodes bytes `start` until `end`.
   *
   * @return null, or, where faults are tolerated, what is wrong; the faulty fields are then null
   * @throws RecordFault if the record cannot be decoded
   */
  def decode(bytes: Array[Byte], start: Int, end: Int): String
}

object RecordDecoder {

  /** @param tolerant whether a fault of one column leaves the others */
  def of(recordType: RecordType, columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean): RecordDecoder =
    recordType match {
      case RecordType.Example => new ExampleDecoder(columns, row, tolerant)
      case RecordType.SequenceExample => new SequenceExampleDecoder(columns, row, tolerant)
      case RecordType.ByteArray => new ByteArrayDecoder(columns, row)
    }

  def columnsOf(schema: StructType): Array[Column] =
    schema.fields.zipWithIndex.map { case (f, i) => Column(f.name, f.dataType, i) }
}

/** Decodes columns one after the other once it is known where their bytes lie. */
abstract class ColumnsDecoder(what: String, columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean) {
  val scanner = new MapScanner(columns.map(_.name))

  /** Decodes column `i`, which is there. */
  protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit

  def finish(bytes: Array[Byte]): String = {
    var fault: String = null
    var i = 0
    while (i < columns.length) {
      if (scanner.starts(i) < 0) row.setNullAt(columns(i).ordinal)
      else
        try decode(bytes, scanner.starts(i), scanner.ends(i), i)
        catch {
          case e: RecordFault =>
            val message = s"$what '${columns(i).name}': ${e.getMessage}"
            if (!tolerant) throw new RecordFault(message)
            row.setNullAt(columns(i).ordinal)
            if (fault == null) fault = message
        }
      i += 1
    }
    fault
  }
}

/** Decodes tf.train.Features (tensorflow/core/example/feature.proto), whatever way they are encoded. */
final class FeaturesDecoder(columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean)
    extends ColumnsDecoder("feature", columns, row, tolerant) {
  private val fields = columns.map(c => FieldWriter.of(c.dataType, row))
  private val values = new FeatureValues

  override protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit = {
    values.open(bytes, start, end)
    if (values.kind == Kind.Unset) row.setNullAt(columns(i).ordinal) else fields(i).write(values, columns(i).ordinal)
  }
}

/** Decodes tf.train.FeatureLists. */
final class FeatureListsDecoder(columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean)
    extends ColumnsDecoder("feature list", columns, row, tolerant) {
  private val fields =
    columns.map(c => new FeatureListField(c.dataType.asInstanceOf[ArrayType].elementType, row))
  private val wire = new Wire
  private var starts = new Array[Int](16)
  private var ends = new Array[Int](16)

  override protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit = {
    var n = 0
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1)) {
        wire.enter()
        if (n == starts.length) {
          starts = java.util.Arrays.copyOf(starts, n * 2)
          ends = java.util.Arrays.copyOf(ends, n * 2)
        }
        starts(n) = wire.position
        ends(n) = wire.fieldEnd
        n += 1
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
    fields(i).write(bytes, starts, ends, n, columns(i).ordinal)
  }
}

final class ExampleDecoder(columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean) extends RecordDecoder {
  private val canonical = new CanonicalDecoder(columns, row)
  private val features = new FeaturesDecoder(columns, row, tolerant)
  private val wire = new Wire

  override def decode(bytes: Array[Byte], start: Int, end: Int): String =
    if (canonical.decode(bytes, start, end)) null
    else {
      row.reset()
      row.zeroOutNullBytes()
      features.scanner.begin()
      wire.reset(bytes, start, end)
      while (wire.hasMore) {
        val tag = wire.tag()
        if (tag == Wire.delimited(1)) {
          wire.enter()
          features.scanner.scan(bytes, wire.position, wire.fieldEnd)
          wire.position = wire.fieldEnd
        } else wire.skip(tag)
      }
      features.finish(bytes)
    }
}

/** Arrays of arrays come from the feature lists of a tf.train.SequenceExample, all other columns from its context. */
final class SequenceExampleDecoder(columns: Array[Column], row: UnsafeRowWriter, tolerant: Boolean)
    extends RecordDecoder {
  private val (nested, flat) = columns.partition(c => RecordType.isFeatureList(c.dataType))
  private val context = new FeaturesDecoder(flat, row, tolerant)
  private val lists = new FeatureListsDecoder(nested, row, tolerant)
  private val wire = new Wire

  override def decode(bytes: Array[Byte], start: Int, end: Int): String = {
    context.scanner.begin()
    lists.scanner.begin()
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1) || tag == Wire.delimited(2)) {
        wire.enter()
        val part = if (tag == Wire.delimited(1)) context else lists
        part.scanner.scan(bytes, wire.position, wire.fieldEnd)
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
    val fault = context.finish(bytes)
    val another = lists.finish(bytes)
    if (fault != null) fault else another
  }
}

/** The record as it is, in the one binary column there is. */
final class ByteArrayDecoder(columns: Array[Column], row: UnsafeRowWriter) extends RecordDecoder {
  override def decode(bytes: Array[Byte], start: Int, end: Int): String = {
    columns.foreach(c => row.write(c.ordinal, bytes, start, end - start))
    null
  }
}
