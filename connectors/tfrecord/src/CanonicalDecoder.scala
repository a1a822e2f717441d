package tfspark.tfrecord

import java.nio.ByteOrder
import java.util.Arrays

import org.apache.spark.sql.catalyst.expressions.codegen.UnsafeRowWriter
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.Platform

/**
 * Decodes tf.train.Examples in the encoding of every known writer: each message consists of its one field, there are no
 * unknown fields, and no name occurs twice. It takes one pass, allocates no memory, and does not parse features that
 * were not requested.
 *
 * All other records, including damaged ones and those with a wrong kind of list, are left to [[FeaturesDecoder]], which
 * applies all of protobuf's rules and words the errors. So a doubtful record costs time, but never gives a wrong row.
 */
final class CanonicalDecoder(columns: Array[Column], row: UnsafeRowWriter, caseSensitive: Boolean) {
  import CanonicalDecoder._

  private val ordinals = columns.map(_.ordinal)
  private val shapes = columns.map(c => shapeOf(c.dataType))
  private val headers = shapes.map(headerOf)
  private val fields = columns.map(c => FieldWriter.of(c.dataType, row))
  private val layout = new RememberedLayout(columns.map(_.name), caseSensitive)

  // A missing vector may be there in another form, which this decoder does not look for.
  private val vectors = columns.map(c => Vectors.isVector(c.dataType))
  private val values = new FeatureValues

  // The number of the record in which each column was last seen.
  private val seenIn = new Array[Long](columns.length)
  private var record = 0L

  // The end of the length that was last read.
  private var at = 0

  // The number that was last read.
  private var number = 0L

  def table: NameTable = layout.table

  /** Returns false if the record is not in this encoding; the caller must then reset the row. */
  def decode(bytes: Array[Byte], start: Int, end: Int): Boolean =
    if (!littleEndian || end - start < 2 || bytes.length - end < Slack || bytes(start) != MapEntry) false
    else {
      val n = length(bytes, start + 1)
      if (n != end - at) false
      else
        try features(bytes, at, end)
        catch { case _: RecordFault => false }
    }

  private def features(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    record += 1
    layout.begin()
    var missing = columns.length
    var p = start
    while (p < end) {
      if (bytes(p) != MapEntry) return false
      val n = length(bytes, p + 1)
      p = at
      if (n < 0 || n > end - p) return false
      val until = p + n
      val column = layout.find(bytes, p, until)
      if (column >= 0) {
        if (seenIn(column) == record || !feature(bytes, layout.valueAt, until, column)) return false
        seenIn(column) = record
        missing -= 1
      } else if (column == RememberedLayout.Odd) return false
      p = until
    }
    if (missing > 0) {
      var c = 0
      while (c < columns.length) {
        if (seenIn(c) != record) {
          if (vectors(c)) return false
          row.setNullAt(ordinals(c))
        }
        c += 1
      }
    }
    true
  }

  /** Decodes a tf.train.Feature, beginning with its length. */
  private def feature(bytes: Array[Byte], start: Int, until: Int, c: Int): Boolean = {
    val size = until - start
    if (size > ShortHeader && size <= MostShort &&
      (Platform.getLong(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + start) & HeaderMask) ==
        headers(c) + size * HeaderStep) value(bytes, start + ShortHeader, until, c)
    else longFeature(bytes, start, until, c)
  }

  /** Decodes a feature that has more than one value, none, long or unpacked ones, or another kind of list. */
  private def longFeature(bytes: Array[Byte], start: Int, until: Int, c: Int): Boolean = {
    var n = length(bytes, start)
    var p = at
    if (n != until - p) return false
    if (n == 0) {
      row.setNullAt(ordinals(c))
      return true
    }
    val from = p
    val kind = bytes(p)
    n = length(bytes, p + 1)
    p = at
    if (n != until - p) return false
    val shape = shapes(c)
    if (shape == IsOther) {
      values.open(bytes, from, until)
      if (values.kind == Kind.Unset) return false
      fields(c).write(values, ordinals(c))
      return true
    }
    if (kind != kindOf(shape)) return false
    if (p == until) {
      row.setNullAt(ordinals(c))
      return true
    }
    if (bytes(p) == Packed) {
      n = length(bytes, p + 1)
      n == until - at && (n > 0 || shape == IsBytes) && value(bytes, at, until, c)
    } else if (shape != IsBytes && bytes(p) == unpackedOf(shape)) value(bytes, p + 1, until, c)
    else false
  }

