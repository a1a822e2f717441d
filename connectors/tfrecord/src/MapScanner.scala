package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8

/**
 * Finds the requested entries of a protobuf map from names to messages: tf.train.Features, and the feature lists of a
 * tf.train.SequenceExample. Other entries are not parsed. If a name occurs twice, its last entry is used, as in every
 * such map.
 */
final class MapScanner(names: Array[String], caseSensitive: Boolean) {
  val table = new NameTable(names, caseSensitive)
  private val wire = new Wire
  private val entry = new Wire

  /** Where the value of each name begins in the record; -1 if the record lacks the name. */
  val starts = new Array[Int](names.length)
  val ends = new Array[Int](names.length)

  // For each name: how the record spells it, and another spelling in the same record, if case is ignored.
  private val keyStarts = new Array[Int](names.length)
  private val keyEnds = new Array[Int](names.length)
  private val others = new Array[String](names.length)
  private val hasTwoValues = new Array[Boolean](names.length)

  /** Must be called before the first map of a record. */
  def begin(): Unit = {
    java.util.Arrays.fill(starts, -1)
    java.util.Arrays.fill(others.asInstanceOf[Array[AnyRef]], null)
    java.util.Arrays.fill(hasTwoValues, false)
  }

  /** Returns whether the record has entry `i`; throws if two differ only in case, or if one has two values. */
  def has(i: Int): Boolean = {
    if (others(i) != null)
      throw new RecordFault(
        s"the record also has '${others(i)}', which differs only in case. Hint: set spark.sql.caseSensitive=true")
    // Protobuf merges the two; TensorFlow's parser of examples refuses the record.
    if (hasTwoValues(i)) throw new RecordFault(MapScanner.TwoValues)
    starts(i) >= 0
  }

  /** Finds the entries of one map; a record may have several maps, which are merged. */
  def scan(bytes: Array[Byte], start: Int, end: Int): Unit = {
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1)) {
        wire.enter()
        note(bytes, wire.position, wire.fieldEnd)
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
  }

  private def note(bytes: Array[Byte], start: Int, end: Int): Unit = {
    entry.reset(bytes, start, end)
    // An entry without a key has the empty name; an entry without a value has an empty message.
    var (keyStart, keyEnd, from, until) = (start, start, start, start)
    var values = 0
    while (entry.hasMore) {
      val tag = entry.tag()
      if (tag == Wire.delimited(1)) {
        entry.enter()
        keyStart = entry.position
        keyEnd = entry.fieldEnd
        entry.position = keyEnd
      } else if (tag == Wire.delimited(2)) {
        entry.enter()
        from = entry.position
        until = entry.fieldEnd
        entry.position = until
        values += 1
        table.sawValue = true
      } else entry.skip(tag)
    }
    val column = table.find(bytes, keyStart, keyEnd)
    if (column >= 0) {
      if (starts(column) >= 0 && table.folds) compareSpelling(bytes, keyStart, keyEnd, column)
      keyStarts(column) = keyStart
      keyEnds(column) = keyEnd
      starts(column) = from
      ends(column) = until
      if (values > 1) hasTwoValues(column) = true
    }
  }

  private def compareSpelling(bytes: Array[Byte], start: Int, end: Int, column: Int): Unit = {
    val (from, until) = (keyStarts(column), keyEnds(column))
    if (until - from != end - start || !Wire.areEqual(bytes, from, bytes, start, end - start)) {
      val spellings = Seq(new String(bytes, from, until - from, UTF_8), new String(bytes, start, end - start, UTF_8))
      others(column) = spellings.find(_ != names(column)).orNull
    }
  }
}

object MapScanner {
  val TwoValues = "its entry in the record has two values"
}
