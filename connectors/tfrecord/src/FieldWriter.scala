package tfspark.tfrecord

import java.nio.ByteOrder

import org.apache.spark.sql.catalyst.expressions.UnsafeArrayData
import org.apache.spark.sql.catalyst.expressions.codegen.{UnsafeArrayWriter, UnsafeRowWriter, UnsafeWriter}
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.Platform

/** Writes the values of a feature to one field of a row or one element of an array, in Spark's own binary format. */
abstract class FieldWriter {

  /** The kinds of lists that this field can be read from, for messages. */
  def expected: String

  /** Writes values that were opened but not yet read, and whose kind is not `Unset`. */
  def write(values: FeatureValues, ordinal: Int): Unit

  protected def wrongKind(values: FeatureValues): Nothing =
    throw new RecordFault(s"expected $expected, found ${Kind.name(values.kind)}. ${FieldWriter.Hint}")
}

object FieldWriter {
  private val Hint =
    "Hint: pass a schema with a column of that kind, or inferSchema=full, which reads all records"

  /** Returns whether one element of a Feature's list holds a value of this type. */
  def isScalar(t: DataType): Boolean = t match {
    case LongType | IntegerType | ShortType | ByteType | BooleanType | DateType | TimestampType | TimestampNTZType |
        FloatType | DoubleType | BinaryType | _: StringType =>
      true
    case _: DecimalType => true
    case _ => false
  }

  /** @param into the row or array that contains the field */
  def of(t: DataType, into: UnsafeWriter): FieldWriter = t match {
    case a: ArrayType => new ArrayField(ElementWriter.of(a.elementType), into)
    case v if Vectors.isVector(v) => new VectorField(into)
    case _ => new ScalarField(ElementWriter.of(t), into)
  }
}

/** Writes single values to places in a row or an array. */
abstract class ElementWriter {

  /** Size of an element in Spark's arrays, in bytes. */
  def size: Int
  def expected: String
  def accepts(kind: Int): Boolean

  /** Writes value `i` of `values` at `place`. */
  def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit

  /** Writes all values at once, if that is possible; else returns false. */
  def putBlock(values: FeatureValues, buffer: Array[Byte], offset: Long): Boolean = false
}

object ElementWriter {
  private def ints(bytes: Int, what: String, low: Long, high: Long)(
      store: (UnsafeWriter, Int, Long) => Unit): ElementWriter = new ElementWriter {
    override def size: Int = bytes
    override def expected: String = "an Int64List"
    override def accepts(kind: Int): Boolean = kind == Kind.Ints
    override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit = {
      val v = values.longs(i)
      if (v < low || v > high) throw new RecordFault(s"the value $v is out of range for $what")
      store(into, place, v)
    }
  }

  def of(t: DataType): ElementWriter = t match {
    case LongType | TimestampType | TimestampNTZType => LongElement
    case IntegerType => ints(4, "int", Int.MinValue, Int.MaxValue)((w, p, v) => w.write(p, v.toInt))
    case DateType => ints(4, "date", Int.MinValue, Int.MaxValue)((w, p, v) => w.write(p, v.toInt))
    case ShortType => ints(2, "short", Short.MinValue, Short.MaxValue)((w, p, v) => w.write(p, v.toShort))
    case ByteType => ints(1, "byte", Byte.MinValue, Byte.MaxValue)((w, p, v) => w.write(p, v.toByte))
    case BooleanType => ints(1, "boolean", 0, 1)((w, p, v) => w.write(p, v == 1L))
    case FloatType => FloatElement
    case DoubleType => DoubleElement
    case d: DecimalType => new DecimalElement(d)
    case _: StringType | BinaryType => BytesElement
    case _ => throw new IllegalArgumentException(s"a feature cannot hold the type ${t.simpleString}")
  }
}

