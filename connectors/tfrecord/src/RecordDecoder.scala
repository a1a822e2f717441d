package tfspark.tfrecord

import org.apache.spark.sql.execution.vectorized.WritableColumnVector
import org.apache.spark.sql.types.{ArrayType, StructType}

/** Puts records into rows of a batch's columns. */
trait RecordDecoder {

  /** Decodes bytes `start` until `end` as row `row`. */
  def decode(bytes: Array[Byte], start: Int, end: Int, row: Int): Unit

  /** Called before a new batch is filled. */
  def reset(): Unit
}

object RecordDecoder {
  def of(recordType: RecordType, schema: StructType, columns: Array[WritableColumnVector]): RecordDecoder =
    recordType match {
      case RecordType.Example => new ExampleDecoder(new FeaturesDecoder(schema, columns))
      case RecordType.SequenceExample => new SequenceExampleDecoder(schema, columns)
      case RecordType.ByteArray => new ByteArrayDecoder(columns)
    }
}

/**
 * Decodes a tf.train.Features message (tensorflow/core/example/feature.proto) into columns.
 *
 * A first pass notes where the requested features lie, so that of a name that comes twice the last counts, as in every
 * protobuf map; a second one decodes them column by column. Others are never parsed.
 */
final class FeaturesDecoder(schema: StructType, columns: Array[WritableColumnVector]) {
  private val names = schema.fieldNames
  private val table = new NameTable(names)
  private val decoders = schema.fields.zip(columns).map { case (f, c) => ColumnDecoder.of(f.dataType, c) }
  private val starts = new Array[Int](names.length)
  private val ends = new Array[Int](names.length)
  private val wire = new Wire
  private val entry = new Wire
  private val values = new FeatureValues

  def reset(): Unit = decoders.foreach(_.reset())

  def begin(): Unit = {
    java.util.Arrays.fill(starts, -1)
    table.rewind()
  }

  /** Notes the features of one Features message; a record may have several, which are taken together. */
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
    var column = -1
    var from = start
    var until = start
    var named = false
    while (entry.hasMore) {
      val tag = entry.tag()
      if (tag == Wire.delimited(1)) {
        entry.enter()
        column = table.find(bytes, entry.position, entry.fieldEnd)
        named = true
        entry.position = entry.fieldEnd
      } else if (tag == Wire.delimited(2)) {
        entry.enter()
        from = entry.position
        until = entry.fieldEnd
        entry.position = until
      } else entry.skip(tag)
    }
    // An entry without a key has the empty name.
    if (!named) column = table.find(bytes, start, start)
    if (column >= 0) {
      starts(column) = from
      ends(column) = until
    }
  }

  def finish(bytes: Array[Byte], row: Int): Unit = {
    var c = 0
    while (c < decoders.length) {
      val decoder = decoders(c)
      if (starts(c) < 0) decoder.putNull(row)
      else
        try {
          values.open(bytes, starts(c), ends(c))
          if (values.kind == Kind.Unset) decoder.putNull(row) else decoder.decode(values, row)
        } catch {
          case e: RecordFault => throw new RecordFault(s"feature '${names(c)}': ${e.getMessage}")
        }
      c += 1
    }
  }
}

final class ExampleDecoder(features: FeaturesDecoder) extends RecordDecoder {
  private val wire = new Wire

  override def reset(): Unit = features.reset()

  override def decode(bytes: Array[Byte], start: Int, end: Int, row: Int): Unit = {
    features.begin()
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1)) {
        wire.enter()
        features.scan(bytes, wire.position, wire.fieldEnd)
        wire.position = wire.fieldEnd
      } else wire.skip(tag)
    }
    features.finish(bytes, row)
  }
}

/** Arrays of arrays come from the feature lists of a tf.train.SequenceExample, all other columns from its context. */
final class SequenceExampleDecoder(schema: StructType, columns: Array[WritableColumnVector]) extends RecordDecoder {
  private val (nested, flat) = schema.fields.zip(columns).partition { case (f, _) => RecordType.isFeatureList(f.dataType) }
  private val context = new FeaturesDecoder(StructType(flat.map(_._1)), flat.map(_._2))
  private val names = nested.map(_._1.name)
  private val table = new NameTable(names)
  private val lists = nested.map { case (f, vector) =>
    val inner = f.dataType.asInstanceOf[ArrayType].elementType
    new NestedColumn(ColumnDecoder.of(inner, vector.arrayData()), vector.arrayData(), vector)
  }
  private val starts = new Array[Int](names.length)
  private val ends = new Array[Int](names.length)
  private val wire = new Wire
  private val entry = new Wire
  private val values = new FeatureValues

  override def reset(): Unit = {
    context.reset()
    lists.foreach(_.reset())
  }

  override def decode(bytes: Array[Byte], start: Int, end: Int, row: Int): Unit = {
    context.begin()
    java.util.Arrays.fill(starts, -1)
    table.rewind()
    wire.reset(bytes, start, end)
    while (wire.hasMore) {
      val tag = wire.tag()
      if (tag == Wire.delimited(1) || tag == Wire.delimited(2)) {
        wire.enter()
        val (from, until) = (wire.position, wire.fieldEnd)
        if (tag == Wire.delimited(1)) context.scan(bytes, from, until) else scanLists(bytes, from, until)
        wire.position = until
      } else wire.skip(tag)
    }
    context.finish(bytes, row)
    var c = 0
    while (c < lists.length) {
      if (starts(c) < 0) lists(c).putNull(row)
      else
        try {
          entry.reset(bytes, starts(c), ends(c))
          lists(c).decode(entry, values, row)
        } catch {
          case e: RecordFault => throw new RecordFault(s"feature list '${names(c)}': ${e.getMessage}")
        }
      c += 1
    }
  }

  private def scanLists(bytes: Array[Byte], start: Int, end: Int): Unit = {
    val lists = new Wire
    lists.reset(bytes, start, end)
    while (lists.hasMore) {
      val tag = lists.tag()
      if (tag == Wire.delimited(1)) {
        lists.enter()
        note(bytes, lists.position, lists.fieldEnd)
        lists.position = lists.fieldEnd
      } else lists.skip(tag)
    }
  }

  private def note(bytes: Array[Byte], start: Int, end: Int): Unit = {
    entry.reset(bytes, start, end)
    var column = -1
    var from = start
    var until = start
    while (entry.hasMore) {
      val tag = entry.tag()
      if (tag == Wire.delimited(1) || tag == Wire.delimited(2)) {
        entry.enter()
        if (tag == Wire.delimited(1)) column = table.find(bytes, entry.position, entry.fieldEnd)
        else {
          from = entry.position
          until = entry.fieldEnd
        }
        entry.position = entry.fieldEnd
      } else entry.skip(tag)
    }
    if (column >= 0) {
      starts(column) = from
      ends(column) = until
    }
  }
}

/** The record as it is, in the one binary column there is. */
final class ByteArrayDecoder(columns: Array[WritableColumnVector]) extends RecordDecoder {
  override def reset(): Unit = ()
  override def decode(bytes: Array[Byte], start: Int, end: Int, row: Int): Unit =
    columns.foreach(_.putByteArray(row, bytes, start, end - start))
}
