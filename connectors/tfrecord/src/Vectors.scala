package tfspark.tfrecord

import org.apache.spark.sql.types._

/** Spark ML's vectors, known by how they are stored, so that the connector needs no jar of Spark ML. */
object Vectors {
  val Sparse: Byte = 0
  val Dense: Byte = 1

  private val stored = Seq(ByteType, IntegerType, ArrayType(IntegerType, false), ArrayType(DoubleType, false))

  def isVector(t: DataType): Boolean = t match {
    case u: UserDefinedType[_] =>
      u.sqlType match {
        case s: StructType => s.fields.map(_.dataType).toSeq == stored
        case _ => false
      }
    case _ => false
  }
}
