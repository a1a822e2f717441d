package tfspark.tfrecord

import java.io.InputStream
import java.util.Locale
import java.util.zip.{CRC32C, GZIPInputStream, InflaterInputStream}

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FSDataInputStream, Path}
import org.apache.hadoop.io.compress.CompressionCodecFactory
import org.apache.spark.sql.catalyst.util.CompressionCodecs

/** Compression of whole files, as Hadoop and TensorFlow do it. */
object Codecs {
  private val BufferBytes = 1 << 16

  /** Returns the class of a codec given by a short name (zlib and zstd besides Spark's) or by its class. */
  def className(name: String): Option[String] = name.toLowerCase(Locale.ROOT) match {
    case "none" | "uncompressed" => None
    case "zlib" => className("deflate")
    case "zstd" | "zstandard" => Some("org.apache.hadoop.io.compress.ZStandardCodec")
    case _ => Option(CompressionCodecs.getCodecClassName(name))
  }

  /**
   * Opens a file and undoes its compression.
   *
   * Hadoop knows a codec by the end of the file's name. TensorFlow's writer does not care for names, so a file that
   * does not begin with a valid header but as gzip or zlib do is taken for one of these.
   */
  def open(path: Path, conf: Configuration): InputStream = {
    val in = path.getFileSystem(conf).open(path)
    try {
      val codec = new CompressionCodecFactory(conf).getCodec(path)
      if (codec != null && !codec.getClass.getName.endsWith(".GzipCodec")) codec.createInputStream(in)
      else sniff(in)
    } catch {
      case e: Throwable =>
        in.close()
        throw e
    }
  }

  private def sniff(in: FSDataInputStream): InputStream = {
    val head = new Array[Byte](Framing.HeaderBytes)
    var n = 0
    var got = 0
    while (n < head.length && got >= 0) {
      got = in.read(head, n, head.length - n)
      if (got > 0) n += got
    }
    in.seek(0)
    val (first, second) = (head(0) & 0xff, head(1) & 0xff)
    if (n < 2 || n == head.length && isHeader(head)) in
    else if (first == 0x1f && second == 0x8b) new GZIPInputStream(in, BufferBytes)
    else if ((first & 0x0f) == 8 && (first << 8 | second) % 31 == 0)
      new InflaterInputStream(in, new java.util.zip.Inflater(), BufferBytes)
    else in
  }

  private def isHeader(head: Array[Byte]): Boolean = {
    val stored = java.nio.ByteBuffer.wrap(head).order(java.nio.ByteOrder.LITTLE_ENDIAN).getInt(8)
    Framing.maskedCrc(new CRC32C, head, 0, 8) == stored
  }
}
