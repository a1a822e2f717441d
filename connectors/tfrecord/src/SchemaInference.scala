package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8

import scala.collection.mutable

import org.apache.hadoop.fs.FileStatus
import org.apache.spark.sql.{AnalysisException, SparkSession}
import org.apache.spark.sql.catalyst.FileSourceOptions
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types._
import org.apache.spark.util.SerializableConfiguration

/**
 * Infers the schema of files from their records.
 *
 * The kinds of values seen under each name are collected. Those of several records or files are joined; their order
 * does not change the result:
 *
 *  - Int64List is bigint, FloatList is float, both together are double;
 *  - BytesList is string if all its values are UTF-8, else binary;
 *  - a name with exactly one value in every record is a single value, else an array;
 *  - a name in the feature lists of a SequenceExample is an array of arrays.
 *
 * BytesList together with a list of numbers is an error. Names for which no record sets a list are left out. Columns
 * are sorted by name, because a protobuf map has no order.
 */
object SchemaInference {
  val SampledFiles = 16
  val SampledRecords = 1000

  private val logger = org.slf4j.LoggerFactory.getLogger(classOf[TFRecordFileFormat])

  private val Ints = 1
  private val Floats = 2
  private val Text = 4
  private val Binary = 8
  private val Many = 16
  private val InList = 32
  private val InContext = 64

  type Evidence = Map[String, Int]

  /** The kinds by name, the number of records, and what is wrong with the first malformed record, if there is one. */
  private type Seen = (Evidence, Long, Option[String])

  def infer(spark: SparkSession, parameters: Map[String, String], files: Seq[FileStatus]): Option[StructType] = {
    val options = new TFRecordOptions(parameters)
    if (options.recordType == RecordType.ByteArray) return Some(StructType(Seq(StructField("byteArray", BinaryType))))
    if (options.inferSchema == "none")
      throw new IllegalArgumentException("inferSchema=none needs a schema. Pass one with spark.read.schema(...).")
    val session = spark.sessionState.conf
    val look = new InferenceTask(
      options,
      if (options.inferSchema == "full") Long.MaxValue else SampledRecords.toLong,
      options.ignores(FileSourceOptions.IGNORE_CORRUPT_FILES, session.ignoreCorruptFiles),
      options.ignores(FileSourceOptions.IGNORE_MISSING_FILES, session.ignoreMissingFiles))
    val conf = spark.sessionState.newHadoopConfWithOptions(parameters)
    val nonEmpty = files.filter(_.getLen > 0).sortBy(_.getPath.toString)
    val tasks = InferenceTask.plan(spark, options, look.ignoreCorrupt, conf, nonEmpty)
    val seen: Seq[Seen] =
      if (tasks.length <= 1) tasks.flatten.map(look(_, conf))
      else {
        val shared = new SerializableConfiguration(conf)
        spark.sparkContext
          .parallelize(tasks, tasks.length)
          .map(_.map(look(_, shared.value)).reduce(SchemaInference.joined))
          .collect()
          .toSeq
      }
    if (seen.isEmpty) None
    else {
      val (evidence, records, fault) = seen.reduce(SchemaInference.joined)
      val schema = schemaOf(evidence)
      if (records > 0 && schema.isEmpty)
        throw new IllegalArgumentException(
          s"${nonEmpty.head.getPath.getParent}: ${RecordType.withoutFeature(records, options.recordType)}" +
            fault.fold("")(f => s". $f"))
      if (!options.tolerant) fault.foreach(f => throw Errors.of(f))
      if (schema.isEmpty) None else Some(readable(schema, options, session))
    }
  }

  def joined(a: Seen, b: Seen): Seen = (join(a._1, b._1), a._2 + b._2, a._3.orElse(b._3))

  /** Refuses names that differ only in case if case is ignored; leaves out the column for malformed records. */
  private def readable(schema: StructType, options: TFRecordOptions, session: SQLConf): StructType = {
    val caseSensitive = session.caseSensitiveAnalysis
    if (!caseSensitive)
      for (same <- schema.fieldNames.groupBy(NameTable.lower).values.toSeq.sortBy(_.head) if same.length > 1)
        throw new AnalysisException(
          errorClass = "COLUMN_ALREADY_EXISTS",
          messageParameters = Map(
            "columnName" -> (s"`${same.last}`, which differs from the feature `${same.head}` only in case " +
              "(Hint: spark.sql.caseSensitive=true keeps both),")))
    val corrupt = options.corruptColumnOf(schema, session.columnNameOfCorruptRecord, caseSensitive)
    if (schema.fieldNames.contains(corrupt))
      logger.warn(
        s"feature '$corrupt' is left out of the schema, because the column for malformed records has this name. To " +
          "read it, set columnNameOfCorruptRecord to another name.")
    StructType(schema.filterNot(_.name == corrupt))
  }

