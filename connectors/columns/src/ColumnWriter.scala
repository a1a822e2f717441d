package tfspark.columns

import org.apache.spark.sql.catalyst.expressions.{UnsafeArrayData, UnsafeRow}
import org.apache.spark.sql.execution.vectorized.WritableColumnVector
import org.apache.spark.sql.types._
import org.apache.spark.sql.vectorized.{ColumnVector, ColumnarBatch}
import org.apache.spark.unsafe.Platform

/** Writes the values of one column, or of one level of its arrays and structs, to Arrow buffers.
  *
  * Values are read directly from Spark's memory: from an UnsafeRow or an UnsafeArrayData, called the container, or from
  * the column vectors of scans.
  */
abstract class ColumnWriter {
  private val validity = new Bits
  private var nulls = 0
  private var count = 0

  /** Append a value.
    *
    * @param container offset of the container in `base`; offsets of values without a fixed size are relative to it
    * @param at offset of the field or element in `base`
    */
  final def append(base: AnyRef, container: Long, at: Long): Unit = {
    copy(base, container, at)
    if (nulls > 0) validity.put(true)
    count += 1
  }

  final def appendNull(): Unit = {
    if (nulls == 0) validity.fill(count)
    validity.put(false)
    skip()
    nulls += 1
    count += 1
  }

  /** Append the elements of an array without nulls. */
  def appendAll(base: AnyRef, array: Long, first: Long, length: Int, step: Int): Unit = {
    var i = 0
    while (i < length) {
      append(base, array, first + i.toLong * step)
      i += 1
    }
  }

  /** Append values of a column vector. */
  final def appendVector(vector: ColumnVector, first: Int, length: Int): Unit = {
    val (end, noNulls) = (first + length, !vector.hasNull)
    var i = first
    while (i < end) {
      var next = i
      if (noNulls) next = end else while (next < end && !vector.isNullAt(next)) next += 1
      copyVector(vector, i, next - i)
      counted(next - i)
      if (next < end) appendNull()
      i = next + 1
    }
  }

  /** Add values that have been copied to the count. */
  protected final def counted(more: Int): Unit = {
    if (nulls > 0) {
      var i = 0
      while (i < more) {
        validity.put(true)
        i += 1
      }
    }
    count += more
  }

  protected def copy(base: AnyRef, container: Long, at: Long): Unit

  /** Copy a value of a column vector that is not null. Only types of a fixed size are read from vectors. */
  protected def copyOne(vector: ColumnVector, at: Int): Unit = throw new UnsupportedOperationException(getClass.getName)

  /** Copy values of a column vector, none of which is null. */
  protected def copyVector(vector: ColumnVector, first: Int, length: Int): Unit = {
    var i = first
    while (i < first + length) {
      copyOne(vector, i)
      i += 1
    }
  }

  /** Append the value that takes the place of a null. */
  protected def skip(): Unit

  def clear(): Unit = {
    validity.clear()
    nulls = 0
    count = 0
  }

  /** Add the buffers to a batch in the order of Arrow's format: a column comes before its children. */
  def addTo(batch: BatchMessage): Unit = {
    batch.addColumn(count, nulls)
    batch.addBuffer(if (nulls > 0) validity.bytes else Empty)
  }

  private val Empty = ColumnWriter.Empty
}

object ColumnWriter {
  private val Empty = new Bytes

  def isSupported(t: DataType): Boolean = t match {
    case BooleanType | ByteType | ShortType | IntegerType | LongType | FloatType | DoubleType | BinaryType | DateType |
        TimestampType | TimestampNTZType | _: StringType | _: DecimalType =>
      true
    case ArrayType(element, _) => isSupported(element)
    case StructType(fields) => fields.nonEmpty && fields.forall(f => isSupported(f.dataType))
    case udt: UserDefinedType[_] => isSupported(udt.sqlType)
    case _ => false
  }

  def of(t: DataType): ColumnWriter = t match {
    case BooleanType => new BooleanWriter
    case ByteType => new ByteWriter
    case ShortType => new ShortWriter
    case IntegerType | DateType => new IntWriter
    case FloatType => new FloatWriter
    case LongType | TimestampType | TimestampNTZType => new LongWriter
    case DoubleType => new DoubleWriter
    case BinaryType | _: StringType => new BinaryWriter
    case d: DecimalType => if (d.precision <= Decimal.MAX_LONG_DIGITS) new ShortDecimalWriter else new LongDecimalWriter
    case ArrayType(element, _) => new ListWriter(of(element), elementBytes(element))
    case StructType(fields) => new StructWriter(fields.map(f => of(f.dataType)))
    case udt: UserDefinedType[_] => of(udt.sqlType)
  }

