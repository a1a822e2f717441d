package tfspark.tfrecord

import java.io.{BufferedInputStream, FileNotFoundException, IOException, InputStream, OutputStream}
import java.util.Locale
import java.util.zip.CRC32C

import org.apache.commons.compress.compressors.bzip2.BZip2CompressorInputStream

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{ChecksumFileSystem, FSDataInputStream, FileSystem, Path}
import org.apache.hadoop.io.compress.{BZip2Codec, BlockDecompressorStream, CompressionCodec, CompressionCodecFactory}
import org.apache.hadoop.io.compress.{DefaultCodec, GzipCodec}
import org.apache.hadoop.mapreduce.JobContext
import org.apache.hadoop.mapreduce.lib.output.FileOutputFormat
import org.apache.hadoop.util.ReflectionUtils
import org.apache.spark.sql.catalyst.util.CompressionCodecs

/** Compression of whole files, as Hadoop and TensorFlow do it. */
object Codecs {
  private val BufferBytes = 1 << 16

  // Readers bring a buffer of their own.
  private val SmallBuffer = 1 << 12

  /** Returns the class of a codec given by a short name (zlib and zstd besides Spark's) or by its class. */
  def className(name: String): Option[String] = name.toLowerCase(Locale.ROOT) match {
    case "none" | "uncompressed" => None
    case "zlib" => className("deflate")
    case "zstd" | "zstandard" => Some(classOf[ZstdCodec].getName)
    case _ => Option(CompressionCodecs.getCodecClassName(name))
  }

  /** Returns the codec that is known by the end of the file's name, or null. */
  def of(path: Path, conf: Configuration): CompressionCodec = of(path, new CompressionCodecFactory(conf))

  def of(path: Path, known: CompressionCodecFactory): CompressionCodec =
    if (ZstdCodec.knows(path.getName)) new ZstdCodec else known.getCodec(path)

  /** Opens a file and undoes its compression. Compressed data that end early are an error to whoever reads them. */
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
      // Hadoop's own takes what is no bzip2 for an empty file, and does not miss the end of a stream.
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

  /** Creates a file, compressed as the job says. */
  def create(path: Path, context: JobContext): OutputStream = {
    val out = withoutSidecars(path.getFileSystem(context.getConfiguration)).create(path, false)
    codecOf(context).fold[OutputStream](out)(_.createOutputStream(out))
  }

  /** Returns what the names of the job's files end with because of their compression. */
  def extension(context: JobContext): String = codecOf(context).fold("")(_.getDefaultExtension)

  private def codecOf(context: JobContext): Option[CompressionCodec] =
    if (!FileOutputFormat.getCompressOutput(context)) None
    else {
      val codec = FileOutputFormat.getOutputCompressorClass(context, classOf[GzipCodec])
      Some(ReflectionUtils.newInstance(codec, context.getConfiguration))
    }

  /** Opens a file as it is. */
  def openRaw(path: Path, conf: Configuration): FSDataInputStream =
    withoutSidecars(path.getFileSystem(conf)).open(path, SmallBuffer)

  /**
   * Hadoop's local file system keeps checksums in files beside each file, and computes and checks them block by little
   * block. TFRecords carry their own, for every byte, and compressed files those of their format.
   */
  private def withoutSidecars(fs: FileSystem): FileSystem = fs match {
    case c: ChecksumFileSystem => c.getRawFileSystem
    case _ => fs
  }

  /**
   * TensorFlow's writer does not care for names, so a file that does not begin with a valid header but as gzip or zlib
   * do is taken for one of these.
   *
   * @param in stands at its beginning, then and after
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

  /** Hadoop's streams read all of several members, and nothing else behind the first; Java's own may stop after it. */
  private def codec(of: Class[_ <: CompressionCodec], conf: Configuration): CompressionCodec =
    ReflectionUtils.newInstance(of, conf)

  private def isHeader(head: Array[Byte]): Boolean = {
    val stored = java.nio.ByteBuffer.wrap(head).order(java.nio.ByteOrder.LITTLE_ENDIAN).getInt(8)
    Framing.maskedCrc(new CRC32C, head, 0, 8) == stored
  }
}
