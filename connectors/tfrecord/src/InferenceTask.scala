package tfspark.tfrecord

import java.io.{FileNotFoundException, IOException}

import scala.collection.mutable

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, Path}
import org.apache.hadoop.io.compress.CompressionCodecFactory
import org.apache.spark.sql.SparkSession

/** A part of a file to read: the path, where the part begins and ends, and the size of the whole file. */
final case class InferencePart(path: String, start: Long, end: Long, size: Long)

/**
 * Reads records to infer the schema. Its result consists only of classes that every JVM knows.
 *
 * @param most          how many records of each part to read at most
 * @param ignoreCorrupt whether to use what was read of a file that cannot be read further, instead of failing
 * @param ignoreMissing whether to skip a missing file instead of failing
 */
final class InferenceTask(
    options: TFRecordOptions,
    most: Long,
    val ignoreCorrupt: Boolean,
    ignoreMissing: Boolean)
    extends Serializable {

  def apply(part: InferencePart, conf: Configuration): (Map[String, Int], Long, Option[String]) = {
    val observer = new SchemaInference.Observer(options.recordType)
    var n = 0L
    var fault: Option[String] = None
    try
      new FilePart(new Path(part.path), conf, part.start, part.end, part.size).open(options).foreach {
        case (records, atEnd) =>
          try {
            while (n < most && records.next()) {
              val wrong = if (records.intact) look(records, observer) else null
              if (wrong != null && fault.isEmpty)
                fault = Some(s"${records.name}, record at offset ${records.offset}: $wrong")
              n += 1
            }
            if (n < most) atEnd()
          } finally records.close()
      }
    catch {
      case e: FileNotFoundException => if (!ignoreMissing) throw e
      case e @ (_: IOException | _: RuntimeException) =>
        if (!ignoreCorrupt) throw e
        InferenceTask.logger.warn(s"schema inference skips the rest of ${part.path}: ${Errors.reason(e)}")
    }
    (observer.seen.toMap, n, fault)
  }

  /** Returns what is wrong with a record, or null. */
  private def look(records: RecordReader, observer: SchemaInference.Observer): String =
    try observer.record(records.bytes, records.start, records.end)
    catch { case e: RecordFault => e.getMessage }
}

object InferenceTask {

  /** With inferSchema=full, the driver itself reads files of at most this many bytes together, which saves a job. */
  private val DriverBytes = 16L << 20

  /** If there are more files than this, a job reads them. */
  private val MostFilesOnDriver = 4

  private val logger = org.slf4j.LoggerFactory.getLogger(classOf[TFRecordFileFormat])

  /** Returns the file parts that each task reads; if there is only one task, the driver runs it. */
  def plan(
      spark: SparkSession,
      options: TFRecordOptions,
      ignoreCorrupt: Boolean,
      conf: Configuration,
      files: Seq[FileStatus]): Seq[Seq[InferencePart]] = {
    val whole = options.inferSchema == "full"
    val chosen = if (whole) files else spread(files, SchemaInference.SampledFiles)
    val bytes = chosen.map(_.getLen).sum
    if (!whole) {
      val parts = chosen.map(f => InferencePart(f.getPath.toString, 0L, f.getLen, f.getLen))
      if (parts.length <= MostFilesOnDriver) Seq(parts).filter(_.nonEmpty) else parts.map(Seq(_))
    } else if (bytes <= DriverBytes && chosen.length <= MostFilesOnDriver)
      Seq(chosen.map(f => InferencePart(f.getPath.toString, 0L, f.getLen, f.getLen))).filter(_.nonEmpty)
    else {
      // Packed in the same way as Spark packs files into the partitions of a scan.
      val session = spark.sessionState.conf
      val cost = session.filesOpenCostInBytes
      val share = (bytes + cost * chosen.length) / math.max(1, spark.sparkContext.defaultParallelism)
      val most = math.max(1L, math.min(session.filesMaxPartitionBytes, math.max(cost, share)))
      val codecs = new CompressionCodecFactory(conf)
      val splits = options.splitFiles && !ignoreCorrupt
      def partBytes(f: FileStatus) = if (splits && Codecs.of(f.getPath, codecs) == null) most else f.getLen
      packed(chosen.flatMap(f => split(f, partBytes(f))), most, cost)
    }
  }

  private def split(file: FileStatus, most: Long): Seq[InferencePart] =
    (0L until file.getLen by most).map { start =>
      InferencePart(file.getPath.toString, start, math.min(start + most, file.getLen), file.getLen)
    }

  private def packed(parts: Seq[InferencePart], most: Long, cost: Long): Seq[Seq[InferencePart]] = {
    val tasks = mutable.ArrayBuffer.empty[mutable.ArrayBuffer[InferencePart]]
    var filled = Long.MaxValue
    for (p <- parts) {
      if (filled > most - math.min(most, p.end - p.start)) {
        tasks += mutable.ArrayBuffer.empty
        filled = 0L
      }
      tasks.last += p
      filled += p.end - p.start + cost
    }
    tasks.map(_.toSeq).toSeq
  }

  /** Returns at most `n` elements, evenly spread. */
  private def spread[A](all: Seq[A], n: Int): Seq[A] =
    if (all.length <= n) all else (0 until n).map(i => all((i.toLong * all.length / n).toInt))
}
