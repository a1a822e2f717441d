package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8

import scala.collection.mutable

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, Path}
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.types.UTF8String
import org.apache.spark.util.SerializableConfiguration

/**
 * Finds the schema of files from their records.
 *
 * For each name it is noted what was seen; what was seen in several records or files is joined, in any order with the
 * same result:
 *
 *  - Int64List is bigint, FloatList float, both double;
 *  - BytesList is string if all its values are UTF-8, else binary;
 *  - with exactly one value in every record it is a single value, else an array;
 *  - in the feature lists of a SequenceExample it is an array of arrays.
 *
 * BytesList together with a list of numbers is an error. Names that no record sets a list for are left out. Columns
 * are in the order of their names, because a protobuf map has none.
 */
object SchemaInference {
  val SampledFiles = 16
  val SampledRecords = 1000

  /** More files than this are looked at by a Spark job. */
  private val MostFilesOnDriver = 4

  private val Ints = 1
  private val Floats = 2
  private val Text = 4
  private val Binary = 8
  private val Many = 16
  private val InList = 32
  private val InContext = 64

  type Evidence = Map[String, Int]

  def infer(spark: SparkSession, options: TFRecordOptions, files: Seq[FileStatus]): Option[StructType] = {
    if (options.recordType == RecordType.ByteArray) return Some(StructType(Seq(StructField("byteArray", BinaryType))))
    if (options.inferSchema == "none")
      throw new IllegalArgumentException("inferSchema=none needs a schema: spark.read.schema(...).")
    val whole = options.inferSchema == "full"
    val nonEmpty = files.filter(_.getLen > 0).sortBy(_.getPath.toString)
    val chosen = if (whole) nonEmpty else spread(nonEmpty, SampledFiles)
    val most = if (whole) Long.MaxValue else SampledRecords.toLong
    val conf = spark.sessionState.newHadoopConfWithOptions(Map.empty)
    val seen: Seq[Evidence] =
      if (chosen.length <= MostFilesOnDriver) chosen.map(f => look(f.getPath.toString, conf, options, most))
      else {
        val shared = new SerializableConfiguration(conf)
        spark.sparkContext
          .parallelize(chosen.map(_.getPath.toString), chosen.length)
          .map(path => look(path, shared.value, options, most))
          .collect()
          .toSeq
      }
    val all = seen.foldLeft(Map.empty[String, Int])(join)
    if (all.isEmpty) None else Some(schemaOf(all))
  }

  /** Takes at most `n` of them, evenly spread. */
  private def spread[A](all: Seq[A], n: Int): Seq[A] =
    if (all.length <= n) all else (0 until n).map(i => all((i.toLong * all.length / n).toInt))

  def join(a: Evidence, b: Evidence): Evidence =
    b.foldLeft(a) { case (m, (name, bits)) => m.updated(name, m.getOrElse(name, 0) | bits) }

  def schemaOf(evidence: Evidence): StructType = StructType(
    evidence.toSeq.sortBy(_._1).flatMap { case (name, bits) => typeOf(name, bits).map(StructField(name, _)) })

  private def typeOf(name: String, bits: Int): Option[DataType] = {
    val numbers = bits & (Ints | Floats)
    val bytes = bits & (Text | Binary)
    if (numbers != 0 && bytes != 0)
      throw new IllegalArgumentException(
        s"Feature '$name' is a BytesList in some records and a list of numbers in others: no column holds both. " +
          "Read it with a schema that leaves it out.")
    if ((bits & InList) != 0 && (bits & InContext) != 0)
      throw new IllegalArgumentException(
        s"'$name' is a feature list in some records and a context feature in others: no column holds both.")
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

  private def look(path: String, conf: Configuration, options: TFRecordOptions, most: Long): Evidence = {
    val file = new Path(path)
    val records = new RecordReader(
      Codecs.open(file, conf),
      path,
      options.verifyChecksum,
      options.maxRecordBytes,
      strict = !options.tolerant)
    try {
      val seen = mutable.HashMap.empty[String, Int]
      val observer = new Observer(seen, options.recordType)
      var n = 0L
      while (n < most && records.next()) {
        try if (records.intact) observer.record(records.bytes, records.start, records.end)
        catch { case e: RecordFault => if (!options.tolerant) records.fail(e.getMessage) }
        n += 1
      }
      seen.toMap
    } finally records.close()
  }

  /** Notes what the features of records are. */
  private final class Observer(seen: mutable.HashMap[String, Int], recordType: RecordType) {
    private val values = new FeatureValues

    def record(bytes: Array[Byte], start: Int, end: Int): Unit =
      each(bytes, start, end) { (tag, from, until) =>
        if (tag == Wire.delimited(1)) entries(bytes, from, until)((n, f, u) => note(n, InContext | kind(bytes, f, u)))
        else if (tag == Wire.delimited(2) && recordType == RecordType.SequenceExample)
          entries(bytes, from, until) { (name, f, u) =>
            note(name, InList)
            each(bytes, f, u)((t, a, b) => if (t == Wire.delimited(1)) note(name, InList | kind(bytes, a, b)))
          }
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
      UTF8String.fromBytes(bytes, values.starts(i), values.ends(i) - values.starts(i)).isValid
    }

    private def entries(bytes: Array[Byte], start: Int, end: Int)(f: (String, Int, Int) => Unit): Unit =
      each(bytes, start, end) { (tag, from, until) =>
        if (tag == Wire.delimited(1)) {
          var name = ""
          var (a, b) = (from, from)
          each(bytes, from, until) { (t, x, y) =>
            if (t == Wire.delimited(1)) name = new String(bytes, x, y - x, UTF_8)
            else if (t == Wire.delimited(2)) {
              a = x
              b = y
            }
          }
          f(name, a, b)
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
