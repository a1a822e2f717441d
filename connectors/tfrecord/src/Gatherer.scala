package tfspark.tfrecord

import org.apache.spark.sql.catalyst.expressions.SpecializedGetters
import org.apache.spark.sql.catalyst.util.ArrayData
import org.apache.spark.sql.types._

/** Holds the values of one feature before they are written to a record. */
final class Gathered {
  var count: Int = 0
  var longs = new Array[Long](16)
  var floats = new Array[Float](16)
  var blobs = new Array[Array[Byte]](16)

  /** Makes room for `n` values. */
  def begin(kind: Int, n: Int): Unit = {
    count = n
    kind match {
      case Kind.Ints => if (longs.length < n) longs = new Array[Long](math.max(n, longs.length * 2))
      case Kind.Floats => if (floats.length < n) floats = new Array[Float](math.max(n, floats.length * 2))
      case _ => if (blobs.length < n) blobs = new Array[Array[Byte]](math.max(n, blobs.length * 2))
    }
  }

  /** Returns the encoded size in bytes: numbers are a packed block, each byte string has its tag and size. */
  def size(kind: Int): Long = kind match {
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

  def write(kind: Int, sink: ByteSink): Unit = {
    var i = 0
    while (i < count) {
      kind match {
        case Kind.Ints => sink.varint(longs(i))
        case Kind.Floats => sink.float(floats(i))
        case _ =>
          sink.byte(0x0a)
          sink.varint(blobs(i).length)
          sink.put(blobs(i), 0, blobs(i).length)
      }
      i += 1
    }
  }
}

/** Takes values of one kind from a row or an array. */
abstract class Gatherer(val kind: Int) {
  def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit
}

object Gatherer {
  private def ints(get: (SpecializedGetters, Int) => Long): Gatherer = new Gatherer(Kind.Ints) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.longs(place) = get(from, ordinal)
  }

  private def floats(get: (SpecializedGetters, Int) => Float): Gatherer = new Gatherer(Kind.Floats) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.floats(place) = get(from, ordinal)
  }

  private def blobs(get: (SpecializedGetters, Int) => Array[Byte]): Gatherer = new Gatherer(Kind.Bytes) {
    override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit =
      into.blobs(place) = get(from, ordinal)
  }

  /** Rounds to a float, which loses digits, as documented; a finite value outside the range of floats is an error. */
  def narrow(value: Double): Float = {
    val f = value.toFloat
    if (java.lang.Float.isInfinite(f) && !java.lang.Double.isInfinite(value))
      throw new RecordFault(s"the value $value is out of range for TensorFlow's floats")
    f
  }

  def of(t: DataType): Gatherer = t match {
    case LongType | TimestampType | TimestampNTZType => ints((g, i) => g.getLong(i))
    case IntegerType | DateType => ints((g, i) => g.getInt(i).toLong)
    case ShortType => ints((g, i) => g.getShort(i).toLong)
    case ByteType => ints((g, i) => g.getByte(i).toLong)
    case BooleanType => ints((g, i) => if (g.getBoolean(i)) 1L else 0L)
    case FloatType => floats((g, i) => g.getFloat(i))
    case DoubleType => floats((g, i) => narrow(g.getDouble(i)))
    case d: DecimalType => floats((g, i) => g.getDecimal(i, d.precision, d.scale).toFloat)
    case _: StringType => blobs((g, i) => g.getUTF8String(i).getBytes)
    case BinaryType => blobs((g, i) => g.getBinary(i))
    case _ => throw new IllegalArgumentException(s"a feature cannot hold the type ${t.simpleString}")
  }
}

/** All values of an array. */
final case class ArrayOf(element: Gatherer) extends Gatherer(element.kind) {
  override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit = {
    val array = from.getArray(ordinal)
    val n = array.numElements()
    into.begin(kind, n)
    var i = 0
    while (i < n) {
      if (array.isNullAt(i)) FeatureEncoder.nullInside()
      element.take(array, i, into, i)
      i += 1
    }
  }
}

/** All values of a Spark ML vector; the values that a sparse vector leaves out are zeros. */
object VectorValues extends Gatherer(Kind.Floats) {
  override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit = {
    val vector = from.getStruct(ordinal, 4)
    val values = vector.getArray(3)
    if (vector.getByte(0) == Vectors.Dense) {
      into.begin(kind, values.numElements())
      each(values)((i, v) => into.floats(i) = v)
    } else {
      into.begin(kind, vector.getInt(1))
      java.util.Arrays.fill(into.floats, 0, into.count, 0f)
      val indices = vector.getArray(2)
      each(values)((i, v) => into.floats(indices.getInt(i)) = v)
    }
  }

  private def each(values: ArrayData)(put: (Int, Float) => Unit): Unit = {
    var i = 0
    while (i < values.numElements()) {
      put(i, Gatherer.narrow(values.getDouble(i)))
      i += 1
    }
  }
}

/** The indices of the values that are written when a vector is written sparsely. */
object SparseIndices extends Gatherer(Kind.Ints) {
  override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit = {
    val vector = from.getStruct(ordinal, 4)
    val sparse = vector.getByte(0) == Vectors.Sparse
    val positions = vector.getArray(if (sparse) 2 else 3)
    into.begin(kind, positions.numElements())
    var n = 0
    for (i <- 0 until positions.numElements()) {
      if (sparse) into.longs(n) = positions.getInt(i).toLong else into.longs(n) = i.toLong
      if (sparse || positions.getDouble(i) != 0) n += 1
    }
    into.count = n
  }
}

/** The values at these indices. */
object SparseValues extends Gatherer(Kind.Floats) {
  override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit = {
    val vector = from.getStruct(ordinal, 4)
    val sparse = vector.getByte(0) == Vectors.Sparse
    val values = vector.getArray(3)
    into.begin(kind, values.numElements())
    var n = 0
    for (i <- 0 until values.numElements()) {
      val v = values.getDouble(i)
      into.floats(n) = Gatherer.narrow(v)
      if (sparse || v != 0) n += 1
    }
    into.count = n
  }
}

/** The number of a vector's values, including those that are left out. */
object VectorSize extends Gatherer(Kind.Ints) {
  override def take(from: SpecializedGetters, ordinal: Int, into: Gathered, place: Int): Unit = {
    val vector = from.getStruct(ordinal, 4)
    into.begin(kind, 1)
    val sparse = vector.getByte(0) == Vectors.Sparse
    into.longs(0) = (if (sparse) vector.getInt(1) else vector.getArray(3).numElements()).toLong
  }
}
