package tfspark.tfrecord

import java.io.{Closeable, FileNotFoundException, IOException, InputStream, InterruptedIOException, OutputStream}
import java.nio.{ByteBuffer, ByteOrder}
import java.nio.channels.ClosedByInterruptException
import java.util.zip.Checksum

import org.apache.hadoop.hdfs.BlockMissingException
import org.apache.hadoop.security.AccessControlException
import org.apache.hadoop.util.PureJavaCrc32C

/**
 * The TFRecord file format: per record, a little-endian 64-bit length, the masked CRC32C of the length, the data, and
 * the masked CRC32C of the data. See tensorflow/core/lib/io/record_writer.h and tensorflow/core/lib/hash/crc32c.h.
 */
object Framing {
  val HeaderBytes = 12
  val FooterBytes = 4

  /** The largest size of an array of bytes, less a margin. */
  val MostBytes: Long = Int.MaxValue - 1024L

  private val MaskDelta = 0xa282ead8

  /** Masks a CRC. CRCs of data that contains CRCs are weak, so TensorFlow rotates each CRC and adds a constant. */
  def mask(crc: Int): Int = ((crc >>> 15) | (crc << 17)) + MaskDelta

  /** Returns a new CRC32C: Java's own, which uses the processor's instruction, or Hadoop's on Java 8, which has none. */
  def crc32c(): Checksum = newCrc()

  private val newCrc: () => Checksum =
    try {
      val made = Class.forName("java.util.zip.CRC32C").getConstructor()
      () => made.newInstance().asInstanceOf[Checksum]
    } catch { case _: ClassNotFoundException => () => new PureJavaCrc32C }

  def maskedCrc(crc: Checksum, bytes: Array[Byte], offset: Int, length: Int): Int = {
    crc.reset()
    crc.update(bytes, offset, length)
    mask(crc.getValue.toInt)
  }
}

/**
 * Reads the records of a stream one after the other into a buffer that it reuses.
 *
 * Memory use depends on the bytes that the stream really holds: a length above `maxRecordBytes` is refused, and for a
 * smaller one memory is allocated only as its bytes arrive.
 *
 * @param in             the stream, positioned at `from`, where a record begins
 * @param name           name of the file, for messages
 * @param verifyChecksum whether to check the CRC of the data; the CRC of the length is always checked
 * @param strict         whether data that does not match its CRC is an error; if not, `intact` tells
 * @param until          records that begin at this offset or later are not read
 */
