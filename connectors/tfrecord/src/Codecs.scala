package tfspark.tfrecord

import java.io.{BufferedInputStream, FileNotFoundException, IOException, InputStream, OutputStream}
import java.util.Locale

import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{ChecksumFileSystem, FSDataInputStream, FileSystem, Path}
import org.apache.hadoop.io.compress.{BZip2Codec, BlockDecompressorStream, CompressionCodec, CompressionCodecFactory}
import org.apache.hadoop.io.compress.{DefaultCodec, GzipCodec}
import org.apache.hadoop.mapreduce.JobContext
import org.apache.hadoop.mapreduce.lib.output.FileOutputFormat
import org.apache.hadoop.util.ReflectionUtils
import org.apache.spark.sql.catalyst.util.CompressionCodecs

/** Compression of whole files, as in Hadoop and TensorFlow. */
object Codecs {
  private val BufferBytes = 1 << 16

  // Small, because readers have their own buffer.
  private val SmallBuffer = 1 << 12

  /** Returns the class name of a codec from its short name (one of Spark's, zlib or zstd) or its class name. */
  def className(name: String): Option[String] = name.toLowerCase(Locale.ROOT) match {
    case "none" | "uncompressed" => None
    case "zlib" => className("deflate")
    case "zstd" | "zstandard" => Some(classOf[ZstdCodec].getName)
    case _ => Option(CompressionCodecs.getCodecClassName(name))
  }

  /** Returns the codec for the extension of the file name, or null. */
  def of(path: Path, conf: Configuration): CompressionCodec = of(path, new CompressionCodecFactory(conf))

  def of(path: Path, known: CompressionCodecFactory): CompressionCodec =
    if (ZstdCodec.knows(path.getName)) new ZstdCodec else known.getCodec(path)

  /** Opens a file and decompresses it. If the compressed data ends early, reading it fails. */
  def open(path: Path, conf: Configuration): InputStream = {
    val in = openRaw(path, conf)
    try
      of(path, conf) match {
        case null | _: GzipCodec => sniff(in, conf).getOrElse(in)
        case codec => decompressed(in, codec)
      }
    catch {
      case e: Throwable =>
        in.close()
        throw (e match {
          case missing: FileNotFoundException => missing
          case io: IOException => Errors.of(s"cannot read $path: ${Errors.reason(io)}", io)
          case other => other
        })
    }
  }

  private def decompressed(in: InputStream, codec: CompressionCodec): InputStream = codec match {
    case _: BZip2Codec =>
      // Hadoop's own codec reads a file that is not bzip2 as empty, and does not notice a missing end of a stream.
      new BZip2CompressorInputStream(new BufferedInputStream(in, BufferBytes), true)
    case _: DefaultCodec | _: ZstdCodec => codec.createInputStream(in)
    case other =>
      val decompressor = other.createDecompressor()
      if (decompressor == null) other.createInputStream(in)
      else
        other.createInputStream(in, decompressor) match {
          case _: BlockDecompressorStream => new BlockInputStream(in, decompressor)
          case stream => stream
        }
  }

  /** Creates a file with the job's compression. */
  def create(path: Path, context: JobContext): OutputStream = {
    val out = withoutSidecars(path.getFileSystem(context.getConfiguration)).create(path, false)
    codecOf(context).fold[OutputStream](out)(_.createOutputStream(out))
  }

  /** Returns the file extension of the job's compression, or an empty string. */
  def extension(context: JobContext): String = codecOf(context).fold("")(_.getDefaultExtension)

  private def codecOf(context: JobContext): Option[CompressionCodec] =
    if (!FileOutputFormat.getCompressOutput(context)) None
    else {
      val codec = FileOutputFormat.getOutputCompressorClass(context, classOf[GzipCodec])
      Some(ReflectionUtils.newInstance(codec, context.getConfiguration))
    }

  /** Opens a file without decompression. */
  def openRaw(path: Path, conf: Configuration): FSDataInputStream =
    withoutSidecars(path.getFileSystem(conf)).open(path, SmallBuffer)

  /**
   * Returns the file system without checksum files. Hadoop's local file system keeps checksums in a file beside each
   * file, and computes and checks them in small blocks. TFRecords have their own checksums for every byte, and
   * compressed files have those of their format.
   */
  private def withoutSidecars(fs: FileSystem): FileSystem = fs match {
    case c: ChecksumFileSystem => c.getRawFileSystem
    case _ => fs
  }

  /**
   * Returns the decompressed stream of a file that begins like gzip or zlib and not with a valid record header, else
   * None. TensorFlow's writer compresses files under any name, so the extension does not tell.
   *
   * @param in a stream at the beginning of the file; it is returned to the beginning after the check
   */
  def sniff(in: FSDataInputStream, conf: Configuration): Option[InputStream] = {
    val head = new Array[Byte](Framing.HeaderBytes)
    var n = 0
    var got = 0
    while (n < head.length && got >= 0) {
      got = in.read(head, n, head.length - n)
      if (got > 0) n += got
    }
    in.seek(0)
    val (first, second) = (head(0) & 0xff, head(1) & 0xff)
    if (n < 2 || n == head.length && isHeader(head)) None
    else if (first == 0x1f && second == 0x8b) Some(decompressed(in, codec(classOf[GzipCodec], conf)))
    else if ((first & 0x0f) == 8 && (first << 8 | second) % 31 == 0)
      Some(decompressed(in, codec(classOf[DefaultCodec], conf)))
    else None
  }

  /** Hadoop's streams read all members of a file and refuse other data after the first; Java's own may stop there. */
  private def codec(of: Class[_ <: CompressionCodec], conf: Configuration): CompressionCodec =
    ReflectionUtils.newInstance(of, conf)

  private def isHeader(head: Array[Byte]): Boolean = {
    val stored = java.nio.ByteBuffer.wrap(head).order(java.nio.ByteOrder.LITTLE_ENDIAN).getInt(8)
    Framing.maskedCrc(Framing.crc32c(), head, 0, 8) == stored
  }
}
