package tfspark.tfrecord

import org.apache.spark.sql.{SparkSession, SparkSessionExtensions}
import org.apache.spark.sql.catalyst.{FunctionIdentifier, InternalRow}
import org.apache.spark.sql.catalyst.analysis.TypeCheckResult
import org.apache.spark.sql.catalyst.expressions.{Expression, ExpressionInfo, UnaryExpression}
import org.apache.spark.sql.catalyst.expressions.codegen.{CodegenFallback, UnsafeRowWriter}
import org.apache.spark.sql.catalyst.util.ArrayBasedMapData
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types._

/** `to_example(struct[, options])`: the record of a struct, as `format("tfrecord")` writes it. */
case class ToExample(child: Expression, options: Map[String, String]) extends UnaryExpression with CodegenFallback {
  @transient private lazy val parsed = RecordFunctions.optionsOf("to_example", options)
  @transient private lazy val encoder =
    RecordEncoder.of(parsed.recordType, child.dataType.asInstanceOf[StructType], parsed.sparseVectors)
  @transient private lazy val sink = new ByteSink

  override def dataType: DataType = BinaryType
  override def prettyName: String = "to_example"

  override def checkInputDataTypes(): TypeCheckResult = child.dataType match {
    case schema: StructType =>
      try {
        parsed.recordType.check(schema)
        if (parsed.sparseVectors) Vectors.checkSparseNames(schema)
        TypeCheckResult.TypeCheckSuccess
      } catch { case e: IllegalArgumentException => TypeCheckResult.TypeCheckFailure(e.getMessage) }
    case other =>
      TypeCheckResult.TypeCheckFailure(s"to_example needs a struct, got ${other.simpleString}. Hint: pass struct(*)")
  }

  override protected def nullSafeEval(input: Any): Any = {
    sink.position = 0
    try encoder.encode(input.asInstanceOf[InternalRow], sink)
    catch { case e: RecordFault => throw new IllegalArgumentException(s"to_example: ${e.getMessage}") }
    java.util.Arrays.copyOf(sink.bytes, sink.position)
  }

  override protected def withNewChildInternal(newChild: Expression): ToExample = copy(child = newChild)
}

/** `from_example(binary, schema[, options])`: the struct of a record, as `format("tfrecord")` reads it. */
case class FromExample(child: Expression, schema: StructType, options: Map[String, String])
    extends UnaryExpression
    with CodegenFallback {
  @transient private lazy val parsed = RecordFunctions.optionsOf("from_example", options)
  @transient private lazy val reader = new StructReader(schema, parsed)

  override def dataType: DataType = StructType(schema.map(_.copy(nullable = true)))
  override def nullable: Boolean = true
  override def prettyName: String = "from_example"

  override def checkInputDataTypes(): TypeCheckResult =
    if (child.dataType != BinaryType)
      TypeCheckResult.TypeCheckFailure(s"from_example needs a binary column, got ${child.dataType.simpleString}.")
    else
      try {
        val corrupt = RecordFunctions.corruptColumn(schema, parsed)
        RowReader.checkCorruptColumn(schema, corrupt)
        parsed.recordType.check(StructType(schema.filterNot(_.name == corrupt)))
        TypeCheckResult.TypeCheckSuccess
      } catch { case e: IllegalArgumentException => TypeCheckResult.TypeCheckFailure(e.getMessage) }

  override protected def nullSafeEval(input: Any): Any = reader.read(input.asInstanceOf[Array[Byte]])

  override protected def withNewChildInternal(newChild: Expression): FromExample = copy(child = newChild)
}

/** Decodes records that are not part of a file. */
final class StructReader(schema: StructType, options: TFRecordOptions) {
  private val row = new UnsafeRowWriter(schema.length)
  private val corruptOrdinal = schema.fieldNames.indexOf(RecordFunctions.corruptColumn(schema, options))
  private val decoder = {
    val columns = RecordDecoder.columnsOf(schema).filterNot(_.ordinal == corruptOrdinal)
    RecordDecoder.of(options, columns, row, SQLConf.get.caseSensitiveAnalysis)
  }

  // Larger than the record, because decoders read some bytes beyond it.
  private var buffer = new Array[Byte](1 << 12)

