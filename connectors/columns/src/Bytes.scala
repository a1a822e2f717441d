package tfspark.columns

import org.apache.spark.unsafe.Platform

/** A growing array of bytes; `clear` keeps its memory for the next batch. */
final class Bytes {
  private var array = new Array[Byte](64)

  var size = 0

  /** Make room for more bytes. */
  def reserve(more: Int): Unit = if (more > array.length - size) grow(more)

  private def grow(more: Int): Unit =
    array = java.util.Arrays.copyOf(array, Math.max(Math.addExact(size, more), Math.min(array.length * 2L, Bytes.Largest).toInt))

  def clear(): Unit = size = 0

  def putByte(value: Byte): Unit = {
    reserve(1)
    array(size) = value
    size += 1
  }

  def putShort(value: Short): Unit = {
    reserve(2)
    Platform.putShort(array, Platform.BYTE_ARRAY_OFFSET + size, value)
    size += 2
  }

  def putInt(value: Int): Unit = {
    reserve(4)
    Platform.putInt(array, Platform.BYTE_ARRAY_OFFSET + size, value)
    size += 4
  }

  def putLong(value: Long): Unit = {
    reserve(8)
    Platform.putLong(array, Platform.BYTE_ARRAY_OFFSET + size, value)
    size += 8
  }

  /** Append bytes from elsewhere in memory. */
  def put(base: AnyRef, offset: Long, length: Int): Unit = {
    reserve(length)
    Platform.copyMemory(base, offset, array, Platform.BYTE_ARRAY_OFFSET + size, length)
    size += length
  }

  /** Append bytes from elsewhere in memory, which must be readable there up to the next multiple of 8 bytes. */
  def putPadded(base: AnyRef, offset: Long, length: Int): Unit =
    if (length > Bytes.FewBytes) put(base, offset, length)
    else {
      // For a few bytes, the call of copyMemory takes longer than this loop.
      reserve(length + 7)
      val end = Platform.BYTE_ARRAY_OFFSET + size
      var i = 0
      while (i < length) {
        Platform.putLong(array, end + i, Platform.getLong(base, offset + i))
        i += 8
      }
      size += length
    }

  /** Append a byte `times` times. */
  def fill(value: Byte, times: Int): Unit = {
    reserve(times)
    java.util.Arrays.fill(array, size, size + times, value)
    size += times
  }

  def apply(index: Int): Byte = array(index)

  def update(index: Int, value: Byte): Unit = array(index) = value

  def copyTo(base: AnyRef, offset: Long): Unit = Platform.copyMemory(array, Platform.BYTE_ARRAY_OFFSET, base, offset, size)
}

object Bytes {
  private val Largest = Int.MaxValue - 16L
  private val FewBytes = 64
}

/** A growing array of bits, the lowest bit of each byte first, as in Arrow's format. */
final class Bits {
  val bytes = new Bytes
  private var count = 0

  def clear(): Unit = {
    bytes.clear()
    count = 0
  }

  def put(bit: Boolean): Unit = {
    val within = count & 7
    if (within == 0) bytes.putByte(0)
    if (bit) bytes(bytes.size - 1) = (bytes(bytes.size - 1) | (1 << within)).toByte
    count += 1
  }

  /** Append ones; there must be no bits yet. */
  def fill(times: Int): Unit = {
    bytes.fill(-1, times >> 3)
    count = times & ~7
    while (count < times) put(true)
  }
}
