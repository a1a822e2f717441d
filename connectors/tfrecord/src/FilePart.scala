package tfspark.tfrecord

import java.io.InputStream

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FSDataInputStream, Path}

/**
 * The records of a file that begin within bytes `start` until `end`; Spark gives such a part to a task.
 *
 * TFRecord files have no synchronization marks, and a search for a header with a valid checksum may find one in a
 * TFRecord file that is stored within a record. Splitting is safe because each part checks the next one: after its last
 * record it knows where the next record begins, and it repeats the search of the next part. The first part begins at 0.
 * So, by induction, either every part begins at a record, or one part fails with an error. A query that stops early has
 * checked only the parts that it read to their end.
 */
final class FilePart(path: Path, conf: Configuration, start: Long, end: Long, size: Long) {
  private val whole = start == 0 && end >= size

  /** Opens the records; returns None if no record begins in this part. */
  def open(options: TFRecordOptions): Option[(RecordReader, () => Unit)] =
    if (start == end) None
    else if (whole) Some((reader(Codecs.open(path, conf), options, 0L, Long.MaxValue), () => ()))
    else {
      val in = Codecs.openRaw(path, conf)
      try {
        val compressed = Codecs.sniff(in, conf)
        val from = if (start == 0) 0L else if (compressed.isDefined) -1L else finder(in).first(start, end)
        if (from < 0) {
          in.close()
          None
        } else {
          if (compressed.isEmpty) in.seek(from)
          val until = if (compressed.isDefined) Long.MaxValue else end
          val records = reader(compressed.getOrElse(in), options, from, until)
          Some((records, () => if (compressed.isEmpty) checkNext(in, records)))
        }
      } catch {
        case e: Throwable =>
          in.close()
          throw e
      }
    }

  private def reader(in: InputStream, options: TFRecordOptions, from: Long, until: Long) =
    new RecordReader(
      in,
      path.toString,
      options.verifyChecksum,
      options.maxRecordBytes,
      strict = !options.tolerant,
      from,
      until)

  private def finder(in: FSDataInputStream) =
    new BoundaryFinder(in, size, math.max(FilePart.LeastHorizon, (end - start) / 8))

  private def checkNext(in: FSDataInputStream, records: RecordReader): Unit = {
    val reached = records.offset
    if (end < size) {
      val found = finder(in).first(end, math.max(reached + 1, end))
      val expected = if (reached < size) reached else -1L
      if (found != expected)
        records.fail(
          s"the file cannot be split at offset $end: reading from the part before, the next record begins here, " +
            s"but a search from there finds ${if (found < 0) "none" else s"one at offset $found"}. The file is " +
            "damaged, or its records contain TFRecords; the option splitFiles=false reads it in one piece")
    }
  }
}

object FilePart {
  private val LeastHorizon = 4L << 20
}

/**
 * Searches for record boundaries from any offset in a file.
 *
 * A valid header checksum proves little, because a record may contain a TFRecord file. But the chain of records of such
 * an inner file breaks before the record that contains it ends. So an offset is trusted if the chain of headers from
 * there reaches the end of the file, or is longer than `horizon` bytes.
 */
final class BoundaryFinder(in: FSDataInputStream, size: Long, horizon: Long) {
  import Framing._

  private val crc = crc32c()
  private val window = new Array[Byte](1 << 16)
  private val words = java.nio.ByteBuffer.wrap(window).order(java.nio.ByteOrder.LITTLE_ENDIAN)
  private var base = 0L
  private var limit = 0

  // The offsets of broken chains: a chain that reaches one of them breaks too. So the search takes linear time.
  private val broken = scala.collection.mutable.HashSet.empty[Long]

  /** Returns the first trusted offset in `from` until `until`, or -1. */
  def first(from: Long, until: Long): Long = {
    var p = from
    while (p < math.min(until, size)) {
      if (lengthAt(p) >= 0 && trusted(p)) return p
      p += 1
    }
    -1L
  }

  private def trusted(start: Long): Boolean = {
    val chain = scala.collection.mutable.ArrayBuffer.empty[Long]
    var p = start
    while (p != size) {
      val n = if (broken(p)) -1L else lengthAt(p)
      if (n < 0) {
        broken ++= chain
        return false
      }
      if (p - start > horizon && chain.nonEmpty) return true
      chain += p
      p += HeaderBytes + n + FooterBytes
    }
    true
  }

  /** Returns the length of the record whose header may be at `offset`, or -1 if no header can be there. */
  private def lengthAt(offset: Long): Long = {
    if (offset > size - HeaderBytes - FooterBytes) return -1L
    if (offset < base || offset + HeaderBytes > base + limit) load(offset)
    val i = (offset - base).toInt
    val n = words.getLong(i)
    if (n < 0 || n > size - offset - HeaderBytes - FooterBytes) -1L
    else if (maskedCrc(crc, window, i, 8) != words.getInt(i + 8)) -1L
    else n
  }

  private def load(offset: Long): Unit = {
    in.seek(offset)
    base = offset
    limit = 0
    val n = math.min(window.length.toLong, size - offset).toInt
    in.readFully(window, 0, n)
    limit = n
  }
}
