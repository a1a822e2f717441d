package tfspark.tfrecord

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.types._

/** Appends the record of a row to a sink. */
trait RecordEncoder {
  def encode(row: InternalRow, sink: ByteSink): Unit
}

object RecordEncoder {
  def of(recordType: RecordType, schema: StructType, sparseVectors: Boolean): RecordEncoder = recordType match {
    case RecordType.Example => new ExampleEncoder(schema, sparseVectors)
    case RecordType.SequenceExample => new SequenceExampleEncoder(schema, sparseVectors)
    case RecordType.ByteArray => new ByteArrayEncoder(schema)
  }
}

/** Writes the fields of a schema as entries of a map from name to Feature; nulls are left out. */
final class FeaturesEncoder(fields: Array[(StructField, Int)], sparseVectors: Boolean) {
  private val encoders = fields.map { case (f, _) => FeatureEncoder.entry(f.name, f.dataType, sparseVectors) }
  private val ordinals = fields.map(_._2)

  def encode(row: InternalRow, sink: ByteSink): Unit = {
    var i = 0
    while (i < encoders.length) {
      if (!row.isNullAt(ordinals(i)))
        try encoders(i).encode(row, ordinals(i), sink)
        catch { case e: RecordFault => throw new RecordFault(s"column '${fields(i)._1.name}': ${e.getMessage}") }
      i += 1
    }
  }
}

final class ExampleEncoder(schema: StructType, sparseVectors: Boolean) extends RecordEncoder {
  private val features = new FeaturesEncoder(schema.fields.zipWithIndex, sparseVectors)

  // The size of the features precedes them, but is known only after them. Records are mostly of similar size, so room
  // is left for a size with as many bytes as that of the last record.
  private var sizeOfSize = 1

  override def encode(row: InternalRow, sink: ByteSink): Unit = {
    val start = sink.position
    sink.ensure(16)
    sink.position += 1 + sizeOfSize
    features.encode(row, sink)
    var end = sink.position
    val size = end - start - 1 - sizeOfSize
    val needed = Wire.varintSize(size)
    if (needed != sizeOfSize) {
      sink.ensure(16)
      System.arraycopy(sink.bytes, end - size, sink.bytes, start + 1 + needed, size)
      end += needed - sizeOfSize
      sizeOfSize = needed
    }
    sink.position = start
    sink.byte(0x0a)
    sink.varint(size)
    sink.position = end
  }
}

final class SequenceExampleEncoder(schema: StructType, sparseVectors: Boolean) extends RecordEncoder {
  private val (listFields, contextFields) =
    schema.fields.zipWithIndex.partition { case (f, _) => RecordType.isFeatureList(f.dataType) }
  private val context = new FeaturesEncoder(contextFields, sparseVectors)
  private val prefixes = listFields.map { case (f, _) => FeatureEncoder.keyPrefix(f.name) }
  private val encoders =
    listFields.map { case (f, _) => FeatureEncoder.listed(f.dataType.asInstanceOf[ArrayType].elementType) }
  private val (contextSink, listsSink, listSink) = (new ByteSink, new ByteSink, new ByteSink)

  override def encode(row: InternalRow, sink: ByteSink): Unit = {
    contextSink.position = 0
    context.encode(row, contextSink)
    listsSink.position = 0
    var i = 0
    while (i < listFields.length) {
      val (field, ordinal) = listFields(i)
      if (!row.isNullAt(ordinal))
        try encodeList(row, ordinal, i)
        catch { case e: RecordFault => throw new RecordFault(s"column '${field.name}': ${e.getMessage}") }
      i += 1
    }
    field(1, contextSink, sink)
    field(2, listsSink, sink)
  }

  private def field(number: Int, content: ByteSink, sink: ByteSink): Unit = {
    sink.ensure(content.position + 16L)
    sink.byte(Wire.delimited(number))
    sink.varint(content.position)
    sink.put(content.bytes, 0, content.position)
  }

  private def encodeList(row: InternalRow, ordinal: Int, i: Int): Unit = {
    val outer = row.getArray(ordinal)
    listSink.position = 0
    var k = 0
    while (k < outer.numElements()) {
      if (outer.isNullAt(k)) FeatureEncoder.nullInside()
      encoders(i).encode(outer, k, listSink)
      k += 1
    }
    val prefix = prefixes(i)
    val entry = prefix.length + Wire.varintSize(listSink.position) + listSink.position.toLong
    listsSink.ensure(entry + 32)
    listsSink.byte(0x0a)
    listsSink.varint(entry)
    listsSink.put(prefix, 0, prefix.length)
    listsSink.varint(listSink.position)
    listsSink.put(listSink.bytes, 0, listSink.position)
  }
}

final class ByteArrayEncoder(schema: StructType) extends RecordEncoder {
  private val isString = schema.head.dataType.isInstanceOf[StringType]

  override def encode(row: InternalRow, sink: ByteSink): Unit = {
    if (row.isNullAt(0)) throw new RecordFault(s"column '${schema.head.name}': a record cannot be null")
    val data = if (isString) row.getUTF8String(0).getBytes else row.getBinary(0)
    sink.ensure(data.length + 16L)
    sink.put(data, 0, data.length)
  }
}
