package tfspark.tfrecord

import java.io.{InputStream, OutputStream}

import com.github.luben.zstd.{ZstdInputStream, ZstdOutputStream}
import org.apache.hadoop.io.compress.{CompressionCodec, CompressionInputStream, CompressionOutputStream}
import org.apache.hadoop.io.compress.{Compressor, Decompressor}

/** Zstandard by the library that Spark ships; Hadoop's own codec needs native Hadoop libraries built with Zstandard. */
final class ZstdCodec extends CompressionCodec {
  override def getDefaultExtension: String = ZstdCodec.Extension

  override def createOutputStream(out: OutputStream): CompressionOutputStream = {
    val compressed = new ZstdOutputStream(out)
    new CompressionOutputStream(compressed) {
      override def write(b: Int): Unit = compressed.write(b)
      override def write(bytes: Array[Byte], from: Int, n: Int): Unit = compressed.write(bytes, from, n)
      // The frame ends when the stream is closed.
      override def finish(): Unit = ()
      override def resetState(): Unit = throw new UnsupportedOperationException
    }
  }

  override def createInputStream(in: InputStream): CompressionInputStream = {
    val plain = new ZstdInputStream(in)
    new CompressionInputStream(in) {
      override def read(): Int = plain.read()
      override def read(bytes: Array[Byte], from: Int, n: Int): Int = plain.read(bytes, from, n)
      override def resetState(): Unit = throw new UnsupportedOperationException
      override def close(): Unit = plain.close()
    }
  }

  override def createOutputStream(out: OutputStream, c: Compressor): CompressionOutputStream = createOutputStream(out)
  override def createInputStream(in: InputStream, d: Decompressor): CompressionInputStream = createInputStream(in)
  override def getCompressorType: Class[_ <: Compressor] = null
  override def createCompressor(): Compressor = null
  override def getDecompressorType: Class[_ <: Decompressor] = null
  override def createDecompressor(): Decompressor = null
}

object ZstdCodec {
  val Extension = ".zst"

  /** Returns whether a file with this name is compressed with Zstandard. */
  def knows(name: String): Boolean = name.endsWith(Extension) || name.endsWith(".zstd")
}
