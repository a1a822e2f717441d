package tfspark.tfrecord

import org.apache.spark.sql.execution.vectorized.WritableColumnVector
import org.apache.spark.sql.types._

/** Puts the values of a feature into one row of a column. */
abstract class ColumnDecoder {

  /** The kinds of lists this column can be read from, for messages. */
  def expected: String

  /** Decodes values that were opened but not yet read, and whose kind is not `Unset`. */
  def decode(values: FeatureValues, row: Int): Unit

  def putNull(row: Int): Unit

  /** Called before a new batch is filled. */
  def reset(): Unit = ()

  protected def wrongKind(values: FeatureValues): Nothing =
    throw new RecordFault(s"expected $expected, found ${Kind.name(values.kind)}")
}

object ColumnDecoder {

  /** Types whose values a single list of a Feature holds one of. */
  def isScalar(t: DataType): Boolean = t match {
    case LongType | IntegerType | ShortType | ByteType | BooleanType | DateType | TimestampType | TimestampNTZType |
        FloatType | DoubleType | StringType | BinaryType =>
      true
    case _: DecimalType => true
    case _ => false
  }

  def of(t: DataType, vector: WritableColumnVector): ColumnDecoder = t match {
    case a: ArrayType => new ArrayColumn(ElementDecoder.of(a.elementType, vector.arrayData()), vector)
    case _ => new ScalarColumn(ElementDecoder.of(t, vector), vector)
  }
}

/** Puts single values into places of a vector. */
abstract class ElementDecoder(val vector: WritableColumnVector) {
  def expected: String
  def accepts(kind: Int): Boolean

  /** Puts value `i` of `values` at `place`. */
  def put(values: FeatureValues, i: Int, place: Int): Unit

  /** Puts all values from `place` on. */
  def putAll(values: FeatureValues, place: Int): Unit = {
    var i = 0
    while (i < values.count) {
      put(values, i, place + i)
      i += 1
    }
  }
}

object ElementDecoder {
  private def ints(vector: WritableColumnVector, what: String, low: Long, high: Long)(
      store: (WritableColumnVector, Int, Long) => Unit): ElementDecoder = new ElementDecoder(vector) {
    override def expected: String = "an Int64List"
    override def accepts(kind: Int): Boolean = kind == Kind.Ints
    override def put(values: FeatureValues, i: Int, place: Int): Unit = {
      val v = values.longs(i)
      if (v < low || v > high) throw new RecordFault(s"the value $v is out of range for $what")
      store(vector, place, v)
    }
  }

  def of(t: DataType, vector: WritableColumnVector): ElementDecoder = t match {
    case LongType | TimestampType | TimestampNTZType => new LongElements(vector)
    case IntegerType => ints(vector, "int", Int.MinValue, Int.MaxValue)((c, p, v) => c.putInt(p, v.toInt))
    case DateType => ints(vector, "date", Int.MinValue, Int.MaxValue)((c, p, v) => c.putInt(p, v.toInt))
    case ShortType => ints(vector, "short", Short.MinValue, Short.MaxValue)((c, p, v) => c.putShort(p, v.toShort))
    case ByteType => ints(vector, "byte", Byte.MinValue, Byte.MaxValue)((c, p, v) => c.putByte(p, v.toByte))
    case BooleanType => ints(vector, "boolean", 0, 1)((c, p, v) => c.putBoolean(p, v == 1L))
    case FloatType => new FloatElements(vector)
    case DoubleType => new DoubleElements(vector)
    case d: DecimalType => new DecimalElements(d, vector)
    case StringType | BinaryType => new BytesElements(vector)
    case a: ArrayType => throw new IllegalArgumentException(s"an Example holds no arrays of $a")
    case _ => throw new IllegalArgumentException(s"a Feature holds no $t")
  }
}

final class LongElements(vector: WritableColumnVector) extends ElementDecoder(vector) {
  override def expected: String = "an Int64List"
  override def accepts(kind: Int): Boolean = kind == Kind.Ints
  override def put(values: FeatureValues, i: Int, place: Int): Unit = vector.putLong(place, values.longs(i))
  override def putAll(values: FeatureValues, place: Int): Unit = vector.putLongs(place, values.count, values.longs, 0)
}

