package tfspark.tfrecord

import org.apache.spark.sql.catalyst.expressions.{Expression, UnaryExpression, UnsafeArrayData}
import org.apache.spark.sql.catalyst.expressions.codegen.{CodegenContext, ExprCode}
import org.apache.spark.sql.catalyst.util.ArrayData
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.Platform

/** The numbers of an array as bytes, little end first: they reach Python by memcpy, and not value by value.
  *
  * @param column what the array is called, for errors
  * @param narrow whether doubles become floats
  */
case class PackedArray(child: Expression, column: String, narrow: Boolean) extends UnaryExpression {
  override def dataType: DataType = BinaryType

  override protected def nullSafeEval(input: Any): Any =
    PackedArray.pack(input.asInstanceOf[ArrayData], kind, column)

  override protected def doGenCode(ctx: CodegenContext, ev: ExprCode): ExprCode = {
    val name = ctx.addReferenceObj("column", column)
    nullSafeCodeGen(ctx, ev, array => s"${ev.value} = tfspark.tfrecord.PackedArray.pack($array, $kind, $name);")
  }

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

  def pack(array: ArrayData, kind: Int, column: String): Array[Byte] = {
    if (hasNull(array))
      throw new IllegalArgumentException(
        s"Column '$column' holds a null inside its arrays.\n" +
          "Hint: Remove or replace them in Spark, for example with pyspark.sql.functions.transform.")
    kind match {
      case Floats => bytes(array.toFloatArray(), Platform.FLOAT_ARRAY_OFFSET, array.numElements(), 4)
      case Doubles => bytes(array.toDoubleArray(), Platform.DOUBLE_ARRAY_OFFSET, array.numElements(), 8)
      case Narrowed => bytes(narrowed(array.toDoubleArray()), Platform.FLOAT_ARRAY_OFFSET, array.numElements(), 4)
      case Ints => bytes(array.toIntArray(), Platform.INT_ARRAY_OFFSET, array.numElements(), 4)
      case Longs => bytes(array.toLongArray(), Platform.LONG_ARRAY_OFFSET, array.numElements(), 8)
    }
  }

  private def hasNull(array: ArrayData): Boolean = array match {
    case unsafe: UnsafeArrayData =>
      // One bit a value, after the number of values.
      val words = (unsafe.numElements() + 63) / 64
      var i = 0
      while (i < words && Platform.getLong(unsafe.getBaseObject, unsafe.getBaseOffset + 8L + 8L * i) == 0L) i += 1
      i < words
    case other =>
      var i = 0
      while (i < other.numElements() && !other.isNullAt(i)) i += 1
      i < other.numElements()
  }

  private def narrowed(values: Array[Double]): Array[Float] = {
    val out = new Array[Float](values.length)
    var i = 0
    while (i < values.length) { out(i) = values(i).toFloat; i += 1 }
    out
  }

  private def bytes(values: AnyRef, offset: Long, length: Int, size: Int): Array[Byte] = {
    val out = new Array[Byte](Math.multiplyExact(length, size))
    Platform.copyMemory(values, offset, out, Platform.BYTE_ARRAY_OFFSET, out.length)
    out
  }
}
