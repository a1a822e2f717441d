package tfspark.tfrecord

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, Path}
import org.apache.hadoop.io.compress.CompressionCodecFactory
import org.apache.hadoop.mapreduce.{Job, TaskAttemptContext}
import org.apache.spark.TaskContext
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.catalyst.{FileSourceOptions, InternalRow}
import org.apache.spark.sql.catalyst.util.CompressionCodecs
import org.apache.spark.sql.execution.datasources.{FileFormat, OutputWriter, OutputWriterFactory, PartitionedFile}
import org.apache.spark.sql.sources.{DataSourceRegister, Filter}
import org.apache.spark.sql.types.{DataType, StructType}
import org.apache.spark.util.SerializableConfiguration

/**
 * `format("tfrecord")`: TFRecord files as a Spark data source.
 *
 * Spark's file sources provide partition discovery, save modes, the commit protocol, globbing, column pruning,
 * streaming and SQL. The code that is specific to TensorFlow is in the other files of this package.
 */
class TFRecordFileFormat extends FileFormat with DataSourceRegister with Serializable {

  // Kept, because Spark calls isSplitable for every file.
  @transient private var codecs: CompressionCodecFactory = null

  override def shortName(): String = "tfrecord"

  override def toString: String = "TFRecord"

  // Spark reuses an exchange or a cached scan only if the formats are equal.
  override def hashCode(): Int = getClass.hashCode()
  override def equals(other: Any): Boolean = other != null && other.getClass == getClass

  override def supportDataType(t: DataType): Boolean = RecordType.isFeature(t) || RecordType.isFeatureList(t)

  override def inferSchema(
      spark: SparkSession,
      options: Map[String, String],
      files: Seq[FileStatus]): Option[StructType] =
    SchemaInference.infer(spark, options, files)

  /**
   * Returns whether several tasks may read the file. If damaged files are tolerated they may not: after the damage, a
   * record cannot be told from bytes inside another record.
   */
  override def isSplitable(spark: SparkSession, options: Map[String, String], path: Path): Boolean = {
    val parsed = new TFRecordOptions(options)
    if (codecs == null) codecs = new CompressionCodecFactory(spark.sessionState.newHadoopConfWithOptions(options))
    val toleratesDamage =
      parsed.ignores(FileSourceOptions.IGNORE_CORRUPT_FILES, spark.sessionState.conf.ignoreCorruptFiles)
    parsed.splitFiles && !toleratesDamage && Codecs.of(path, codecs) == null
  }

  override def buildReaderWithPartitionValues(
      spark: SparkSession,
      dataSchema: StructType,
      partitionSchema: StructType,
      requiredSchema: StructType,
      filters: Seq[Filter],
      options: Map[String, String],
      hadoopConf: Configuration): PartitionedFile => Iterator[InternalRow] = {
    val parsed = new TFRecordOptions(options)
    val session = spark.sessionState.conf
    val caseSensitive = session.caseSensitiveAnalysis
    val corruptColumn = parsed.corruptColumnOf(dataSchema, session.columnNameOfCorruptRecord, caseSensitive)
    RowReader.checkCorruptColumn(dataSchema, corruptColumn)
    def withoutCorrupt(schema: StructType) = StructType(schema.filterNot(_.name == corruptColumn))
    val whole = parsed.recordType == RecordType.ByteArray || parsed.tolerant
    parsed.recordType.check(withoutCorrupt(if (whole) dataSchema else requiredSchema))
    val conf = spark.sparkContext.broadcast(new SerializableConfiguration(hadoopConf))
    file => {
      val part = new FilePart(file.toPath, conf.value.value, file.start, file.start + file.length, file.fileSize)
      part.open(parsed).fold(Iterator[InternalRow]()) { case (records, atEnd) =>
        val rows = new RowReader(
          records,
          parsed,
          corruptColumn,
          dataSchema,
          requiredSchema,
          partitionSchema,
          file.partitionValues,
          caseSensitive,
          atEnd)
        Option(TaskContext.get()).foreach(_.addTaskCompletionListener[Unit](_ => rows.close()))
        rows
      }
    }
  }

  override def prepareWrite(
      spark: SparkSession,
      job: Job,
      options: Map[String, String],
      dataSchema: StructType): OutputWriterFactory = {
    val parsed = new TFRecordOptions(options)
    parsed.recordType.check(dataSchema)
    if (parsed.sparseVectors) Vectors.checkSparseNames(dataSchema)
    CompressionCodecs.setCodecConfiguration(job.getConfiguration, parsed.compression.orNull)
    new TFRecordWriterFactory(parsed.recordType, parsed.sparseVectors)
  }
}

/** The same format under the name that other connectors use. */
class TFRecordsFileFormat extends TFRecordFileFormat {
  override def shortName(): String = "tfrecords"
}

final class TFRecordWriterFactory(recordType: RecordType, sparseVectors: Boolean) extends OutputWriterFactory {
  override def getFileExtension(context: TaskAttemptContext): String =
    ".tfrecord" + Codecs.extension(context)

  override def newInstance(path: String, schema: StructType, context: TaskAttemptContext): OutputWriter =
    new TFRecordOutputWriter(path, RecordEncoder.of(recordType, schema, sparseVectors), context)
}

final class TFRecordOutputWriter(val path: String, encoder: RecordEncoder, context: TaskAttemptContext)
    extends OutputWriter
    with RecordBuilder {
  private val records = new RecordWriter(Codecs.create(new Path(path), context), path)
  private var row: InternalRow = null

  override def write(given: InternalRow): Unit = {
    row = given
    records.write(this)
  }

  override def appendTo(sink: ByteSink): Unit = encoder.encode(row, sink)

  override def close(): Unit = records.close()
}
