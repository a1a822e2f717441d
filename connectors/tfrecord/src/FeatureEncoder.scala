package tfspark.tfrecord

import java.nio.ByteOrder
import java.nio.charset.StandardCharsets.UTF_8

import org.apache.spark.sql.catalyst.expressions.{SpecializedGetters, UnsafeArrayData, UnsafeRow}
import org.apache.spark.sql.types._
import org.apache.spark.unsafe.Platform

/** Writes a value that is not null. */
trait ValueEncoder {
  def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit
}

/**
 * Writes a value as a length-delimited field: `prefix`, the size of the tf.train.Feature, then the Feature.
 *
 * @param prefix the bytes before the size, up to and including the tag of the field
 * @param framed whether the field is in a map entry; a tag and the size of the entry are then written first
 */
abstract class FeatureEncoder(prefix: Array[Byte], framed: Boolean) extends ValueEncoder {

  /** Writes everything before the values of a list; the values and their tags take `list` bytes. */
  protected final def begin(sink: ByteSink, kind: Int, list: Long): Unit = {
    val feature = 1 + Wire.varintSize(list) + list
    val whole = prefix.length + Wire.varintSize(feature) + feature
    sink.ensure(whole + 32)
    if (framed) {
      sink.byte(0x0a)
      sink.varint(whole)
    }
    sink.put(prefix, 0, prefix.length)
    sink.varint(feature)
    sink.byte(Wire.delimited(kind))
    sink.varint(list)
  }

  /** Like `begin`, for numbers in one packed block of `data` bytes. */
  protected final def beginPacked(sink: ByteSink, kind: Int, data: Long): Unit =
    if (data == 0) begin(sink, kind, 0)
    else {
      begin(sink, kind, 1 + Wire.varintSize(data) + data)
      sink.byte(0x0a)
      sink.varint(data)
    }
}

object FeatureEncoder {

  /** Returns the encoder of entries in a map from names to Features. */
  def entry(name: String, t: DataType, sparseVectors: Boolean): ValueEncoder =
    if (sparseVectors && Vectors.isVector(t)) new SparseVectorEncoder(name) else of(t, keyPrefix(name), framed = true)

  /** Returns the encoder of the Features of a FeatureList. */
  def listed(t: DataType): FeatureEncoder = of(t, Array[Byte](0x0a), framed = false)

  private def of(t: DataType, prefix: Array[Byte], framed: Boolean): FeatureEncoder = t match {
    case ArrayType(FloatType, _) if littleEndian => new FloatArrayEncoder(prefix, framed)
    case ArrayType(e, _) => new ListEncoder(ArrayOf(Gatherer.of(e)), prefix, framed)
    case v if Vectors.isVector(v) => new ListEncoder(VectorValues, prefix, framed)
    case BinaryType => new BinaryEncoder(prefix, framed)
    case _: StringType => new StringEncoder(prefix, framed)
    case _ =>
      val gatherer = Gatherer.of(t)
      gatherer.kind match {
        case Kind.Ints => new IntEncoder(gatherer, prefix, framed)
        case _ => new FloatEncoder(gatherer, prefix, framed)
      }
  }

  private val littleEndian = ByteOrder.nativeOrder == ByteOrder.LITTLE_ENDIAN

  /** Returns the key of a map entry, followed by the tag of its value. */
  def keyPrefix(name: String): Array[Byte] = {
    val key = name.getBytes(UTF_8)
    val sink = new ByteSink
    sink.ensure(key.length + 16)
    sink.byte(0x0a)
    sink.varint(key.length)
    sink.put(key, 0, key.length)
    sink.byte(0x12)
    java.util.Arrays.copyOf(sink.bytes, sink.position)
  }

  def nullInside(): Nothing =
    throw new RecordFault(
      "the array contains a null, which TensorFlow's lists cannot hold. Hint: remove nulls with array_compact")
}

final class IntEncoder(value: Gatherer, prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  private val one = new Gathered

  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = {
    value.take(from, ordinal, one, 0)
    val v = one.longs(0)
    beginPacked(sink, Kind.Ints, Wire.varintSize(v))
    sink.varint(v)
  }
}

final class FloatEncoder(value: Gatherer, prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  private val one = new Gathered

  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = {
    value.take(from, ordinal, one, 0)
    beginPacked(sink, Kind.Floats, 4)
    sink.float(one.floats(0))
  }
}

final class StringEncoder(prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = {
    val text = from.getUTF8String(ordinal)
    val n = text.numBytes
    begin(sink, Kind.Bytes, 1L + Wire.varintSize(n) + n)
    sink.byte(0x0a)
    sink.varint(n)
    sink.putMemory(text.getBaseObject, text.getBaseOffset, n)
  }
}

final class BinaryEncoder(prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  private def begin(sink: ByteSink, n: Int): Unit = {
    begin(sink, Kind.Bytes, 1L + Wire.varintSize(n) + n)
    sink.byte(0x0a)
    sink.varint(n)
  }

  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = from match {
    case row: UnsafeRow =>
      // Avoids the copy that getBinary makes.
      val place = row.getLong(ordinal)
      begin(sink, place.toInt)
      sink.putMemory(row.getBaseObject, row.getBaseOffset + (place >>> 32), place.toInt)
    case _ =>
      val bytes = from.getBinary(ordinal)
      begin(sink, bytes.length)
      sink.put(bytes, 0, bytes.length)
  }
}

final class FloatArrayEncoder(prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = {
    val array = from.getArray(ordinal)
    val n = array.numElements()
    beginPacked(sink, Kind.Floats, n * 4L)
    array match {
      case unsafe: UnsafeArrayData =>
        val header = UnsafeArrayData.calculateHeaderPortionInBytes(n)
        var w = 8
        while (w < header) {
          if (Platform.getLong(unsafe.getBaseObject, unsafe.getBaseOffset + w) != 0) FeatureEncoder.nullInside()
          w += 8
        }
        sink.putMemory(unsafe.getBaseObject, unsafe.getBaseOffset + header, n * 4)
      case _ =>
        var i = 0
        while (i < n) {
          if (array.isNullAt(i)) FeatureEncoder.nullInside()
          sink.float(array.getFloat(i))
          i += 1
        }
    }
  }
}

/** Writes any list; its values are gathered first, because their size precedes them. */
final class ListEncoder(values: Gatherer, prefix: Array[Byte], framed: Boolean) extends FeatureEncoder(prefix, framed) {
  private val gathered = new Gathered

  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit = {
    values.take(from, ordinal, gathered, 0)
    val data = gathered.size(values.kind)
    if (values.kind == Kind.Bytes) begin(sink, Kind.Bytes, data) else beginPacked(sink, values.kind, data)
    gathered.write(values.kind, sink)
  }
}

/** Writes an ML vector as three features. */
final class SparseVectorEncoder(name: String) extends ValueEncoder {
  private val parts = Vectors
    .sparseNames(name)
    .zip(Seq(SparseIndices, SparseValues, VectorSize))
    .map { case (n, values) => new ListEncoder(values, FeatureEncoder.keyPrefix(n), framed = true) }
    .toArray

  override def encode(from: SpecializedGetters, ordinal: Int, sink: ByteSink): Unit =
    parts.foreach(_.encode(from, ordinal, sink))
}