  /** Bytes from one element of an UnsafeArrayData to the next. */
  private def elementBytes(t: DataType): Int = t match {
    case BooleanType | ByteType => 1
    case ShortType => 2
    case IntegerType | DateType | FloatType => 4
    case _ => 8
  }

  def isSet(base: AnyRef, bits: Long, index: Int): Boolean =
    (Platform.getLong(base, bits + (index >> 6) * 8L) >>> (index & 63) & 1L) != 0L

  /** Whether any bit is set in `nbytes` bytes, which are whole words. */
  def anySet(base: AnyRef, bits: Long, nbytes: Int): Boolean = {
    var at = 0
    while (at < nbytes && Platform.getLong(base, bits + at) == 0L) at += 8
    at < nbytes
  }
}

final class BooleanWriter extends ColumnWriter {
  private val values = new Bits
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = values.put(Platform.getByte(base, at) != 0)
  override protected def copyOne(vector: ColumnVector, at: Int): Unit = values.put(vector.getBoolean(at))
  override protected def skip(): Unit = values.put(false)
  override def clear(): Unit = { super.clear(); values.clear() }
  override def addTo(batch: BatchMessage): Unit = { super.addTo(batch); batch.addBuffer(values.bytes) }
}

/** Values that all have the same number of bytes in Arrow. */
abstract class ValuesWriter extends ColumnWriter {
  protected val values = new Bytes
  override def clear(): Unit = { super.clear(); values.clear() }
  override def addTo(batch: BatchMessage): Unit = { super.addTo(batch); batch.addBuffer(values) }
}

/** Values that have the same layout in Arrow and Spark, so that arrays of them are copied as a whole.
  *
  * @param offset where the values of a Java array begin; it depends on their width only
  */
abstract class FixedWriter(width: Int, offset: Int) extends ValuesWriter {
  /** Several values of a column vector, in a new array. */
  protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef

  override protected def copyVector(vector: ColumnVector, first: Int, length: Int): Unit = vector match {
    // Spark 3.5.0 ignores dictionaries when it returns several values.
    case v: WritableColumnVector if length > FixedWriter.FewValues && !v.hasDictionary =>
      values.put(several(v, first, length), offset, length * width)
    case _ => super.copyVector(vector, first, length)
  }

  override def appendAll(base: AnyRef, array: Long, first: Long, length: Int, step: Int): Unit = {
    values.put(base, first, Math.multiplyExact(length, width))
    counted(length)
  }
}

object FixedWriter {
  /** So many values, or fewer, are copied one by one. */
  private val FewValues = 8
}

final class ByteWriter extends FixedWriter(1, Platform.BYTE_ARRAY_OFFSET) {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = values.putByte(Platform.getByte(base, at))
  override protected def skip(): Unit = values.putByte(0)
  override protected def copyOne(vector: ColumnVector, at: Int): Unit = values.putByte(vector.getByte(at))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getBytes(first, length)
}

final class ShortWriter extends FixedWriter(2, Platform.SHORT_ARRAY_OFFSET) {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = values.putShort(Platform.getShort(base, at))
  override protected def skip(): Unit = values.putShort(0)
  override protected def copyOne(vector: ColumnVector, at: Int): Unit = values.putShort(vector.getShort(at))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getShorts(first, length)
}

class IntWriter extends FixedWriter(4, Platform.INT_ARRAY_OFFSET) {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = values.putInt(Platform.getInt(base, at))
  override protected def skip(): Unit = values.putInt(0)
  override protected def copyOne(vector: ColumnVector, at: Int): Unit = values.putInt(vector.getInt(at))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getInts(first, length)
}

final class FloatWriter extends IntWriter {
  override protected def copyOne(vector: ColumnVector, at: Int): Unit =
    values.putInt(java.lang.Float.floatToRawIntBits(vector.getFloat(at)))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getFloats(first, length)
}

class LongWriter extends FixedWriter(8, Platform.LONG_ARRAY_OFFSET) {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = values.putLong(Platform.getLong(base, at))
  override protected def skip(): Unit = values.putLong(0)
  override protected def copyOne(vector: ColumnVector, at: Int): Unit = values.putLong(vector.getLong(at))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getLongs(first, length)
}

final class DoubleWriter extends LongWriter {
  override protected def copyOne(vector: ColumnVector, at: Int): Unit =
    values.putLong(java.lang.Double.doubleToRawLongBits(vector.getDouble(at)))
  override protected def several(vector: ColumnVector, first: Int, length: Int): AnyRef = vector.getDoubles(first, length)
}

