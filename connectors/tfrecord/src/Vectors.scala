package tfspark.tfrecord

import org.apache.spark.sql.types._

/** Spark ML's vectors, recognized by their storage type, so that the connector does not need Spark ML's jar. */
object Vectors {
  val Sparse: Byte = 0
  val Dense: Byte = 1

  private val stored = Seq(ByteType, IntegerType, ArrayType(IntegerType, false), ArrayType(DoubleType, false))

  /** Returns the names of the features of a sparsely written vector column, as tf.io.SparseFeature takes them. */
  def sparseNames(column: String): Seq[String] = Seq(s"$column/indices", s"$column/values", s"$column/size")

  /** Checks that no other column has the name of one of these features. */
  def checkSparseNames(schema: StructType): Unit =
    for (f <- schema if isVector(f.dataType); name <- sparseNames(f.name) if schema.fieldNames.contains(name))
      throw new IllegalArgumentException(
        s"With vectors=sparse, the vector '${f.name}' needs the feature '$name', which is also a column. Rename one.")

  def isVector(t: DataType): Boolean = t match {
    case u: UserDefinedType[_] =>
      u.sqlType match {
        case s: StructType => s.fields.map(_.dataType).toSeq == stored
        case _ => false
      }
    case _ => false
  }
}
