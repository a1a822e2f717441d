package tfspark.tfrecord

import java.nio.charset.StandardCharsets.UTF_8
import java.nio.{ByteBuffer, ByteOrder}

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.SpecializedGetters
import org.apache.spark.sql.types._

/** A growing array of bytes with protobuf's primitives. */
final class ByteSink {
  var bytes = new Array[Byte](1 << 16)
  var position = 0

  def ensure(n: Int): Unit =
    if (bytes.length - position < n) {
      val wanted = math.max(position.toLong + n, bytes.length * 2L)
      if (position.toLong + n > Int.MaxValue - 64) throw new TFRecordException("the row makes a record beyond 2 GB")
      bytes = java.util.Arrays.copyOf(bytes, math.min(wanted, Int.MaxValue - 64L).toInt)
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

  def putFloats(source: Array[Float], n: Int): Unit = {
    ByteBuffer.wrap(bytes, position, n * 4).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().put(source, 0, n)
    position += n * 4
  }
}

/** The values of one feature on their way into a record. */
final class Gathered {
  var kind: Int = Kind.Unset
  var count: Int = 0
  var longs = new Array[Long](16)
  var floats = new Array[Float](16)
  var blobs = new Array[Array[Byte]](16)

  def begin(kind: Int, n: Int): Unit = {
    this.kind = kind
    count = n
    kind match {
      case Kind.Ints => if (longs.length < n) longs = new Array[Long](math.max(n, longs.length * 2))
      case Kind.Floats => if (floats.length < n) floats = new Array[Float](math.max(n, floats.length * 2))
      case _ => if (blobs.length < n) blobs = new Array[Array[Byte]](math.max(n, blobs.length * 2))
    }
  }

  private def payload: Long = kind match {
    case Kind.Ints =>
      var size = 0L
      var i = 0
      while (i < count) {
        size += Wire.varintSize(longs(i))
        i += 1
      }
      size
    case Kind.Floats => count * 4L
    case _ =>
      var size = 0L
      var i = 0
      while (i < count) {
        size += 1 + Wire.varintSize(blobs(i).length) + blobs(i).length
        i += 1
      }
      size
  }

  /**
   * Writes the Feature as a length-delimited field: `prefix`, then its size, then itself.
   *
   * @param around called with the number of bytes that `prefix` and the Feature take, to write what comes before
   */
  def write(sink: ByteSink, prefix: Array[Byte])(around: Int => Unit): Unit = {
    val data = payload
    val packed = kind != Kind.Bytes && count > 0
    val list = if (packed) 1 + Wire.varintSize(data) + data else data
    val feature = 1 + Wire.varintSize(list) + list
    val whole = prefix.length + Wire.varintSize(feature) + feature
    if (whole > Int.MaxValue - 128) throw new TFRecordException("a value makes a record beyond 2 GB")
    sink.ensure(whole.toInt + 32)
    around(whole.toInt)
    sink.put(prefix, 0, prefix.length)
    sink.varint(feature)
    sink.byte(Wire.delimited(kind))
    sink.varint(list)
    if (packed) {
      sink.byte(0x0a)
      sink.varint(data)
    }
    var i = 0
    kind match {
      case Kind.Ints =>
        while (i < count) {
          sink.varint(longs(i))
          i += 1
        }
      case Kind.Floats => sink.putFloats(floats, count)
      case _ =>
        while (i < count) {
          val blob = blobs(i)
          sink.byte(0x0a)
          sink.varint(blob.length)
          sink.put(blob, 0, blob.length)
          i += 1
        }
    }
  }
}

/** Takes values of one type out of a row or an array. */
abstract class Gatherer {
  def gather(from: SpecializedGetters, ordinal: Int, into: Gathered): Unit
}

object Gatherer {
  def of(t: DataType): Gatherer = t match {
    case ArrayType(FloatType, _) => FloatArrayGatherer
    case ArrayType(e, _) => new ArrayGatherer(ElementGatherer.of(e))
    case _ =>
      val element = ElementGatherer.of(t)
      new Gatherer {
        override def gather(from: SpecializedGetters, ordinal: Int, into: Gathered): Unit = {
          into.begin(element.kind, 1)
          element.take(from, ordinal, into, 0)
        }
      }
  }