/** Decimals that Spark stores as a long; Arrow stores 16 bytes. */
final class ShortDecimalWriter extends ValuesWriter {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = {
    val unscaled = Platform.getLong(base, at)
    values.putLong(unscaled)
    values.putLong(unscaled >> 63)
  }
  override protected def skip(): Unit = { values.putLong(0); values.putLong(0) }
}

/** Decimals that Spark stores as the bytes of a BigInteger, highest byte first; Arrow stores 16 bytes, lowest first. */
final class LongDecimalWriter extends ValuesWriter {
  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = {
    val place = Platform.getLong(base, at)
    val (start, length) = (container + (place >> 32), place.toInt)
    var i = length - 1
    while (i >= 0) {
      values.putByte(Platform.getByte(base, start + i))
      i -= 1
    }
    values.fill((Platform.getByte(base, start) >> 7).toByte, 16 - length)
  }
  override protected def skip(): Unit = values.fill(0, 16)
}

final class BinaryWriter extends ColumnWriter {
  private val ends = new Bytes
  private val values = new Bytes
  ends.putInt(0)

  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = {
    val place = Platform.getLong(base, at)
    // Spark pads values without a fixed size to whole words.
    values.putPadded(base, container + (place >> 32), place.toInt)
    ends.putInt(values.size)
  }

  override protected def skip(): Unit = ends.putInt(values.size)

  override def clear(): Unit = {
    super.clear()
    ends.clear()
    ends.putInt(0)
    values.clear()
  }

  override def addTo(batch: BatchMessage): Unit = {
    super.addTo(batch)
    batch.addBuffer(ends)
    batch.addBuffer(values)
  }
}

final class ListWriter(element: ColumnWriter, step: Int) extends ColumnWriter {
  private val ends = new Bytes
  private var total = 0
  ends.putInt(0)

  override protected def copy(base: AnyRef, container: Long, at: Long): Unit = {
    val array = container + (Platform.getLong(base, at) >> 32)
    val length = Platform.getLong(base, array).toInt
    val header = UnsafeArrayData.calculateHeaderPortionInBytes(length)
    if (!ColumnWriter.anySet(base, array + 8, header - 8)) element.appendAll(base, array, array + header, length, step)
    else {
      var i = 0
      while (i < length) {
        if (ColumnWriter.isSet(base, array + 8, i)) element.appendNull()
        else element.append(base, array, array + header + i.toLong * step)
        i += 1
      }
    }
    total = Math.addExact(total, length)
    ends.putInt(total)
  }

  override protected def skip(): Unit = ends.putInt(total)

  override def clear(): Unit = {
    super.clear()
    ends.clear()
    ends.putInt(0)
    total = 0
    element.clear()
  }

  override def addTo(batch: BatchMessage): Unit = {
    super.addTo(batch)
    batch.addBuffer(ends)
    element.addTo(batch)
  }
}

/** The fields of a row or a struct. */
final class StructWriter(fields: Array[ColumnWriter]) extends ColumnWriter {
  private val nullBytes = UnsafeRow.calculateBitSetWidthInBytes(fields.length)

  override protected def copy(base: AnyRef, container: Long, at: Long): Unit =
    appendFields(base, container + (Platform.getLong(base, at) >> 32))

  /** Append the fields of the UnsafeRow at offset `row` in `base`. */
  def appendFields(base: AnyRef, row: Long): Unit = {
    val first = row + nullBytes
    val whole = !ColumnWriter.anySet(base, row, nullBytes)
    var i = 0
    while (i < fields.length) {
      if (whole || !ColumnWriter.isSet(base, row, i)) fields(i).append(base, row, first + i * 8L)
      else fields(i).appendNull()
      i += 1
    }
  }

  /** Append rows of a batch whose column vectors are the fields. */
  def appendVectors(batch: ColumnarBatch, first: Int, rows: Int): Unit = {
    var i = 0
    while (i < fields.length) {
      fields(i).appendVector(batch.column(i), first, rows)
      i += 1
    }
  }

  override protected def skip(): Unit = fields.foreach(_.appendNull())

  override def clear(): Unit = { super.clear(); fields.foreach(_.clear()) }
  override def addTo(batch: BatchMessage): Unit = { super.addTo(batch); addFieldsTo(batch) }
  def addFieldsTo(batch: BatchMessage): Unit = fields.foreach(_.addTo(batch))
}