  /** Writes the only value of a feature; returns false if the bytes are not one value of its type. */
  private def value(bytes: Array[Byte], start: Int, until: Int, c: Int): Boolean = {
    val size = until - start
    shapes(c) match {
      case IsLong =>
        if (!varint(bytes, start, size)) return false
        row.write(ordinals(c), number)
      case IsInt =>
        if (!varint(bytes, start, size) || number != number.toInt) return false
        row.write(ordinals(c), number.toInt)
      case IsFloat =>
        if (size != 4) return false
        row.write(ordinals(c), Platform.getFloat(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + start))
      case IsDouble =>
        if (size != 4) return false
        row.write(ordinals(c), Platform.getFloat(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + start).toDouble)
      case IsBytes => row.write(ordinals(c), bytes, start, size)
      case _ => return false
    }
    true
  }

  /**
   * Reads a varint of `size` bytes into `number`, without a branch for each byte: random numbers have random lengths,
   * and a wrongly predicted branch costs as much as the rest.
   */
  private def varint(bytes: Array[Byte], start: Int, size: Int): Boolean = {
    if (size <= 0 || size > 10) return false
    val low = Platform.getLong(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + start) & LowBytes(size)
    val high = Platform.getLong(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + start + 8) & HighBytes(size)
    // Each step joins neighbours: 8 groups of 7 bits to 4 of 14, to 2 of 28, to 56 bits.
    var x = low & 0x7f7f7f7f7f7f7f7fL
    x = (x & 0x007f007f007f007fL) | (x & 0x7f007f007f007f00L) >>> 1
    x = (x & 0x00003fff00003fffL) | (x & 0x3fff00003fff0000L) >>> 2
    x = (x & 0x000000000fffffffL) | (x & 0x0fffffff00000000L) >>> 4
    number = x | (high & 0x7f) << 56 | (high >>> 8) << 63
    // All bytes but the last have their highest bit set.
    (low & 0x8080808080808080L) == (LowBytes(size - 1) & 0x8080808080808080L) &&
    (high & 0x8080L) == (HighBytes(size - 1) & 0x8080L)
  }

  /** Reads a length and sets `at`; negative if it is not a length. May read up to `Slack` bytes beyond the record. */
  private def length(bytes: Array[Byte], position: Int): Int = {
    val b = bytes(position)
    if (b >= 0) {
      at = position + 1
      b
    } else longLength(bytes, position)
  }

  private def longLength(bytes: Array[Byte], position: Int): Int = {
    var value = 0
    var p = position
    var shift = 0
    while (shift < 35) {
      val b = bytes(p)
      p += 1
      value |= (b & 0x7f) << shift
      if (shift == 28 && (b & 0x78) != 0) return -1
      if (b >= 0) {
        at = p
        return value
      }
      shift += 7
    }
    -1
  }
}

object CanonicalDecoder {

  // Several bytes are read as one number.
  private val littleEndian = ByteOrder.nativeOrder == ByteOrder.LITTLE_ENDIAN

  /** The number of bytes beyond a record that may be read, so that not every step needs a bounds check. */
  val Slack = 32

  private final val MapEntry = 0x0a
  private final val BytesList = 0x0a
  private final val FloatList = 0x12
  private final val Int64List = 0x1a
  private final val Packed = 0x0a
  private final val UnpackedVarint = 0x08
  private final val UnpackedFloat = 0x0d

  /**
   * A feature of one value is mostly: its length, its kind, the list's length, `Packed`, the value's length, the value.
   * If these lengths are one byte each, they follow from the number of bytes, so one comparison checks all five bytes.
   */
  private final val ShortHeader = 5
  private final val MostShort = 128
  private final val HeaderMask = 0xffffffffffL
  private final val HeaderStep = 0x0100010001L

  // Bytes 0 to 7, and 8 to 15, of a value of each size.
  private val LowBytes = Array.tabulate(11)(n => if (n >= 8) -1L else (1L << 8 * n) - 1)
  private val HighBytes = Array.tabulate(11)(n => if (n <= 8) 0L else (1L << 8 * (n - 8)) - 1)

  private final val IsOther = 0
  private final val IsLong = 1
  private final val IsInt = 2
  private final val IsFloat = 3
  private final val IsDouble = 4
  private final val IsBytes = 5

  private def shapeOf(t: DataType): Int = t match {
    case LongType | TimestampType | TimestampNTZType => IsLong
    case IntegerType | DateType => IsInt
    case FloatType => IsFloat
    case DoubleType => IsDouble
    case _: StringType | BinaryType => IsBytes
    case _ => IsOther
  }

  private def kindOf(shape: Int): Byte = shape match {
    case IsLong | IsInt => Int64List
    case IsFloat | IsDouble => FloatList
    case _ => BytesList
  }