final class FloatElements(vector: WritableColumnVector) extends ElementDecoder(vector) {
  override def expected: String = "a FloatList or an Int64List"
  override def accepts(kind: Int): Boolean = kind != Kind.Bytes
  override def put(values: FeatureValues, i: Int, place: Int): Unit =
    vector.putFloat(place, if (values.kind == Kind.Floats) values.float(i) else values.longs(i).toFloat)
  override def putAll(values: FeatureValues, place: Int): Unit =
    if (values.kind == Kind.Floats && values.packedAt >= 0)
      vector.putFloatsLittleEndian(place, values.count, values.record, values.packedAt)
    else super.putAll(values, place)
}

final class DoubleElements(vector: WritableColumnVector) extends ElementDecoder(vector) {
  override def expected: String = "a FloatList or an Int64List"
  override def accepts(kind: Int): Boolean = kind != Kind.Bytes
  override def put(values: FeatureValues, i: Int, place: Int): Unit =
    vector.putDouble(place, if (values.kind == Kind.Floats) values.float(i).toDouble else values.longs(i).toDouble)
}

final class DecimalElements(t: DecimalType, vector: WritableColumnVector) extends ElementDecoder(vector) {
  override def expected: String = "a FloatList or an Int64List"
  override def accepts(kind: Int): Boolean = kind != Kind.Bytes
  override def put(values: FeatureValues, i: Int, place: Int): Unit = {
    // The shortest decimal that is this float: its binary expansion would add digits that nobody wrote.
    val text = if (values.kind == Kind.Floats) values.float(i).toString else values.longs(i).toString
    val exact =
      try new java.math.BigDecimal(text)
      catch { case _: NumberFormatException => throw new RecordFault(s"the value $text is no decimal") }
    val fitted = Decimal(BigDecimal(exact.setScale(t.scale, java.math.RoundingMode.HALF_UP)))
    if (!fitted.changePrecision(t.precision, t.scale))
      throw new RecordFault(s"the value $text is out of range for ${t.simpleString}")
    vector.putDecimal(place, fitted, t.precision)
  }
}

final class BytesElements(vector: WritableColumnVector) extends ElementDecoder(vector) {
  override def expected: String = "a BytesList"
  override def accepts(kind: Int): Boolean = kind == Kind.Bytes
  override def put(values: FeatureValues, i: Int, place: Int): Unit =
    vector.putByteArray(place, values.record, values.starts(i), values.ends(i) - values.starts(i))
}

/** A column of single values; an empty list is null. */
final class ScalarColumn(elements: ElementDecoder, vector: WritableColumnVector) extends ColumnDecoder {
  override def expected: String = elements.expected
  override def putNull(row: Int): Unit = vector.putNull(row)

  override def decode(values: FeatureValues, row: Int): Unit = {
    if (!elements.accepts(values.kind)) wrongKind(values)
    values.readAll()
    if (values.count == 1) elements.put(values, 0, row)
    else if (values.count == 0) vector.putNull(row)
    else throw new RecordFault(s"expected a single value, found ${values.count}; read the column as an array")
  }
}

/** A column of arrays. */
final class ArrayColumn(elements: ElementDecoder, vector: WritableColumnVector) extends ColumnDecoder {
  private var used = 0

  override def expected: String = elements.expected
  override def putNull(row: Int): Unit = vector.putNull(row)
  override def reset(): Unit = used = 0

  override def decode(values: FeatureValues, row: Int): Unit = {
    if (!elements.accepts(values.kind)) wrongKind(values)
    values.readAll()
    elements.vector.reserve(used + values.count)
    elements.putAll(values, used)
    vector.putArray(row, used, values.count)
    used += values.count
  }
}

/** A column of arrays of arrays: a FeatureList of a SequenceExample, one inner array per Feature. */
final class NestedColumn(inner: ColumnDecoder, child: WritableColumnVector, vector: WritableColumnVector) {
  private var used = 0

  def putNull(row: Int): Unit = vector.putNull(row)

  def reset(): Unit = {
    used = 0
    inner.reset()
  }

  /** Decodes the FeatureList in bytes `start` until `end` of the record. */
  def decode(wire: Wire, values: FeatureValues, row: Int): Unit = {
    val begin = used
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1)) {
        wire.enter()
        child.reserve(used + 1)
        values.open(wire.bytes, wire.position, wire.fieldEnd)
        if (values.kind == Kind.Unset) inner.putNull(used) else inner.decode(values, used)
        used += 1
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
    vector.putArray(row, begin, used - begin)
  }
}