  def join(a: Evidence, b: Evidence): Evidence =
    b.foldLeft(a) { case (m, (name, bits)) => m.updated(name, m.getOrElse(name, 0) | bits) }

  def schemaOf(evidence: Evidence): StructType = StructType(
    evidence.toSeq.sortBy(_._1).flatMap { case (name, bits) => typeOf(name, bits).map(StructField(name, _)) })

  private def typeOf(name: String, bits: Int): Option[DataType] = {
    val numbers = bits & (Ints | Floats)
    val bytes = bits & (Text | Binary)
    if (numbers != 0 && bytes != 0)
      throw new IllegalArgumentException(
        s"Feature '$name' is a BytesList in some records and a list of numbers in others: no column can hold both. " +
          "Pass a schema without it.")
    if ((bits & InList) != 0 && (bits & InContext) != 0 && (numbers | bytes) != 0)
      throw new IllegalArgumentException(
        s"'$name' is a feature list in some records and a context feature in others: no column can hold both.")
    val element = (numbers, bytes) match {
      case (Ints, _) => Some(LongType)
      case (Floats, _) => Some(FloatType)
      case (n, _) if n != 0 => Some(DoubleType)
      case (_, Text) => Some(StringType)
      case (_, b) if b != 0 => Some(BinaryType)
      case _ => None
    }
    element.map { e =>
      if ((bits & InList) != 0) ArrayType(ArrayType(e)) else if ((bits & Many) != 0) ArrayType(e) else e
    }
  }

  /** Collects the kinds of the features of records. */
  private[tfrecord] final class Observer(recordType: RecordType) {
    val seen = mutable.HashMap.empty[String, Int]

    private var oddName = false
    private val values = new FeatureValues

    /** Adds a record; returns what is wrong with its names, or null. */
    def record(bytes: Array[Byte], start: Int, end: Int): String = {
      oddName = false
      each(bytes, start, end) { (tag, from, until) =>
        if (tag == Wire.delimited(1)) entries(bytes, from, until)((n, f, u) => note(n, InContext | kind(bytes, f, u)))
        else if (tag == Wire.delimited(2) && recordType == RecordType.SequenceExample)
          entries(bytes, from, until) { (name, f, u) =>
            note(name, InList)
            each(bytes, f, u)((t, a, b) => if (t == Wire.delimited(1)) note(name, InList | kind(bytes, a, b)))
          }
      }
      if (oddName) "the name of a feature is not UTF-8, so this is not a tf.Example; try recordType=ByteArray" else null
    }

    private def note(name: String, bits: Int): Unit = seen.update(name, seen.getOrElse(name, 0) | bits)

    private def kind(bytes: Array[Byte], start: Int, end: Int): Int = {
      values.open(bytes, start, end)
      values.readAll()
      val many = if (values.kind != Kind.Unset && values.count != 1) Many else 0
      many | (values.kind match {
        case Kind.Ints => Ints
        case Kind.Floats => Floats
        case Kind.Bytes => if (isText(bytes)) Text else Binary
        case _ => 0
      })
    }

    private def isText(bytes: Array[Byte]): Boolean = (0 until values.count).forall { i =>
      Utf8.isValid(bytes, values.starts(i), values.ends(i) - values.starts(i))
    }

    private def entries(bytes: Array[Byte], start: Int, end: Int)(f: (String, Int, Int) => Unit): Unit =
      each(bytes, start, end) { (tag, from, until) =>
        if (tag == Wire.delimited(1)) {
          var name = ""
          var (a, b) = (from, from)
          var odd = false
          var values = 0
          each(bytes, from, until) { (t, x, y) =>
            if (t == Wire.delimited(1)) {
              odd = !Utf8.isValid(bytes, x, y - x)
              name = if (odd) "" else new String(bytes, x, y - x, UTF_8)
            }
            else if (t == Wire.delimited(2)) {
              values += 1
              a = x
              b = y
            }
          }
          if (values > 1) throw new RecordFault(s"feature '$name': ${MapScanner.TwoValues}")
          if (odd) oddName = true else f(name, a, b)
        }
      }

    private def each(bytes: Array[Byte], start: Int, end: Int)(f: (Int, Int, Int) => Unit): Unit = {
      val wire = new Wire
      wire.reset(bytes, start, end)
      while (wire.hasMore) {
        val tag = wire.tag()
        if ((tag & 7) == 2) {
          wire.enter()
          val until = wire.fieldEnd
          f(tag, wire.position, until)
          wire.position = until
        } else wire.skip(tag)
      }
    }
  }
}