  private def unpackedOf(shape: Int): Byte = if (shape == IsLong || shape == IsInt) UnpackedVarint else UnpackedFloat

  /** The header of a feature of 0 bytes, to which `HeaderStep` is added for each byte; one that no feature has if other. */
  private def headerOf(shape: Int): Long =
    if (shape == IsOther) -1L << 48 else (kindOf(shape) << 8) + (Packed.toLong << 24) - 1 - (3L << 16) - (5L << 32)
}

/**
 * Finds the columns of map entries from the order of the entries in earlier records.
 *
 * Records that one program has written mostly have their features in the same order. So the name that was last at this
 * place is tried first, then the next name, because a feature may be missing. If both fail, a hash table is used.
 */
final class RememberedLayout(names: Array[String], caseSensitive: Boolean) {
  import RememberedLayout._

  val table = new NameTable(names, caseSensitive)
  private var room = 64

  // For each place: the first 16 bytes of the entry and their mask (words), all bytes before its value (prefixes), the
  // number of these bytes (sizes), and the column or `NotAsked` (columns).
  private var words = new Array[Long](4 * room)
  private var prefixes = new Array[Array[Byte]](room)
  private var sizes = Array.fill(room)(Int.MaxValue / 2)
  private var columns = new Array[Int](room)
  private var place = 0
  private var budget = MostLearned

  /** Where the value of the found entry begins: at its length, after its tag. */
  var valueAt = 0

  /** Must be called before the first entry of a record. */
  def begin(): Unit = place = 0

  /** Returns the column of the entry in bytes `start` until `until`, `NotAsked`, or `Odd` if it has another form. */
  def find(bytes: Array[Byte], start: Int, until: Int): Int = {
    if (place + 1 < room) {
      if (matches(bytes, start, until, place)) {
        place += 1
        return columns(place - 1)
      }
      if (matches(bytes, start, until, place + 1)) {
        place += 2
        return columns(place - 1)
      }
    }
    lookUp(bytes, start, until)
  }

  private def matches(bytes: Array[Byte], start: Int, until: Int, i: Int): Boolean = {
    val size = sizes(i)
    val p = Platform.BYTE_ARRAY_OFFSET.toLong + start
    val w = 4 * i
    val found = until - start > size &&
      ((Platform.getLong(bytes, p) ^ words(w)) & words(w + 1) |
        (Platform.getLong(bytes, p + 8) ^ words(w + 2)) & words(w + 3)) == 0 &&
      (size <= 16 || Wire.areEqual(prefixes(i), 16, bytes, start + 16, size - 16))
    if (found) valueAt = start + size
    found
  }

  private def lookUp(bytes: Array[Byte], start: Int, until: Int): Int = {
    if (until - start < 4 || bytes(start) != 0x0a || bytes(start + 1) < 0) return Odd
    val size = bytes(start + 1) + 3
    if (size >= until - start || bytes(start + size - 1) != 0x12) return Odd
    valueAt = start + size
    table.sawValue = true
    val column = table.find(bytes, start + 2, start + size - 1)
    if (place < MostPlaces && budget > 0) {
      budget -= 1
      learn(Arrays.copyOfRange(bytes, start, start + size), column)
    }
    place += 1
    column
  }

  private def learn(prefix: Array[Byte], column: Int): Unit = {
    if (place >= room) grow()
    val padded = Arrays.copyOf(prefix, math.max(16, prefix.length))
    val masks = Array.tabulate[Byte](16)(i => if (i < prefix.length) -1 else 0)
    for (w <- 0 to 1) {
      words(4 * place + 2 * w) = Platform.getLong(padded, Platform.BYTE_ARRAY_OFFSET.toLong + 8 * w)
      words(4 * place + 2 * w + 1) = Platform.getLong(masks, Platform.BYTE_ARRAY_OFFSET.toLong + 8 * w)
    }
    prefixes(place) = prefix
    sizes(place) = prefix.length
    columns(place) = column
  }

  private def grow(): Unit = {
    words = Arrays.copyOf(words, words.length * 2)
    prefixes = Arrays.copyOf(prefixes, room * 2)
    columns = Arrays.copyOf(columns, room * 2)
    sizes = Arrays.copyOf(sizes, room * 2)
    Arrays.fill(sizes, room, room * 2, Int.MaxValue / 2)
    room *= 2
  }
}

object RememberedLayout {
  val NotAsked: Int = -1
  val Odd: Int = -2

  private val MostPlaces = 4096

  /** How many entries to learn at most: if the order changes with every record, learning costs more than it saves. */
  private val MostLearned = 20000
}
