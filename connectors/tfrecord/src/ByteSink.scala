package tfspark.tfrecord

import org.apache.spark.unsafe.Platform

/** A growing array of bytes, with methods that write protobuf's primitives. */
final class ByteSink {
  var bytes = new Array[Byte](1 << 16)
  var position = 0

  def ensure(n: Long): Unit = if (bytes.length - position < n) grow(n)

  private def grow(n: Long): Unit = {
    val needed = position + n
    if (needed > Framing.MostBytes) throw new RecordFault("the record of the row would be larger than 2 GB")
    bytes = java.util.Arrays.copyOf(bytes, math.min(math.max(needed, bytes.length * 2L), Framing.MostBytes).toInt)
  }

  def byte(b: Int): Unit = {
    bytes(position) = b.toByte
    position += 1
  }

  def varint(value: Long): Unit = {
    var v = value
    while ((v & ~0x7fL) != 0) {
      byte((v.toInt & 0x7f) | 0x80)
      v >>>= 7
    }
    byte(v.toInt)
  }

  def put(source: Array[Byte], from: Int, n: Int): Unit = {
    System.arraycopy(source, from, bytes, position, n)
    position += n
  }

  /** Copies `n` bytes of memory that Spark addresses by an object and an offset. */
  def putMemory(base: AnyRef, offset: Long, n: Int): Unit = {
    Platform.copyMemory(base, offset, bytes, Platform.BYTE_ARRAY_OFFSET.toLong + position, n.toLong)
    position += n
  }

  def float(value: Float): Unit = {
    val bits = java.lang.Float.floatToRawIntBits(value)
    byte(bits)
    byte(bits >>> 8)
    byte(bits >>> 16)
    byte(bits >>> 24)
  }
}
