package tfspark.tfrecord

import org.apache.spark.sql.catalyst.expressions.codegen.UnsafeRowWriter
import org.apache.spark.sql.types.{ArrayType, DataType, StructType}

/** A column of the rows that are read: its name, its type and its position in the row. */
final case class Column(name: String, dataType: DataType, ordinal: Int)

/** Decodes records into the fields of a row, which the caller has reset. */
trait RecordDecoder {

  /**
   * Decodes bytes `start` until `end`.
   *
   * @return null, or what is wrong if faults are tolerated; the faulty fields are then null
   * @throws RecordFault if the record cannot be decoded
   */
  def decode(bytes: Array[Byte], start: Int, end: Int): String

  /** The tables that find the columns; they also remember which names they have seen. */
  def tables: Seq[NameTable]
}

object RecordDecoder {

  /** Returns a decoder. A fault of one column leaves the other columns, unless the options make it an error. */
  def of(
      options: TFRecordOptions,
      columns: Array[Column],
      row: UnsafeRowWriter,
      caseSensitive: Boolean): RecordDecoder = {
    val rules = DecodingRules(options.recordType, options.tolerant, caseSensitive)
    def features(columns: Array[Column]) = {
      val (vectors, others) = columns.partition(c => options.sparseVectors && Vectors.isVector(c.dataType))
      val plain = new FeaturesDecoder(others, row, rules)
      if (vectors.isEmpty) Seq(plain) else Seq(plain, new SparseVectorsDecoder(vectors, row, rules))
    }
    options.recordType match {
      case RecordType.Example =>
        val general = new GeneralDecoder(features(columns), Nil)
        if (general.parts.length > 1) general
        else new ExampleDecoder(new CanonicalDecoder(columns, row, caseSensitive), general, row)
      case RecordType.SequenceExample =>
        val (nested, flat) = columns.partition(c => RecordType.isFeatureList(c.dataType))
        new GeneralDecoder(features(flat), Seq(new FeatureListsDecoder(nested, row, rules)))
      case RecordType.ByteArray => new ByteArrayDecoder(columns, row)
    }
  }

  def columnsOf(schema: StructType): Array[Column] =
    schema.fields.zipWithIndex.map { case (f, i) => Column(f.name, f.dataType, i) }
}

/**
 * Rules for all columns of a reader.
 *
 * @param tolerant      whether the other columns are still decoded after a fault of one column
 * @param caseSensitive whether names that differ only in case are different names
 */
final case class DecodingRules(recordType: RecordType, tolerant: Boolean, caseSensitive: Boolean)

/** Decodes columns one after the other, after the positions of their bytes are known. */
abstract class ColumnsDecoder(what: String, columns: Array[Column], row: UnsafeRowWriter, rules: DecodingRules) {

  /** Finds the entries of all columns; each column has the same number of entries. */
  val scanner = new MapScanner(columns.flatMap(c => entriesOf(c.name)), rules.caseSensitive)
  val otherForms = new OtherForms(formsOf, rules.caseSensitive)
  private val perColumn = if (columns.isEmpty) 1 else entriesOf(columns.head.name).length

  protected def entriesOf(column: String): Seq[String] = Seq(column)

  /** Returns the other forms in which records may hold the columns. */
  protected def formsOf: Seq[OtherForm]

  /** Decodes column `i`, which has at least one of its entries; the first one is bytes `start` until `end`. */
  protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit

  private def isThere(i: Int): Boolean = {
    var there = false
    var e = i * perColumn
    while (e < (i + 1) * perColumn) {
      if (scanner.has(e)) there = true
      e += 1
    }
    there
  }

  /** Whether the record lacks at least one column. */
  def misses: Boolean = {
    var i = 0
    while (i < columns.length && scanner.starts(i * perColumn) >= 0) i += 1
    i < columns.length
  }

  def finish(bytes: Array[Byte]): String = {
    var fault: String = null
    var i = 0
    while (i < columns.length) {
      val e = i * perColumn
      try
        if (isThere(i)) decode(bytes, scanner.starts(e), scanner.ends(e), i)
        else {
          otherForms.check(i)
          row.setNullAt(columns(i).ordinal)
        }
      catch {
        case e: RecordFault =>
          val message = s"$what '${columns(i).name}': ${e.getMessage}"
          if (!rules.tolerant) throw new RecordFault(message)
          row.setNullAt(columns(i).ordinal)
          if (fault == null) fault = message
      }
      i += 1
    }
    fault
  }
}