object LongElement extends ElementWriter {
  override def size: Int = 8
  override def expected: String = "an Int64List"
  override def accepts(kind: Int): Boolean = kind == Kind.Ints
  override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit =
    into.write(place, values.longs(i))
  override def putBlock(values: FeatureValues, buffer: Array[Byte], offset: Long): Boolean = {
    Platform.copyMemory(values.longs, Platform.LONG_ARRAY_OFFSET, buffer, offset, values.count * 8L)
    true
  }
}

/** Values that are read from a FloatList or an Int64List. */
abstract class NumberElement extends ElementWriter {
  override def expected: String = "a FloatList or an Int64List"
  override def accepts(kind: Int): Boolean = kind != Kind.Bytes
}

object FloatElement extends NumberElement {
  private val littleEndian = ByteOrder.nativeOrder == ByteOrder.LITTLE_ENDIAN

  override def size: Int = 4
  override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit =
    into.write(place, if (values.kind == Kind.Floats) values.float(i) else values.longs(i).toFloat)
  override def putBlock(values: FeatureValues, buffer: Array[Byte], offset: Long): Boolean = {
    val block = littleEndian && values.kind == Kind.Floats && values.packedAt >= 0
    if (block) {
      val from = Platform.BYTE_ARRAY_OFFSET.toLong + values.packedAt
      Platform.copyMemory(values.record, from, buffer, offset, values.count * 4L)
    }
    block
  }
}

object DoubleElement extends NumberElement {
  override def size: Int = 8
  override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit =
    into.write(place, values.double(i))
}

final class DecimalElement(t: DecimalType) extends NumberElement {
  override def size: Int = 8
  override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit = {
    // The shortest decimal that equals this float: its exact binary value has digits that nobody wrote.
    val text = if (values.kind == Kind.Floats) values.float(i).toString else values.longs(i).toString
    val exact =
      try new java.math.BigDecimal(text)
      catch { case _: NumberFormatException => throw new RecordFault(s"the value $text is not a decimal number") }
    val fitted = Decimal(BigDecimal(exact.setScale(t.scale, java.math.RoundingMode.HALF_UP)))
    if (!fitted.changePrecision(t.precision, t.scale))
      throw new RecordFault(s"the value $text is out of range for ${t.simpleString}")
    into.write(place, fitted, t.precision, t.scale)
  }
}

object BytesElement extends ElementWriter {
  override def size: Int = 8
  override def expected: String = "a BytesList"
  override def accepts(kind: Int): Boolean = kind == Kind.Bytes
  override def put(values: FeatureValues, i: Int, into: UnsafeWriter, place: Int): Unit =
    into.write(place, values.record, values.starts(i), values.ends(i) - values.starts(i))
}

/** A single value; an empty list is null. */
final class ScalarField(element: ElementWriter, into: UnsafeWriter) extends FieldWriter {
  override def expected: String = element.expected

  override def write(values: FeatureValues, ordinal: Int): Unit = {
    if (!element.accepts(values.kind)) wrongKind(values)
    values.readAll()
    if (values.count == 1) element.put(values, 0, into, ordinal)
    else if (values.count == 0) into.setNull8Bytes(ordinal)
    else
      throw new RecordFault(
        s"expected a single value, found ${values.count}. Hint: read the column as an array; if the schema was " +
          "inferred, pass inferSchema=full, which reads all records")
  }
}

/** An array of the values. */
final class ArrayField(element: ElementWriter, into: UnsafeWriter) extends FieldWriter {
  private val array = new UnsafeArrayWriter(into, element.size)

  override def expected: String = element.expected

  override def write(values: FeatureValues, ordinal: Int): Unit = {
    if (!element.accepts(values.kind)) wrongKind(values)
    values.readAll()
    val n = values.count
    val start = into.cursor
    array.initialize(n)
    val data = start + UnsafeArrayData.calculateHeaderPortionInBytes(n)
    if (!element.putBlock(values, into.getBuffer, data.toLong)) {
      var i = 0
      while (i < n) {
        element.put(values, i, array, i)
        i += 1
      }
    }
    into.setOffsetAndSizeFromPreviousCursor(ordinal, start)
  }
}