final class RecordReader(
    in: InputStream,
    val name: String,
    verifyChecksum: Boolean,
    maxRecordBytes: Int,
    strict: Boolean = true,
    from: Long = 0L,
    until: Long = Long.MaxValue)
    extends Closeable {
  import Framing._

  private val crc = crc32c()
  private var buffer = new Array[Byte](RecordReader.BufferBytes)
  private var words = wordsOf(buffer)
  private var position = 0
  private var limit = 0
  private var base = from

  // How many bytes to read at least when some are missing: few if skipped records are much larger.
  private var ahead = RecordReader.BufferBytes

  /** Offset of the current record's header in the (uncompressed) file. */
  var offset: Long = from

  /** Whether the data matches its CRC; true if the CRC is not checked. */
  var intact: Boolean = true

  /** The current record is bytes `start` until `end` of `bytes`; they are valid until the next call. */
  var start: Int = 0
  var end: Int = 0
  def bytes: Array[Byte] = buffer

  private def wordsOf(bytes: Array[Byte]) = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)

  /** Moves to the next record; returns false at the end of the file. */
  def next(): Boolean = {
    val length = header()
    if (length < 0) return false
    if (length > maxRecordBytes)
      fail(s"the record has $length bytes; the limit is $maxRecordBytes (option maxRecordBytes)")
    val n = length.toInt
    val whole = HeaderBytes + n + FooterBytes
    if (!require(whole)) truncated(s"a record of $n bytes")
    start = position + HeaderBytes
    end = start + n
    intact = !verifyChecksum || maskedCrc(crc, buffer, start, n) == words.getInt(end)
    if (!intact && strict)
      fail("the data does not match its checksum (the option verifyChecksum=false reads it without the check)")
    position += whole
    true
  }

  /** Skips the next record without reading its data; returns false at the end of the file. */
  def skip(): Boolean = {
    val length = header()
    if (length < 0) return false
    if (length > Long.MaxValue - HeaderBytes - FooterBytes) fail(s"the record has an invalid length of $length bytes")
    var rest = HeaderBytes + length + FooterBytes
    val here = math.min(rest, (limit - position).toLong)
    position += here.toInt
    rest -= here
    if (rest > RecordReader.LeastSkipped) {
      // The last byte is read, because a skip beyond the end of a file may succeed.
      var skipped = 1L
      while (rest > 1 && skipped > 0) {
        skipped =
          try in.skip(rest - 1)
          catch { case e: Exception => unreadable(e) }
        base += skipped
        rest -= skipped
      }
      ahead = RecordReader.HeaderAhead
    } else if (rest > 0) ahead = RecordReader.BufferBytes
    finishSkipping(rest, length)
  }

  private def finishSkipping(bytes: Long, length: Long): Boolean = {
    var rest = bytes
    while (rest > 0) {
      val n = math.min(rest, RecordReader.BufferBytes.toLong).toInt
      if (!require(n)) truncated(s"a record of $length bytes")
      position += n
      rest -= n
    }
    true
  }

  /** Returns the length of the record at the current position, or -1 at the end of the file or part. */
  private def header(): Long = {
    offset = base + position
    if (offset >= until) return -1L
    if (!require(HeaderBytes)) {
      if (limit == position) return -1L
      truncated("the header of a record")
    }
    if (maskedCrc(crc, buffer, position, 8) != words.getInt(position + 8))
      fail("this is not a TFRecord file: the length does not match its checksum")
    val length = words.getLong(position)
    if (length < 0) fail(s"the record has an invalid length of ${java.lang.Long.toUnsignedString(length)} bytes")
    length
  }

  /** Makes `n` bytes from the current position available; returns false if the stream ends before. */
  private def require(n: Int): Boolean = limit - position >= n || fill(n)

  private def fill(n: Int): Boolean = {
    if (buffer.length - CanonicalDecoder.Slack - position < n) {
      System.arraycopy(buffer, position, buffer, 0, limit - position)
      base += position
      limit -= position
      position = 0
    }
    while (limit - position < n) {
      if (limit == buffer.length - CanonicalDecoder.Slack) {
        val wanted = math.max(n.toLong + Framing.HeaderBytes + CanonicalDecoder.Slack, RecordReader.BufferBytes)
        buffer = java.util.Arrays.copyOf(buffer, math.min(math.min(wanted, buffer.length * 2L), MostBytes).toInt)
        words = wordsOf(buffer)
      }
      val room = buffer.length - CanonicalDecoder.Slack - limit
      val got =
        try in.read(buffer, limit, math.min(room, math.max(n - (limit - position), ahead)))
        catch { case e: Exception => unreadable(e) }
      if (got < 0) return false
      limit += got
    }
    true
  }

  private def truncated(what: String): Nothing =
    fail(s"the file ends within $what: it is truncated or still being written")

  /**
   * Adds the file and the offset to an exception of the stream. Exceptions for missing or forbidden files and for
   * interrupts stay as they are, because Spark handles them in its own way.
   */
  private def unreadable(e: Exception): Nothing = e match {
    case _: FileNotFoundException | _: AccessControlException | _: BlockMissingException => throw e
    case _: InterruptedIOException | _: ClosedByInterruptException | _: InterruptedException => throw e
    case _ => fail(s"cannot read the rest of the file: ${Errors.reason(e)}", e)
  }

  def fail(what: String, cause: Throwable = null): Nothing =
    throw Errors.of(s"$name, record at offset $offset: $what", cause)

  override def close(): Unit = {
    in.close()
    buffer = Array.emptyByteArray
    position = 0
    limit = 0
  }
}

object RecordReader {
  val BufferBytes: Int = 1 << 18

  private val LeastSkipped = 1 << 14
  private val HeaderAhead = 1 << 12
}

/** Writes records; a buffer collects several of them for each write to the stream. */
final class RecordWriter(out: OutputStream, name: String) extends Closeable {
  import Framing._

  private val sink = new ByteSink
  private val crc = crc32c()

  /** Writes the record that `build` appends to the sink. */
  def write(build: RecordBuilder): Unit =
    try {
      sink.ensure(HeaderBytes)
      sink.position += HeaderBytes
      val start = sink.position
      build.appendTo(sink)
      finish(start)
    } catch { case e: RecordFault => throw Errors.of(s"$name: ${e.getMessage}") }

  private def finish(start: Int): Unit = {
    val end = sink.position
    sink.ensure(FooterBytes)
    val words = ByteBuffer.wrap(sink.bytes).order(ByteOrder.LITTLE_ENDIAN)
    val from = start - HeaderBytes
    words.putLong(from, (end - start).toLong)
    words.putInt(from + 8, maskedCrc(crc, sink.bytes, from, 8))
    words.putInt(end, maskedCrc(crc, sink.bytes, start, end - start))
    sink.position = end + FooterBytes
    if (sink.position >= RecordWriter.BufferBytes) flush()
  }

  private def flush(): Unit = {
    out.write(sink.bytes, 0, sink.position)
    sink.position = 0
  }

  override def close(): Unit =
    try flush()
    finally out.close()
}

/** Appends one record to a sink. */
trait RecordBuilder {
  def appendTo(sink: ByteSink): Unit
}

object RecordWriter {
  private val BufferBytes = 1 << 17
}