  def nullInside(): Nothing =
    throw new RecordFault("there is a null inside the array, which TensorFlow's lists cannot hold")
}

final class ArrayGatherer(element: ElementGatherer) extends Gatherer {
  override def gather(from: SpecializedGetters, ordinal: Int, into: Gathered): Unit = {
    val array = from.getArray(ordinal)
    val n = array.numElements()
    into.begin(element.kind, n)
    var i = 0
    while (i < n) {
      if (array.isNullAt(i)) Gatherer.nullInside()
      element.take(array, i, into, i)
      i += 1
    }
  }
}

object FloatArrayGatherer extends Gatherer {
  override def gather(from: SpecializedGetters, ordinal: Int, into: Gathered): Unit = {
    val array = from.getArray(ordinal)
    val n = array.numElements()
    var i = 0
    while (i < n) {
      if (array.isNullAt(i)) Gatherer.nullInside()
      i += 1
    }
    into.begin(Kind.Floats, 0)
    into.floats = array.toFloatArray()
    into.count = n
  }
}

abstract class ElementGatherer(val kind: Int) {
  def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit
}

object ElementGatherer {
  private def ints(get: (SpecializedGetters, Int) => Long): ElementGatherer = new ElementGatherer(Kind.Ints) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.longs(place) = get(from, ordinal)
  }

  private def floats(get: (SpecializedGetters, Int) => Float): ElementGatherer = new ElementGatherer(Kind.Floats) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.floats(place) = get(from, ordinal)
  }

  private def blobs(get: (SpecializedGetters, Int) => Array[Byte]): ElementGatherer = new ElementGatherer(Kind.Bytes) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.blobs(place) = get(from, ordinal)
  }

  def of(t: DataType): ElementGatherer = t match {
    case LongType | TimestampType | TimestampNTZType => ints((g, i) => g.getLong(i))
    case IntegerType | DateType => ints((g, i) => g.getInt(i).toLong)
    case ShortType => ints((g, i) => g.getShort(i).toLong)
    case ByteType => ints((g, i) => g.getByte(i).toLong)
    case BooleanType => ints((g, i) => if (g.getBoolean(i)) 1L else 0L)
    case FloatType => floats((g, i) => g.getFloat(i))
    case DoubleType => floats((g, i) => g.getDouble(i).toFloat)
    case d: DecimalType => floats((g, i) => g.getDecimal(i, d.precision, d.scale).toFloat)
    case StringType => blobs((g, i) => g.getUTF8String(i).getBytes)
    case BinaryType => blobs((g, i) => g.getBinary(i))
    case _ => throw new IllegalArgumentException(s"a Feature holds no ${t.simpleString}")
  }
}

/** Builds the record of a row in a buffer that it reuses. */
trait RecordEncoder {

  /** Encodes a row; the record is then bytes `start` until `end` of `bytes`, with room around it for the framing. */
  def encode(row: InternalRow): Unit

  def bytes: Array[Byte]
  def start: Int
  def end: Int
}

object RecordEncoder {
  def of(recordType: RecordType, schema: StructType): RecordEncoder = recordType match {
    case RecordType.Example => new ExampleEncoder(schema)
    case RecordType.SequenceExample => new SequenceExampleEncoder(schema)
    case RecordType.ByteArray => new ByteArrayEncoder(schema)
  }

  /** Room for the header of the framing and for tags and lengths that are written last. */
  val Room: Int = Framing.HeaderBytes + 12
}

/** Writes the fields of a schema as entries of a map from name to Feature; null is left out. */
final class FeaturesEncoder(fields: Array[(StructField, Int)]) {
  private val gatherers = fields.map { case (f, _) => Gatherer.of(f.dataType) }
  private val ordinals = fields.map(_._2)
  private val prefixes = fields.map { case (f, _) => FeaturesEncoder.keyPrefix(f.name) }
  private val gathered = new Gathered

  def encode(row: InternalRow, sink: ByteSink): Unit = {
    var i = 0
    while (i < gatherers.length) {
      if (!row.isNullAt(ordinals(i)))
        try {
          gatherers(i).gather(row, ordinals(i), gathered)
          gathered.write(sink, prefixes(i)) { whole =>
            sink.byte(0x0a)
            sink.varint(whole)
          }
        } catch {
          case e: RecordFault => throw new TFRecordException(s"column '${fields(i)._1.name}': ${e.getMessage}")
        }
      i += 1
    }
  }
}

