package tfspark.tfrecord

import java.nio.{ByteBuffer, ByteOrder}

/** The kinds of lists that a tf.train.Feature can hold, by their field number in feature.proto. */
object Kind {
  val Unset = 0
  val Bytes = 1
  val Floats = 2
  val Ints = 3

  def name(kind: Int): String = kind match {
    case Bytes => "a BytesList"
    case Floats => "a FloatList"
    case Ints => "an Int64List"
    case _ => "no list"
  }
}

/**
 * The values of one tf.train.Feature, read into arrays that are reused.
 *
 * Packed and unpacked encodings are both read, as protobuf requires.
 */
final class FeatureValues {
  private val wire = new Wire
  private var bytes: Array[Byte] = Array.emptyByteArray
  private var words: ByteBuffer = ByteBuffer.wrap(bytes)
  private var lists = 0
  private var listStarts = new Array[Int](4)
  private var listEnds = new Array[Int](4)

  var kind: Int = Kind.Unset
  var count: Int = 0
  var longs: Array[Long] = new Array[Long](16)
  var floats: Array[Float] = new Array[Float](16)

  /** Where in the record each value of a BytesList begins and ends. */
  var starts: Array[Int] = new Array[Int](16)
  var ends: Array[Int] = new Array[Int](16)

  /** Where the floats begin in the record if they are one packed block; else -1, and they are in `floats`. */
  var packedAt: Int = -1

  /**
   * Finds the list in the message from `start` until `end`. By protobuf's rules for a oneof, a list of another kind
   * replaces the one before, and a second list of the same kind is appended to it.
   */
  def open(record: Array[Byte], start: Int, end: Int): Unit = {
    if (bytes ne record) {
      bytes = record
      words = ByteBuffer.wrap(record).order(ByteOrder.LITTLE_ENDIAN)
    }
    kind = Kind.Unset
    count = 0
    lists = 0
    wire.reset(record, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if ((tag & 7) == 2 && tag >>> 3 <= 3) {
        wire.enter()
        if (kind != tag >>> 3) lists = 0
        kind = tag >>> 3
        noteList(wire.position, wire.fieldEnd)
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
  }

  private def noteList(start: Int, end: Int): Unit = {
    if (lists == listStarts.length) {
      listStarts = java.util.Arrays.copyOf(listStarts, lists * 2)
      listEnds = java.util.Arrays.copyOf(listEnds, lists * 2)
    }
    listStarts(lists) = start
    listEnds(lists) = end
    lists += 1
  }

  /** Reads all values; floats in one packed block stay where they are. */
  def readAll(): Unit = {
    count = 0
    packedAt = -1
    var i = 0
    while (i < lists) {
      wire.reset(bytes, listStarts(i), listEnds(i))
      kind match {
        case Kind.Ints => readInts()
        case Kind.Floats => readFloats()
        case _ => readBytes()
      }
      i += 1
    }
  }

  private def readInts(): Unit = {
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == 0x0a) {
        wire.enter()
        val outer = wire.end
        wire.end = wire.fieldEnd
        while (wire.hasMore) appendLong()
        wire.end = outer
      } else if (tag == 0x08) {
        appendLong()
      } else wire.skip(tag)
    }
  }

  private def readFloats(): Unit = {
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == 0x0a) {
        wire.enter()
        val size = wire.fieldEnd - wire.position
        if (size % 4 != 0) throw new RecordFault(s"a packed list of floats has $size bytes")
        if (count == 0 && lists == 1 && wire.fieldEnd == wire.end) {
          packedAt = wire.position
          count = size / 4
        } else appendFloats(wire.position, size / 4)
        wire.position = wire.fieldEnd
      } else if (tag == 0x0d) {
        if (wire.end - wire.position < 4) throw new RecordFault("a float is truncated")
        appendFloats(wire.position, 1)
        wire.position += 4
      } else wire.skip(tag)
    }
  }

  private def appendFloats(at: Int, n: Int): Unit = {
    if (floats.length < count + n) floats = java.util.Arrays.copyOf(floats, math.max(count + n, floats.length * 2))
    var i = 0
    while (i < n) {
      floats(count + i) = words.getFloat(at + 4 * i)
      i += 1
    }
    count += n
  }

  private def readBytes(): Unit = {
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == 0x0a) {
        wire.enter()
        if (count == starts.length) {
          starts = java.util.Arrays.copyOf(starts, count * 2)
          ends = java.util.Arrays.copyOf(ends, count * 2)
        }
        starts(count) = wire.position
        ends(count) = wire.fieldEnd
        count += 1
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
  }

  def float(i: Int): Float = if (packedAt >= 0) words.getFloat(packedAt + 4 * i) else floats(i)

  def double(i: Int): Double = if (kind == Kind.Floats) float(i).toDouble else longs(i).toDouble

  /** The bytes of the record that contains the values. */
  def record: Array[Byte] = bytes

  private def appendLong(): Unit = {
    if (count == longs.length) longs = java.util.Arrays.copyOf(longs, count * 2)
    longs(count) = wire.varint()
    count += 1
  }
}
