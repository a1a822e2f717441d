package tfspark.tfrecord

import java.io.{EOFException, IOException, InputStream}

import org.apache.hadoop.io.compress.Decompressor

/**
 * Decompresses Hadoop's block format, which `.snappy` and `.lz4` files have.
 *
 * A block is the size of its data, followed by chunks until the data is complete. A chunk is its size, followed by its
 * compressed bytes. Hadoop's own stream treats a file that ends within a block as complete, and allocates as many bytes
 * as a size claims.
 */
final class BlockInputStream(in: InputStream, decompressor: Decompressor) extends InputStream {
  import BlockInputStream._

  private var blockBytes = 0L
  private var produced = 0L
  private var chunk = new Array[Byte](PieceBytes)
  private val single = new Array[Byte](1)

  override def read(): Int = if (read(single, 0, 1) < 0) -1 else single(0) & 0xff

  override def read(into: Array[Byte], offset: Int, length: Int): Int = {
    if (length == 0) return 0
    while (true) {
      if (produced == blockBytes) {
        if (!beginBlock()) return -1
      } else {
        val n = decompressor.decompress(into, offset, length)
        if (n > 0) {
          produced += n
          if (produced > blockBytes)
            throw new IOException(s"a compressed block has more data than its $blockBytes bytes")
          return n
        }
        if (decompressor.needsInput()) readChunk()
      }
    }
    -1
  }

  private def beginBlock(): Boolean = {
    val size = readSize(atEnd = true)
    if (size < 0) return false
    blockBytes = size
    produced = 0
    true
  }

  private def readChunk(): Unit = {
    val size = readSize(atEnd = false).toInt
    var got = 0
    while (got < size) {
      if (got == chunk.length) chunk = java.util.Arrays.copyOf(chunk, math.min(chunk.length * 2L, size).toInt)
      val n = in.read(chunk, got, math.min(chunk.length, size) - got)
      if (n < 0) throw new EOFException(CutOff)
      got += n
    }
    decompressor.setInput(chunk, 0, size)
  }

  /** Returns a size, or -1 at the end of the file if `atEnd` allows the file to end here. */
  private def readSize(atEnd: Boolean): Long = {
    val first = in.read()
    if (first < 0 && atEnd) return -1L
    val rest = Array.fill(3)(in.read())
    if (first < 0 || rest.exists(_ < 0)) throw new EOFException(CutOff)
    val size = rest.foldLeft(first)((n, b) => n << 8 | b)
    if (size < 0 || (size == 0 && !atEnd))
      throw new IOException(s"a compressed block has an invalid length of $size bytes")
    size.toLong
  }

  override def close(): Unit =
    try in.close()
    finally decompressor.end()
}

object BlockInputStream {
  private val PieceBytes = 1 << 16
  private val CutOff = "the compressed data ends within a block"
}
