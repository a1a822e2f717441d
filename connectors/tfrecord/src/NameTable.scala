package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8
import java.util.Arrays

/**
 * Finds the column of a feature's name, given as bytes of a record.
 *
 * Records that one program has written have their features mostly in the same order, so the name that followed last
 * time is tried first; a hash table answers where that fails.
 */
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

  // What was at each place of the last record: the name, requested or not, and its column or -1.
  private var lastNames = new Array[Array[Byte]](64)
  private var lastColumns = new Array[Int](64)
  private var place = 0

  /** Called before the first name of a record. */
  def rewind(): Unit = place = 0

  /** Returns the column of the name that is bytes `start` until `end`, or -1. */
  def find(bytes: Array[Byte], start: Int, end: Int): Int = {
    val p = place
    place += 1
    if (p < lastNames.length) {
      val guess = lastNames(p)
      if (guess != null && Arrays.equals(guess, 0, guess.length, bytes, start, end)) return lastColumns(p)
      val column = lookUp(bytes, start, end)
      lastNames(p) = if (column >= 0) keys(column) else Arrays.copyOfRange(bytes, start, end)
      lastColumns(p) = column
      column
    } else {
      if (p < NameTable.MostPlaces) {
        lastNames = Arrays.copyOf(lastNames, p * 2)
        lastColumns = Arrays.copyOf(lastColumns, p * 2)
      }
      lookUp(bytes, start, end)
    }
  }

  private def lookUp(bytes: Array[Byte], start: Int, end: Int): Int = {
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

object NameTable {
  val MostPlaces = 4096
}
