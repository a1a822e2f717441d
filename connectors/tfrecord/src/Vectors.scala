package tfspark.tfrecord

import org.apache.spark.sql.types._

/** Spark ML's vectors, known by how they are stored, so that the connector needs no jar of Spark ML. */
object Vectors {
  val Sparse: Byte = 0
  val Dense: Byte = 1

  private val stored = Seq(ByteType, IntegerType, ArrayType(IntegerType, false), ArrayType(DoubleType, false))

  /** The features of a vector column that is written sparsely, as tf.io.SparseFeature takes them. */
  def sparseNames(column: String): Seq[String] = Seq(s"$column/indices", s"$column/values", s"$column/size")

  /** Checks that these features are not at the same time those of other columns. */
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
