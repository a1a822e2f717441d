package tfspark.tfrecord

import org.apache.spark.unsafe.Platform.BYTE_ARRAY_OFFSET
import org.apache.spark.unsafe.array.ByteArrayMethods

/**
 * A cursor over protobuf's wire format, see https://protobuf.dev/programming-guides/encoding.
 *
 * One mutable object reads one message after the other without allocating memory.
 */
final class Wire {
  var bytes: Array[Byte] = Array.emptyByteArray
  var position: Int = 0
  var end: Int = 0

  /** End of the length-delimited field that was last entered; the field begins at `position`. */
  var fieldEnd: Int = 0

  def reset(bytes: Array[Byte], start: Int, end: Int): Unit = {
    this.bytes = bytes
    this.position = start
    this.end = end
  }

  def hasMore: Boolean = position < end

  def varint(): Long = {
    if (position < end) {
      val b = bytes(position)
      if (b >= 0) {
        position += 1
        return b.toLong
      }
    }
    longVarint()
  }

  private def longVarint(): Long = {
    var value = 0L
    var shift = 0
    var p = position
    while (shift < 70) {
      if (p >= end) throw new RecordFault("a number is truncated")
      val b = bytes(p)
      p += 1
      value |= (b & 0x7fL) << shift
      if (b >= 0) {
        position = p
        return value
      }
      shift += 7
    }
    throw new RecordFault("a number has more than 10 bytes")
  }

  /** Reads a tag: field number times 8 plus wire type. */
  def tag(): Int = {
    val t = varint()
    if (t < 8 || t > 0xffffffffL) throw new RecordFault(s"$t is not a valid field tag")
    t.toInt
  }

  /** Reads the length of a length-delimited field; its bytes are then `position` until `fieldEnd`. */
  def enter(): Unit = {
    val n = varint()
    if (n < 0 || n > end - position) throw new RecordFault("a field is longer than its message")
    fieldEnd = position + n.toInt
  }

  /** Skips the value of a field. */
  def skip(tag: Int): Unit = (tag & 7) match {
    case 0 => varint()
    case 1 => advance(8)
    case 2 =>
      enter()
      position = fieldEnd
    case 5 => advance(4)
    case 3 => skipGroup(tag >>> 3, 0)
    case w => throw new RecordFault(s"$w is not a valid wire type")
  }

  private def skipGroup(field: Int, depth: Int): Unit = {
    if (depth > Wire.MaxDepth) throw new RecordFault("groups are nested too deep")
    while (true) {
      val t = tag()
      (t & 7) match {
        case 4 =>
          if (t >>> 3 != field) throw new RecordFault("a group is not closed")
          return
        case 3 => skipGroup(t >>> 3, depth + 1)
        case _ => skip(t)
      }
    }
  }

  private def advance(n: Int): Unit = {
    if (n > end - position) throw new RecordFault("a field is truncated")
    position += n
  }
}

object Wire {
  val MaxDepth = 100

  /** Tag of a length-delimited field. */
  def delimited(field: Int): Int = field << 3 | 2

  /** Returns whether `length` bytes are the same in two arrays, which must have as many. */
  def areEqual(one: Array[Byte], from: Int, other: Array[Byte], start: Int, length: Int): Boolean =
    ByteArrayMethods.arrayEquals(one, BYTE_ARRAY_OFFSET.toLong + from, other, BYTE_ARRAY_OFFSET.toLong + start, length)

  def varintSize(value: Long): Int = (70 - java.lang.Long.numberOfLeadingZeros(value | 1)) / 7
}
