package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8
import java.util.Arrays

/** Finds the column of a feature's name, given as bytes of a record, in a hash table. */
final class NameTable(names: Array[String]) {
  private val keys: Array[Array[Byte]] = names.map(_.getBytes(UTF_8))
  private val mask = Integer.highestOneBit(math.max(4, names.length * 4)) * 2 - 1
  private val slots: Array[Int] = {
    val table = Array.fill(mask + 1)(-1)
    for (i <- keys.indices) {
      var s = hash(keys(i), 0, keys(i).length) & mask
      while (table(s) >= 0) s = (s + 1) & mask
      table(s) = i
    }
    table
  }

  /** Returns the column of the name that is bytes `start` until `end`, or -1. */
  def find(bytes: Array[Byte], start: Int, end: Int): Int = {
    var s = hash(bytes, start, end) & mask
    while (slots(s) >= 0) {
      val key = keys(slots(s))
      if (Arrays.equals(key, 0, key.length, bytes, start, end)) return slots(s)
      s = (s + 1) & mask
    }
    -1
  }

  private def hash(bytes: Array[Byte], start: Int, end: Int): Int = {
    var h = end - start
    var i = start
    while (i < end) {
      h = h * 31 + bytes(i)
      i += 1
    }
    h ^ (h >>> 15)
  }
}