/** An array of arrays: a FeatureList of a SequenceExample, one inner array per Feature. */
final class FeatureListField(element: DataType, into: UnsafeWriter) {
  private val outer = new UnsafeArrayWriter(into, 8)
  private val inner = FieldWriter.of(element, outer)
  private val values = new FeatureValues

  /** Writes the features whose bounds in the record are `starts` and `ends`. */
  def write(bytes: Array[Byte], starts: Array[Int], ends: Array[Int], n: Int, ordinal: Int): Unit = {
    val start = into.cursor
    outer.initialize(n)
    var i = 0
    while (i < n) {
      values.open(bytes, starts(i), ends(i))
      if (values.kind == Kind.Unset) outer.setNull8Bytes(i) else inner.write(values, i)
      i += 1
    }
    into.setOffsetAndSizeFromPreviousCursor(ordinal, start)
  }
}

/** A Spark ML vector, dense. */
final class VectorField(into: UnsafeWriter) extends FieldWriter {
  private val struct = new UnsafeRowWriter(into, 4)
  private val array = new UnsafeArrayWriter(struct, 8)

  override def expected: String = DoubleElement.expected

  override def write(values: FeatureValues, ordinal: Int): Unit = {
    if (!DoubleElement.accepts(values.kind)) wrongKind(values)
    values.readAll()
    val start = into.cursor
    struct.resetRowWriter()
    struct.write(0, Vectors.Dense)
    struct.setNull4Bytes(1)
    struct.setNull8Bytes(2)
    val dense = struct.cursor
    array.initialize(values.count)
    var i = 0
    while (i < values.count) {
      array.write(i, values.double(i))
      i += 1
    }
    struct.setOffsetAndSizeFromPreviousCursor(3, dense)
    into.setOffsetAndSizeFromPreviousCursor(ordinal, start)
  }
}

/** A Spark ML vector, sparse. */
final class SparseVectorField(into: UnsafeWriter) {
  private val struct = new UnsafeRowWriter(into, 4)
  private val positions = new UnsafeArrayWriter(struct, 4)
  private val numbers = new UnsafeArrayWriter(struct, 8)

  /** Writes values that were opened but not yet read. */
  def write(indices: FeatureValues, values: FeatureValues, size: FeatureValues, ordinal: Int): Unit = {
    Seq(indices, values, size).foreach(_.readAll())
    val integral = Seq(indices, size).forall(v => v.kind == Kind.Ints || v.count == 0)
    if (!integral || values.kind == Kind.Bytes) throw new RecordFault("its indices, values or size have the wrong kind")
    if (size.count != 1 || size.longs(0) < 0 || size.longs(0) > Int.MaxValue)
      throw new RecordFault("its size must be one number from 0 to 2147483647")
    if (indices.count != values.count)
      throw new RecordFault(s"it has ${indices.count} indices but ${values.count} values")
    val start = into.cursor
    struct.resetRowWriter()
    struct.write(0, Vectors.Sparse)
    struct.write(1, size.longs(0).toInt)
    val first = struct.cursor
    positions.initialize(indices.count)
    var last = -1L
    for (i <- 0 until indices.count) {
      val p = indices.longs(i)
      if (p <= last || p >= size.longs(0)) throw new RecordFault(s"its index $p is out of order or not below its size")
      positions.write(i, p.toInt)
      last = p
    }
    struct.setOffsetAndSizeFromPreviousCursor(2, first)
    val second = struct.cursor
    numbers.initialize(values.count)
    for (i <- 0 until values.count) numbers.write(i, values.double(i))
    struct.setOffsetAndSizeFromPreviousCursor(3, second)
    into.setOffsetAndSizeFromPreviousCursor(ordinal, start)
  }
}