object FeaturesEncoder {

  /** The key of a map entry and the tag of its value. */
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
}

final class ExampleEncoder(schema: StructType) extends RecordEncoder {
  private val features = new FeaturesEncoder(schema.fields.zipWithIndex)
  private val sink = new ByteSink
  var start: Int = 0

  override def bytes: Array[Byte] = sink.bytes
  override def end: Int = sink.position

  override def encode(row: InternalRow): Unit = {
    sink.position = RecordEncoder.Room
    features.encode(row, sink)
    val until = sink.position
    val size = until - RecordEncoder.Room
    start = RecordEncoder.Room - 1 - Wire.varintSize(size)
    sink.position = start
    sink.byte(0x0a)
    sink.varint(size)
    sink.position = until
    sink.ensure(Framing.FooterBytes)
  }
}

final class SequenceExampleEncoder(schema: StructType) extends RecordEncoder {
  private val (listFields, contextFields) =
    schema.fields.zipWithIndex.partition { case (f, _) => RecordType.isFeatureList(f.dataType) }
  private val context = new FeaturesEncoder(contextFields)
  private val prefixes = listFields.map { case (f, _) => FeaturesEncoder.keyPrefix(f.name) }
  private val gatherers =
    listFields.map { case (f, _) => Gatherer.of(f.dataType.asInstanceOf[ArrayType].elementType) }
  private val gathered = new Gathered
  private val (contextSink, listsSink, listSink, sink) = (new ByteSink, new ByteSink, new ByteSink, new ByteSink)

  override def bytes: Array[Byte] = sink.bytes
  override def start: Int = RecordEncoder.Room
  override def end: Int = sink.position

  override def encode(row: InternalRow): Unit = {
    contextSink.position = 0
    context.encode(row, contextSink)
    listsSink.position = 0
    var i = 0
    while (i < listFields.length) {
      val (field, ordinal) = listFields(i)
      if (!row.isNullAt(ordinal))
        try encodeList(row, ordinal, i)
        catch { case e: RecordFault => throw new TFRecordException(s"column '${field.name}': ${e.getMessage}") }
      i += 1
    }
    sink.position = RecordEncoder.Room
    field(1, contextSink)
    field(2, listsSink)
    sink.ensure(Framing.FooterBytes)
  }

  private def field(number: Int, content: ByteSink): Unit = {
    sink.ensure(content.position + 16)
    sink.byte(Wire.delimited(number))
    sink.varint(content.position)
    sink.put(content.bytes, 0, content.position)
  }

  private def encodeList(row: InternalRow, ordinal: Int, i: Int): Unit = {
    val outer = row.getArray(ordinal)
    listSink.position = 0
    var k = 0
    while (k < outer.numElements()) {
      if (outer.isNullAt(k)) Gatherer.nullInside()
      gatherers(i).gather(outer, k, gathered)
      gathered.write(listSink, SequenceExampleEncoder.FeatureTag)(_ => ())
      k += 1
    }
    val prefix = prefixes(i)
    val entry = prefix.length + Wire.varintSize(listSink.position) + listSink.position
    listsSink.ensure(entry + 32)
    listsSink.byte(0x0a)
    listsSink.varint(entry)
    listsSink.put(prefix, 0, prefix.length)
    listsSink.varint(listSink.position)
    listsSink.put(listSink.bytes, 0, listSink.position)
  }
}

object SequenceExampleEncoder {
  private[tfrecord] val FeatureTag = Array[Byte](0x0a)
}

final class ByteArrayEncoder(schema: StructType) extends RecordEncoder {
  private val isString = schema.head.dataType == StringType
  private val sink = new ByteSink

  override def bytes: Array[Byte] = sink.bytes
  override def start: Int = RecordEncoder.Room
  override def end: Int = sink.position

  override def encode(row: InternalRow): Unit = {
    if (row.isNullAt(0)) throw new TFRecordException(s"column '${schema.head.name}': a record cannot be null")
    val data = if (isString) row.getUTF8String(0).getBytes else row.getBinary(0)
    sink.position = RecordEncoder.Room
    sink.ensure(data.length + Framing.FooterBytes)
    sink.put(data, 0, data.length)
  }
}