/** Decodes tf.train.Features (tensorflow/core/example/feature.proto) in any encoding. */
final class FeaturesDecoder(columns: Array[Column], row: UnsafeRowWriter, rules: DecodingRules)
    extends ColumnsDecoder("feature", columns, row, rules) {
  private val fields = columns.map(c => FieldWriter.of(c.dataType, row))
  private val values = new FeatureValues

  override protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit = {
    values.open(bytes, start, end)
    if (values.kind == Kind.Unset) row.setNullAt(columns(i).ordinal) else fields(i).write(values, columns(i).ordinal)
  }

  override protected def formsOf: Seq[OtherForm] = OtherForms.ofFeatures(columns, rules.recordType)
}

/** Decodes tf.train.FeatureLists. */
final class FeatureListsDecoder(columns: Array[Column], row: UnsafeRowWriter, rules: DecodingRules)
    extends ColumnsDecoder("feature list", columns, row, rules) {
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

  override protected def formsOf: Seq[OtherForm] = OtherForms.ofFeatureLists(columns)
}

/** Decodes ML vectors that were written as features of their indices, values and size. */
final class SparseVectorsDecoder(columns: Array[Column], row: UnsafeRowWriter, rules: DecodingRules)
    extends ColumnsDecoder("sparse vector", columns, row, rules) {
  private val fields = columns.map(_ => new SparseVectorField(row))
  private val (indices, values, size) = (new FeatureValues, new FeatureValues, new FeatureValues)

  override protected def entriesOf(column: String): Seq[String] = Vectors.sparseNames(column)

  override protected def decode(bytes: Array[Byte], start: Int, end: Int, i: Int): Unit = {
    for ((part, k) <- Seq(indices, values, size).zipWithIndex) {
      val e = 3 * i + k
      if (scanner.starts(e) < 0) throw new RecordFault("its indices, values or size are missing")
      part.open(bytes, scanner.starts(e), scanner.ends(e))
    }
    fields(i).write(indices, values, size, columns(i).ordinal)
  }

  override protected def formsOf: Seq[OtherForm] = OtherForms.ofSparseVectors(columns, rules.recordType)
}

/**
 * Decodes tf.train.Examples and tf.train.SequenceExamples by all of protobuf's rules.
 *
 * @param parts the columns from the features or the context
 * @param lists the columns from the feature lists: arrays of arrays
 */
final class GeneralDecoder(val parts: Seq[ColumnsDecoder], lists: Seq[ColumnsDecoder]) extends RecordDecoder {
  private val wire = new Wire
  private val all = (parts ++ lists).toArray

  override def tables: Seq[NameTable] = all.map(_.scanner.table).toSeq

  override def decode(bytes: Array[Byte], start: Int, end: Int): String = {
    all.foreach(_.scanner.begin())
    each(bytes, start, end) { field =>
      val those = if (field == 1) parts else lists
      those.foreach(_.scanner.scan(bytes, wire.position, wire.fieldEnd))
    }
    all.foreach { d =>
      d.otherForms.begin()
      if (d.misses) each(bytes, start, end)(d.otherForms.scan(_, bytes, wire.position, wire.fieldEnd))
    }
    all.map(_.finish(bytes)).find(_ != null).orNull
  }

  private def each(bytes: Array[Byte], start: Int, end: Int)(map: Int => Unit): Unit = {
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1) || tag == Wire.delimited(2)) {
        wire.enter()
        val until = wire.fieldEnd
        map(tag >>> 3)
        wire.position = until
      } else wire.skip(tag)
    }
  }
}

/** Decodes tf.train.Examples; a faster decoder handles those with the usual encoding. */
final class ExampleDecoder(canonical: CanonicalDecoder, general: GeneralDecoder, row: UnsafeRowWriter)
    extends RecordDecoder {
  override def tables: Seq[NameTable] = canonical.table +: general.tables

  override def decode(bytes: Array[Byte], start: Int, end: Int): String =
    if (canonical.decode(bytes, start, end)) null
    else {
      row.reset()
      row.zeroOutNullBytes()
      general.decode(bytes, start, end)
    }
}

/** Writes the record unchanged into the only column, which is binary. */
final class ByteArrayDecoder(columns: Array[Column], row: UnsafeRowWriter) extends RecordDecoder {
  override def tables: Seq[NameTable] = Nil

  override def decode(bytes: Array[Byte], start: Int, end: Int): String = {
    columns.foreach(c => row.write(c.ordinal, bytes, start, end - start))
    null
  }
}
