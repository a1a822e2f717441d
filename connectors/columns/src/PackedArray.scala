package tfspark.columns

import org.apache.spark.sql.catalyst.expressions.{Expression, UnaryExpression, UnsafeArrayData}
import org.apache.spark.sql.catalyst.expressions.codegen.{CodegenContext, ExprCode}
import org.apache.spark.sql.catalyst.util.ArrayData
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.Platform

/** The numbers of an array as little-endian bytes, which are sent to Python by memcpy instead of value by value.
  *
  * An array that contains a null becomes a single byte. No array of numbers has this length, so Python can raise the
  * error. An array with a double that is out of the range of floats becomes 9 bytes; the first 8 are that double.
  *
  * @param narrow whether doubles become floats
  */
case class PackedArray(child: Expression, narrow: Boolean) extends UnaryExpression {
  override def dataType: DataType = BinaryType

  override protected def nullSafeEval(input: Any): Any = PackedArray.pack(input.asInstanceOf[ArrayData], kind)

  override protected def doGenCode(ctx: CodegenContext, ev: ExprCode): ExprCode =
    nullSafeCodeGen(ctx, ev, array => s"${ev.value} = tfspark.columns.PackedArray.pack($array, $kind);")

  override protected def withNewChildInternal(newChild: Expression): PackedArray = copy(child = newChild)

  private def kind: Int = child.dataType.asInstanceOf[ArrayType].elementType match {
    case FloatType => PackedArray.Floats
    case DoubleType => if (narrow) PackedArray.Narrowed else PackedArray.Doubles
    case IntegerType => PackedArray.Ints
    case LongType => PackedArray.Longs
    case other => throw new IllegalArgumentException(s"Arrays of ${other.simpleString} cannot be packed")
  }
}

object PackedArray {
  val Floats = 0
  val Doubles = 1
  val Narrowed = 2
  val Ints = 3
  val Longs = 4

  private val Size = Array(4, 8, 4, 4, 8)
  private val NullInside = Array[Byte](0)

  def pack(array: ArrayData, kind: Int): Array[Byte] = array match {
    case unsafe: UnsafeArrayData =>
      val length = unsafe.numElements()
      val header = UnsafeArrayData.calculateHeaderPortionInBytes(length)
      val base = unsafe.getBaseObject
      val start = unsafe.getBaseOffset
      if (hasNull(base, start, header)) NullInside
      else if (kind == Narrowed) narrowed(unsafe.toDoubleArray())
      else of(base, start + header, length, kind)
    case other =>
      val length = other.numElements()
      if ((0 until length).exists(other.isNullAt)) NullInside
      else
        kind match {
          case Floats => of(other.toFloatArray(), Platform.FLOAT_ARRAY_OFFSET, length, kind)
          case Doubles => of(other.toDoubleArray(), Platform.DOUBLE_ARRAY_OFFSET, length, kind)
          case Narrowed => narrowed(other.toDoubleArray())
          case Ints => of(other.toIntArray(), Platform.INT_ARRAY_OFFSET, length, kind)
          case Longs => of(other.toLongArray(), Platform.LONG_ARRAY_OFFSET, length, kind)
        }
  }

  /** Whether the array contains a null: after the number of values, its header has one bit for each value. */
  private def hasNull(base: AnyRef, start: Long, header: Int): Boolean = {
    var at = 8
    while (at < header && Platform.getLong(base, start + at) == 0L) at += 8
    at < header
  }

  private def narrowed(values: Array[Double]): Array[Byte] = {
    val out = new Array[Float](values.length)
    var i = 0
    while (i < values.length) {
      val value = values(i)
      val float = value.toFloat
      if (java.lang.Float.isInfinite(float) && !java.lang.Double.isInfinite(value)) return beyond(value)
      out(i) = float
      i += 1
    }
    of(out, Platform.FLOAT_ARRAY_OFFSET, values.length, Narrowed)
  }

  private def beyond(value: Double): Array[Byte] = {
    val out = new Array[Byte](9)
    Platform.copyMemory(Array(value), Platform.DOUBLE_ARRAY_OFFSET, out, Platform.BYTE_ARRAY_OFFSET, 8)
    out
  }

  private def of(values: AnyRef, offset: Long, length: Int, kind: Int): Array[Byte] = {
    val out = new Array[Byte](Math.multiplyExact(length, Size(kind)))
    Platform.copyMemory(values, offset, out, Platform.BYTE_ARRAY_OFFSET, out.length)
    out
  }
}