  /** Returns the row of a record. If a value does not fit, the option `mode` decides between null and an error. */
  def read(record: Array[Byte]): InternalRow = {
    if (buffer.length < record.length + CanonicalDecoder.Slack)
      buffer = new Array[Byte](math.max(record.length + CanonicalDecoder.Slack, buffer.length * 2))
    System.arraycopy(record, 0, buffer, 0, record.length)
    begin()
    val fault =
      try decoder.decode(buffer, 0, record.length)
      catch {
        case e: RecordFault =>
          if (!options.tolerant) throw new IllegalArgumentException(s"from_example: ${e.getMessage}")
          begin()
          schema.indices.foreach(row.setNullAt)
          e.getMessage
      }
    if (corruptOrdinal >= 0) {
      if (fault == null) row.setNullAt(corruptOrdinal) else row.write(corruptOrdinal, record)
    }
    row.getRow.copy()
  }

  private def begin(): Unit = {
    row.reset()
    row.zeroOutNullBytes()
  }
}

object RecordFunctions {
  private type Builder = Seq[Expression] => Expression

  private val builders: Seq[(String, Builder)] = Seq(
    "to_example" -> {
      case Seq(struct) => ToExample(struct, Map.empty)
      case Seq(struct, options) => ToExample(struct, mapOf("to_example", options))
      case _ => throw new IllegalArgumentException("to_example takes a struct and, optionally, a map of options.")
    },
    "from_example" -> {
      case Seq(record, schema) => FromExample(record, schemaOf(schema), Map.empty)
      case Seq(record, schema, options) => FromExample(record, schemaOf(schema), mapOf("from_example", options))
      case _ =>
        throw new IllegalArgumentException(
          "from_example takes a binary column, a schema and, optionally, a map of options.")
    })

  /** Registers the SQL functions in a running session. */
  def register(spark: SparkSession): Unit = builders.foreach { case (name, builder) =>
    spark.sessionState.functionRegistry.createOrReplaceTempFunction(name, builder, "scala_udf")
  }

  private[tfrecord] def inject(extensions: SparkSessionExtensions): Unit = builders.foreach { case (name, builder) =>
    extensions.injectFunction(
      (FunctionIdentifier(name), new ExpressionInfo(classOf[ToExample].getName, name), builder))
  }

  /** For Python, which passes the schema as JSON. */
  def fromExample(record: Expression, schema: String, options: java.util.Map[String, String]): Expression =
    FromExample(record, parseSchema(schema), scalaMap(options))

  /** For Python. */
  def toExample(struct: Expression, options: java.util.Map[String, String]): Expression =
    ToExample(struct, scalaMap(options))

  private def scalaMap(given: java.util.Map[String, String]): Map[String, String] = {
    val map = Map.newBuilder[String, String]
    given.forEach((k, v) => map += k -> v)
    map.result()
  }

  def optionsOf(function: String, given: Map[String, String]): TFRecordOptions = {
    val options = new TFRecordOptions(given)
    if (options.recordType == RecordType.ByteArray)
      throw new IllegalArgumentException(s"$function: recordType must be Example or SequenceExample.")
    if (options.mode == "dropmalformed")
      throw new IllegalArgumentException(
        s"$function: mode must be FAILFAST or PERMISSIVE, because a function cannot drop rows.")
    options
  }

  def corruptColumn(schema: StructType, options: TFRecordOptions): String = {
    val session = SQLConf.get
    options.corruptColumnOf(schema, session.columnNameOfCorruptRecord, session.caseSensitiveAnalysis)
  }

  private def schemaOf(e: Expression): StructType =
    if (e.foldable && e.dataType.isInstanceOf[StringType]) parseSchema(String.valueOf(e.eval()))
    else throw new IllegalArgumentException("from_example needs its schema as a literal, e.g. 'id LONG, x ARRAY<FLOAT>'.")

  private def parseSchema(text: String): StructType =
    if (!text.trim.startsWith("{")) StructType.fromDDL(text)
    else
      DataType.fromJson(text) match {
        case s: StructType => s
        case other =>
          throw new IllegalArgumentException(s"from_example needs the schema of a struct, got ${other.simpleString}.")
      }

  private def mapOf(function: String, e: Expression): Map[String, String] = {
    val isMap = e.dataType match {
      case MapType(_: StringType, _: StringType, _) => e.foldable
      case _ => false
    }
    if (!isMap)
      throw new IllegalArgumentException(s"$function needs its options as a literal, e.g. map('mode', 'PERMISSIVE').")
    e.eval() match {
      case m: ArrayBasedMapData =>
        m.keyArray.array.zip(m.valueArray.array).map { case (k, v) => k.toString -> v.toString }.toMap
      case _ => Map.empty
    }
  }
}

/** For `spark.sql.extensions`: adds the SQL functions, and the operators of `connectors/columns`, to every session of an
  * application or a Connect server.
  */
class TFRecordExtensions extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = {
    RecordFunctions.inject(extensions)
    tfspark.columns.SlotRows.inject(extensions)
  }
}
