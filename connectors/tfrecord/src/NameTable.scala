package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8
import java.util.Locale

/**
 * Finds the column for a feature's name, which is given as bytes of a record, in a hash table.
 *
 * @param caseSensitive whether names that differ only in case are different names, see `spark.sql.caseSensitive`
 */
final class NameTable(val names: Array[String], caseSensitive: Boolean) {
  import NameTable._

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

  /** Whether case is ignored. Columns that differ only in case were defined where case matters, so it matters here. */
  val folds: Boolean = !caseSensitive && names.map(lower).distinct.length == names.length

  // Only names with bytes beyond ASCII are looked up here.
  private lazy val lowered: Map[String, Int] = names.zipWithIndex.map { case (n, i) => lower(n) -> i }.toMap

  private val found = new Array[Boolean](names.length)
  private val near = new Array[String](names.length)

  /** Whether an entry with a value was seen, under any name. */
  var sawValue: Boolean = false

  /** Returns the column whose name is bytes `start` until `end`, or -1. */
  def find(bytes: Array[Byte], start: Int, end: Int): Int = {
    var s = hash(bytes, start, end) & mask
    var candidate = -1
    while (slots(s) >= 0) {
      val key = keys(slots(s))
      if (key.length == end - start) {
        if (Wire.areEqual(key, 0, bytes, start, key.length)) return found(slots(s), true)
        if (equalFolded(key, bytes, start)) candidate = slots(s)
      }
      s = (s + 1) & mask
    }
    if (candidate < 0 && names.length > 0 && hasOtherLetters(bytes, start, end))
      candidate = lowered.getOrElse(lower(new String(bytes, start, end - start, UTF_8)), -1)
    if (candidate < 0 || folds) found(candidate, candidate >= 0)
    else {
      if (near(candidate) == null) near(candidate) = new String(bytes, start, end - start, UTF_8)
      -1
    }
  }

  private def found(column: Int, yes: Boolean): Int = {
    if (yes) found(column) = true
    column
  }
}

object NameTable {

  /** Returns the columns that were never found, each with a name in the records that differs only in case. */
  def nearMisses(tables: Seq[NameTable]): Seq[(String, String)] = {
    val found = tables.flatMap(t => t.names.indices.filter(i => t.found(i)).map(i => t.names(i))).toSet
    tables
      .flatMap(t => t.names.indices.filter(i => t.near(i) != null).map(i => t.names(i) -> t.near(i)))
      .filterNot { case (name, _) => found(name) }
      .distinct
  }

  def lower(name: String): String = name.toLowerCase(Locale.ROOT)

  private def fold(b: Byte): Int = if (b >= 'A' && b <= 'Z') b + 32 else b

  private def hash(bytes: Array[Byte], start: Int, end: Int): Int = {
    var h = end - start
    var i = start
    while (i < end) {
      h = h * 31 + fold(bytes(i))
      i += 1
    }
    h ^ (h >>> 15)
  }

  private def equalFolded(key: Array[Byte], bytes: Array[Byte], start: Int): Boolean = {
    var i = 0
    while (i < key.length && fold(key(i)) == fold(bytes(start + i))) i += 1
    i == key.length
  }

  private def hasOtherLetters(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    var i = start
    while (i < end && bytes(i) >= 0) i += 1
    i < end
  }
}
