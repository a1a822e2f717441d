package tfspark.tfrecord

import java.util.Locale

import org.apache.spark.sql.catalyst.util.CaseInsensitiveMap
import org.apache.spark.sql.types._

/** The content of a record: a message of tensorflow/core/example/example.proto, or any bytes. */
sealed abstract class RecordType(val name: String) extends Serializable {

  /** Checks, before any task runs, that records of this type can hold these columns. */
  def check(schema: StructType): Unit = schema.fields.foreach { f =>
    if (!holds(f.dataType))
      throw new IllegalArgumentException(
        s"recordType=$name cannot hold column '${f.name}' of type ${f.dataType.simpleString}. $hint")
  }

  protected def holds(t: DataType): Boolean
  protected def hint: String
}

object RecordType {
  case object Example extends RecordType("Example") {
    override protected def holds(t: DataType): Boolean = isFeature(t)
    override protected def hint: String =
      "It holds numbers, booleans, dates, timestamps, strings, binaries, arrays of them, and ML vectors; arrays of " +
        "arrays need recordType=SequenceExample, structs can be spread over columns."
  }

  case object SequenceExample extends RecordType("SequenceExample") {
    override protected def holds(t: DataType): Boolean = isFeature(t) || isFeatureList(t)
    override protected def hint: String =
      "It holds numbers, booleans, dates, timestamps, strings, binaries, arrays of them, arrays of such arrays, and " +
        "ML vectors."
  }

  case object ByteArray extends RecordType("ByteArray") {
    override def check(schema: StructType): Unit =
      if (schema.length != 1 || !holds(schema.head.dataType))
        throw new IllegalArgumentException(
          s"recordType=ByteArray needs exactly one column of type binary or string, got ${schema.simpleString}. $hint")
    override protected def holds(t: DataType): Boolean = t == BinaryType || t.isInstanceOf[StringType]
    override protected def hint: String = "Select the column to write."
  }

  def isFeature(t: DataType): Boolean = t match {
    case ArrayType(e, _) => FieldWriter.isScalar(e)
    case _ => FieldWriter.isScalar(t) || Vectors.isVector(t)
  }

  def isFeatureList(t: DataType): Boolean = t match {
    case ArrayType(ArrayType(e, _), _) => FieldWriter.isScalar(e)
    case _ => false
  }

  /** Returns the message for records of type `read` without any feature that a column could hold. */
  def withoutFeature(records: Long, read: RecordType): String = {
    val others = if (read == Example) "recordType=SequenceExample or ByteArray" else "recordType=ByteArray"
    s"none of $records records has a feature; try $others"
  }

  def of(name: String): RecordType =
    Seq(Example, SequenceExample, ByteArray)
      .find(_.name.equalsIgnoreCase(name))
      .getOrElse(
        throw new IllegalArgumentException(
          s"recordType must be Example, SequenceExample or ByteArray, got '$name'."))
}

/** The options of one read or write; names and values are case-insensitive, as everywhere in Spark. */
final class TFRecordOptions(parameters: Map[String, String]) extends Serializable {
  private val given = CaseInsensitiveMap(parameters)

  val recordType: RecordType = RecordType.of(given.getOrElse("recordType", "Example"))

  /** Whether to check the CRC of the data; the CRC of the length is always checked. */
  val verifyChecksum: Boolean = boolean("verifyChecksum", default = true)

  private val largestRecord: Option[Int] = given.get("maxRecordBytes").map { text =>
    val n = number("maxRecordBytes", text)
    if (n < 1 || n > TFRecordOptions.MostBytes)
      throw new IllegalArgumentException(s"maxRecordBytes must be from 1 to ${TFRecordOptions.MostBytes}, got $n.")
    n.toInt
  }

  /**
   * The largest size of a record, in bytes, because a record must fit into memory as a whole. The default is a quarter
   * of the heap of the JVM that reads.
   */
  def maxRecordBytes: Int =
    largestRecord.getOrElse(math.min(TFRecordOptions.MostBytes, Runtime.getRuntime.maxMemory() / 4).toInt)

  /** How much of the files to read for the schema: sample, full or none. */
  val inferSchema: String = {
    val mode = oneOf("inferSchema", "sample", "full", "none", "true", "false")
    TFRecordOptions.OtherOptions.getOrElse(mode, mode)
  }

  /** How to handle a record that cannot be decoded: permissive, dropmalformed or failfast. */
  val mode: String = oneOf("mode", "failfast", "permissive", "dropmalformed")

  /** Whether malformed records are tolerated, that is, they are not errors. */
  def tolerant: Boolean = mode != "failfast"

  /** The column for the bytes of malformed records; used if the schema has it and the mode is permissive. */
  val corruptColumn: Option[String] = given.get("columnNameOfCorruptRecord")

  /** Whether an ML vector is three features (indices, values and size) instead of a list of all values. */
  val sparseVectors: Boolean = oneOf("vectors", "dense", "sparse") == "sparse"

  /** Whether several tasks may read an uncompressed file. */
  val splitFiles: Boolean = boolean("splitFiles", default = true)

  /** Spark decides where files are written. In spark-tfrecord, `local` lets each executor write to its own disk. */
  if (oneOf("writeLocality", "distributed", "local") == "local")
    throw new IllegalArgumentException(
      "writeLocality=local is not supported: Spark's commit protocol cannot see files on local disks of executors. " +
        "Write to a file system that all executors share.")

  /** Codec of written files, given as a short name or a class name; None means uncompressed. */
  val compression: Option[String] =
    given.get("compression").orElse(given.get("codec")).filter(_.nonEmpty).flatMap(Codecs.className)

  /** Returns whether files that cannot be read are skipped: the option decides if it is given, else Spark's setting. */
  def ignores(option: String, setting: => Boolean): Boolean = given.get(option).fold(setting)(_.toBoolean)

  /** Returns the column for malformed records in the schema's spelling; `default` is the session's name for it. */
  def corruptColumnOf(schema: StructType, default: => String, caseSensitive: Boolean): String = {
    val name = corruptColumn.getOrElse(default)
    if (caseSensitive) name else schema.fieldNames.find(_.equalsIgnoreCase(name)).getOrElse(name)
  }

  /** Returns the option in lower case; the first choice is the default. */
  private def oneOf(name: String, choices: String*): String = {
    val chosen = given.getOrElse(name, choices.head).toLowerCase(Locale.ROOT)
    if (!choices.contains(chosen))
      throw new IllegalArgumentException(s"$name must be one of ${choices.mkString(", ")}, got '$chosen'.")
    chosen
  }

  private def boolean(name: String, default: Boolean): Boolean = given.get(name) match {
    case None => default
    case Some(text) if text.equalsIgnoreCase("true") => true
    case Some(text) if text.equalsIgnoreCase("false") => false
    case Some(text) => throw new IllegalArgumentException(s"$name must be true or false, got '$text'.")
  }

  private def number(name: String, text: String): Long =
    try text.trim.toLong
    catch {
      case _: NumberFormatException => throw new IllegalArgumentException(s"$name must be a number, got '$text'.")
    }
}

object TFRecordOptions {

  /** The largest record that fits into an array of bytes, with its framing and the bytes that are read beyond it. */
  private val MostBytes = Framing.MostBytes - 128L

  private val OtherOptions = Map("true" -> "sample", "false" -> "none")
}
